"""Every command that reads takes the URL of a bucket, copies no more than needed, and says in a line what is wrong."""

import json
import shutil
from dataclasses import replace

import fsspec
import pytest
from training_cases import train_to_end

from experiments.buckets import Mirror, Place, copied
from experiments.cli import main

STEPS = 8


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """Where working copies are, which reading must leave alone."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCALING_RESTARTED_FOR_CPU", "1")
    return tmp_path / "home"


@pytest.fixture(scope="module")
def local(run, prepared, tmp_path_factory):
    """The folder of a run of a few steps, whose two last checkpoints are there."""
    folder = tmp_path_factory.mktemp("local") / "one"
    train_to_end(replace(run, steps=STEPS), folder, prepared, checkpoint_steps=5)
    return folder


@pytest.fixture
def memory(local):
    """URL of the same folder in fsspec's own store, in the memory of this process."""
    store = fsspec.filesystem("memory")
    Mirror(Place(local, "memory://b/runs/one"), left_out=[]).push()
    yield "memory://b/runs/one"
    store.store.clear()
    store.pseudo_dirs[:] = [""]


@pytest.fixture
def google(run, prepared, bucket, tmp_path):
    """URL of the same run, trained into a bucket."""
    train_to_end(replace(run, steps=STEPS), tmp_path / "working", prepared, url=f"{bucket}/one", checkpoint_steps=5)
    shutil.rmtree(tmp_path / "working")
    return f"{bucket}/one"


def said(capsys, *arguments, status=0):
    """What a command prints; of a mistake, the one line."""
    assert main([str(argument) for argument in arguments]) == status
    out, error = capsys.readouterr()
    assert error.count("\n") == (status != 0), error
    return error if status else out


@pytest.mark.parametrize("store", ["memory", "google"])
def test_a_run_in_a_bucket_is_read_as_one_on_disk(store, request, local, prepared, home, tmp_path, capsys):
    """Without its rows where only the tokenizer is needed."""
    url, text = request.getfixturevalue(store), tmp_path / "words.txt"
    text.write_text("the cat likes the dog\n" * 20)
    for command, *options in (
        ["evaluate", "--prepared", prepared.folder, "--rows", "8", "--json"],
        ["evaluate", "--data", text, "--documents", "line"],
        ["generate", "--prompt", "the", "--new", "5", "--temperature", "0"],
    ):
        assert said(capsys, command, url, *options) == said(capsys, command, local, *options)
    assert not home.exists()


def test_rows_that_another_tokenizer_made_are_not_those_of_the_run(memory, prepared, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(prepared.folder, other)
    metadata = json.loads((other / "metadata.json").read_bytes())
    (other / "metadata.json").write_text(json.dumps(metadata | {"tokenizer_sha256": "0" * 64}))
    line = said(capsys, "evaluate", memory, "--prepared", other, status=1)
    assert line.startswith(f"scaling evaluate: {memory} was begun on other rows of the same text than {other} holds")


def test_no_more_is_copied_than_needed(google, storage, capsys):
    bucket, _, run = google.removeprefix("gs://").partition("/")
    steps = {name.split("/")[2] for name in storage.names(bucket) if "/checkpoints/" in name}
    assert steps == {"5", "8"}
    asked = len(storage.requests)
    said(capsys, "generate", google, "--prompt", "the", "--new", "2")
    requests = storage.requests[asked:]
    assert {method for method, *_ in requests} == {"GET"}
    names = {name for _, _, name in requests}
    assert not [name for name in names if name.startswith(f"{run}/checkpoints/5/state")]
    small = {name.removeprefix(f"{run}/") for name in names if name.startswith(run) and "checkpoints" not in name}
    assert small - {"", "one"} == {"run.json", "rows.json", "tokenizer.model"}


def test_a_damaged_checkpoint_elsewhere_is_passed_over(memory, capsys):
    store = fsspec.filesystem("memory")

    def damage(step):
        arrays = [path for path in store.find(f"/b/runs/one/checkpoints/{step}") if "/model." in path and "/c/" in path]
        largest = max(arrays, key=store.size)
        content = store.cat_file(largest)
        store.pipe_file(largest, content[:-3] + bytes([content[-3] ^ 4]) + content[-2:])

    question = ["generate", memory, "--prompt", "the", "--new", "2", "--temperature", "0"]
    damage(8)
    with pytest.warns(UserWarning, match="checkpoint memory://b/runs/one/checkpoints/8 is damaged and passed over"):
        assert said(capsys, *question).startswith("the")
    damage(5)
    with pytest.warns(UserWarning, match="is damaged and passed over"):
        assert "none of the 2 checkpoints in memory://b/runs/one/checkpoints is good" in said(
            capsys, *question, status=1
        )


TABLE = "params,tokens,loss\n" + "".join(
    f"{n},{d},{1.7 + 400 / n**0.34 + 410 / d**0.28}\n" for n in (1e6, 3e6, 1e7, 3e7) for d in (1e8, 3e8, 1e9, 3e9)
)


def test_a_table_in_a_bucket_is_read_as_one_on_disk(memory, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    store = fsspec.filesystem("memory")
    store.pipe_file("/b/s/runs.csv", TABLE.encode())
    store.pipe_file("/b/s/large.bin", b"1" * 1000)
    (tmp_path / "runs.csv").write_text(TABLE)
    options = ["--json", "--resamples", "20"]
    assert said(capsys, "fit", "memory://b/s/runs.csv", *options) == said(capsys, "fit", "runs.csv", *options)
    assert said(capsys, "fit", "memory://b/s", *options) == said(capsys, "fit", tmp_path, *options)
    line = said(capsys, "fit", "memory://b/s/rnus.csv", status=1)
    assert line == "scaling fit: no table of runs at memory://b/s/rnus.csv\n"
    assert "there is no folder memory://b/ss; did you mean" in said(capsys, "plot", "memory://b/ss/runs.csv", status=1)
    copy = copied("memory://b/s", "*.csv")
    assert [path.name for path in copy.folder.iterdir()] == ["runs.csv"]
    with copy.named(), pytest.raises(ValueError, match=r"^memory://b/s/x is bad$"), copy.named():
        raise ValueError(f"{copy.folder / 'x'} is bad")


READERS = ("evaluate", "generate", "export", "import", "fit")


def arguments(command, url, tmp_path):
    url = f"{url}/runs.csv" if command == "fit" else url
    return [command, url, *([tmp_path / "out"] if command == "export" else [])]


@pytest.mark.parametrize("command", READERS)
def test_what_is_wrong_with_a_url_is_one_line(command, storage, bucket, tmp_path, monkeypatch, capsys):
    name = bucket.removeprefix("gs://")
    storage.buckets[name] = {"runs/one/other.txt": (b"1", 1)}

    def error(url):
        return said(capsys, *arguments(command, url, tmp_path), status=1)

    assert f"there is no folder {bucket}/runs/two" in error(f"{bucket}/runs/two")
    assert f"there is no folder {bucket}/rusn/one; did you mean '{bucket}/runs'?" in error(f"{bucket}/rusn/one")
    assert "gs://nowhere/runs cannot be read: there is no bucket 'nowhere', or these" in error("gs://nowhere/runs")
    assert "did you mean 'gs'?" in error("gss://b/x")
    assert "did you mean 'gs'?" in error("GS://b/x")
    assert "written gs://bucket/folder, not 'gs//b/x" in error("gs//b/x")
    assert "is on this machine, and named by its path: /b/x" in error("file:///b/x")
    assert "is a page, and no folder in a bucket" in error("https://storage.googleapis.com/b/x")
    assert "written gs://bucket/folder, not 'gs:/b" in error("gs:/b/x")
    wanted = {"fit": "no table of runs at", "import": "is not the folder of a model"}.get(command, "holds no model")
    line = error(f"{bucket}/runs/one")
    assert wanted in line
    assert f"{bucket}/runs/one" in line
    storage.refuse = lambda method, bucket, name: 403
    assert f"{bucket}/runs/one cannot be read: permission denied" in error(f"{bucket}/runs/one")

    def absent(kind):
        raise ImportError(f"no {kind}fs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    assert "pip install 'scaling-experiments[gcs]'" in error(f"{bucket}/runs/one")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("export x gs://b/x", "OUT"),
        ("import x -o gs://b/x", "--output"),
        ("data --embedded -o gs://b/x", "--output"),
        ("data gs://b/x", "FOLDER"),
        ("plot runs.csv -o gs://b/x", "--output"),
        ("report runs.csv -o gs://b/x", "--output"),
        ("quickstart -o gs://b/x", "--output"),
        ("evaluate x --prepared gs://b/x", "--prepared"),
        ("generate x --prepared gs://b/x", "--prepared"),
    ],
)
def test_what_is_written_here_is_no_url(words, what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = said(capsys, *words.split(), status=1)
    assert line.endswith(f": {what} is a path on this machine, and gs://b/x is in a bucket\n")
    assert list(tmp_path.iterdir()) == []
