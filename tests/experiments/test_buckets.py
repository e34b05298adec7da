"""Folders in buckets: what counts is there, and what is half there does not count."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from unittest import mock

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_cases import differences, metrics_in, train_to_end, train_until

from experiments.buckets import Mirror, Place, kind_and_path
from experiments.checkpoint import Checkpoints
from experiments.cli import main
from experiments.runs import RunFolder
from experiments.train import train


@pytest.fixture
def memory():
    """A store that needs no server: fsspec's own, in the memory of this process."""
    store = fsspec.filesystem("memory")
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------------------------------
# Names


@pytest.mark.parametrize("text", ["runs", "/a/b:c", "a:/b", "./gs:x"])
def test_paths_are_no_buckets(text):
    assert Place.of(text) == Place(Path(text))


def test_a_url_has_a_working_copy_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    place = Place.of("memory://b/runs/")
    assert place.url == str(place) == "memory://b/runs"
    assert place.folder.is_relative_to(tmp_path)
    assert (place / "x").url == "memory://b/runs/x"
    assert (place / "x").folder == place.folder / "x"
    assert Place.of("memory://c/runs").folder != place.folder


def test_two_names_of_one_kind():
    assert kind_and_path("gcs://b/x/") == kind_and_path("gs://b/x") == ("gs", "b/x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gs:/b/x", "written gs://bucket/folder, not 'gs:/b/x'"),
        ("gs://", "written gs://bucket/folder, not 'gs://'"),
        ("gs://b/../../..", "has '.' or '..' in it"),
        ("s3:///x", "written s3://bucket/folder"),
        ("gss://b/x", "no kind of storage is called 'gss'; did you mean 'gs'?"),
    ],
)
@pytest.mark.parametrize("command", ["train", "sweep --budgets 1e9", "launch slurm -- train"])
def test_mistakes_are_one_line(text, said, command, capsys, monkeypatch):
    """And told before anything is read, or submitted."""
    monkeypatch.setenv("SCALING_RESTARTED_FOR_CPU", "1")
    assert main([*command.split(), "-o", text]) == 1
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_a_missing_package_is_named(monkeypatch):
    def absent(kind):
        raise ImportError(f"no {kind}fs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    with pytest.raises(ValueError, match=r"gs://b/x needs .*: pip install 'scaling-experiments\[gcs\]'$"):
        Place.of("gs://b/x")
    with pytest.raises(ValueError, match="s3://b/x needs a package that is not installed: Install s3fs"):
        Place.of("s3://b/x")


# ---------------------------------------------------------------------------------------------------------------------
# Small files


def test_what_is_pushed_is_pulled_elsewhere(memory, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    write(one, {"run.json": "1", "tensorboard/events": "2", ".lock": "3", "logs/worker-0.log": "4"})
    write(one, {"checkpoints/5/data": "5"})
    Mirror(Place(one, "memory://b/run")).push()
    own = {".lock": "own", "checkpoints/5/data": "own"}
    write(other, own | {"run.json": "old", "failed.json": "old"})
    mirror = Mirror(Place(other, "memory://b/run"))
    mirror.pull()
    assert files_in(other) == {"run.json": "1", "tensorboard/events": "2"} | own
    (other / "run.json").unlink()
    mirror.push()
    assert memory.find("/b/run") == ["/b/run/tensorboard/events"]


def test_only_what_changed_is_pushed_and_the_result_last(memory, tmp_path):
    mirror, real, pushed = Mirror(Place(tmp_path, "memory://b/run")), type(memory).put, []

    def noting(self, here, there, **settings):
        pushed.append(sorted(Path(path).name for path in there))
        return real(self, here, there, **settings)

    with mock.patch.object(type(memory), "put", noting):
        write(tmp_path, {"run.json": "1", "result.json": "2", "zz.json": "3"})
        mirror.push()
        assert pushed == [["run.json", "zz.json"], ["result.json"]]
        mirror.push()
        write(tmp_path, {"run.json": "11"})
        mirror.push()
    assert pushed[2:] == [["run.json"]]


def step_files(*steps):
    return {f"checkpoints/{step}/{name}": str(step) for step in steps for name in ("a/data", "_CHECKPOINT_METADATA")}


def test_a_checkpoint_that_was_half_pushed_does_not_count(memory, tmp_path):
    """Killed before the last file of a new one was pushed; what is left of it is cleared away by the next push."""
    one, other, real = tmp_path / "one", tmp_path / "other", type(memory).put
    write(one, step_files(1))
    Mirror(Place(one, "memory://b/run"), left_out=[]).push()
    write(one, step_files(2) | {"checkpoints/3.orbax-checkpoint-tmp/a/data": "3"})

    def killed(self, here, there, **settings):
        if there[0].endswith("_CHECKPOINT_METADATA"):
            raise KeyboardInterrupt
        return real(self, here, there, **settings)

    with mock.patch.object(type(memory), "put", killed), pytest.raises(KeyboardInterrupt):
        Mirror(Place(one, "memory://b/run"), left_out=[]).push()
    assert memory.find("/b/run/checkpoints/2") == ["/b/run/checkpoints/2/a/data"]
    mirror = Mirror(Place(other, "memory://b/run"), left_out=[])
    mirror.pull()
    assert files_in(other) == step_files(1)
    mirror.push()
    assert {path.removeprefix("/b/run/") for path in memory.find("/b/run")} == step_files(1).keys()


def test_a_checkpoint_that_was_half_deleted_does_not_count(memory, tmp_path):
    mirror, real = Mirror(Place(tmp_path / "one", "memory://b/run"), left_out=[]), type(memory).rm_file
    write(tmp_path / "one", step_files(1, 2))
    mirror.push()
    shutil.rmtree(tmp_path / "one/checkpoints/1")

    def killed(self, path):
        real(self, path)
        raise KeyboardInterrupt

    with mock.patch.object(type(memory), "rm_file", killed), pytest.raises(KeyboardInterrupt):
        mirror.push()
    assert memory.find("/b/run/checkpoints/1") == ["/b/run/checkpoints/1/a/data"]
    Mirror(Place(tmp_path / "other", "memory://b/run"), left_out=[]).pull()
    assert files_in(tmp_path / "other") == step_files(2)


def test_refusals_of_a_store_are_one_line(storage, bucket, tmp_path):
    mirror = Mirror(Place(tmp_path, f"{bucket}/run"))
    write(tmp_path, {"run.json": "1"})
    absent = Mirror(Place(tmp_path, "gs://nowhere/run"))
    for call, what in ((absent.pull, "read"), (absent.push, "written")):
        with pytest.raises(OSError, match=f"gs://nowhere/run cannot be {what}: there is no bucket 'nowhere', or"):
            call()
    storage.refuse = lambda method, bucket, name: 403
    for call, what in ((mirror.pull, "read"), (mirror.push, "written")):
        with pytest.raises(OSError, match=f"{bucket}/run cannot be {what}: permission denied") as caught:
            call()
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


STATE = {"weight": jnp.asarray(np.random.default_rng(0).standard_normal((64, 64), np.float32)), "step": jnp.int32(7)}
WANTED = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=None), STATE)


def saved(folder, *steps):
    with Checkpoints(folder) as checkpoints:
        for step in steps:
            checkpoints.save(step, STATE | {"step": jnp.int32(step)}, metadata={"step": step})


def test_checkpoints_in_a_bucket(storage, bucket):
    """The newest two are kept; one without the mark of completeness, or with a flipped bit, is not used."""
    folder, name = f"{bucket}/run/checkpoints", bucket.removeprefix("gs://")
    saved(folder, 1, 2, 3)
    assert Checkpoints(folder).steps() == (2, 3)
    assert not [each for each in storage.names(name) if each.startswith("run/checkpoints/1")]
    found = Checkpoints(folder).restore(WANTED)
    assert (found.step, found.metadata, int(found.state["step"])) == (3, {"step": 3}, 3)
    np.testing.assert_array_equal(found.state["weight"], STATE["weight"])

    # Killed before the last file of step 3 was there.
    del storage.buckets[name]["run/checkpoints/3/commit_success.txt"]
    assert Checkpoints(folder).steps() == (2,)
    assert Checkpoints(folder).restore(WANTED).step == 2
    saved(folder, 3)
    assert Checkpoints(folder).steps() == (2, 3)

    of_three = [each for each in storage.names(name) if "/3/" in each and "/d/" in each]
    arrays = max(of_three, key=lambda each: len(storage.buckets[name][each][0]))
    storage.change(name, arrays, lambda content: content[:5000] + bytes([content[5000] ^ 4]) + content[5001:])
    with pytest.warns(UserWarning, match=rf"checkpoint {folder}/3 is damaged and passed over"):
        assert Checkpoints(folder).restore(WANTED).step == 2


def test_checkpoints_say_why_they_cannot_be_written(storage, bucket, tmp_path):
    storage.refuse = lambda method, bucket, name: 403 if method == "POST" else None
    with pytest.raises(OSError, match=rf"could not write the checkpoint of step 1 in {bucket}/run: .*refused"):
        saved(f"{bucket}/run", 1)
    with pytest.raises(ValueError, match="memory://b/run: checkpoints are written to disk, or straight to"):
        Checkpoints("memory://b/run")


# ---------------------------------------------------------------------------------------------------------------------
# Runs


@pytest.fixture(params=["google", pytest.param("other", marks=pytest.mark.slow)])
def url(request):
    """A folder in one of Google's buckets, and in another store."""
    if request.param == "google":
        return f"{request.getfixturevalue('bucket')}/runs/one"
    request.getfixturevalue("memory")
    return "memory://b/runs/one"


def test_a_run_goes_on_where_the_disk_is_new(run, prepared, uninterrupted, url, tmp_path):
    train_until(run, tmp_path / "first", prepared, url=url, calls=40, checkpoint_steps=60)
    shutil.rmtree(tmp_path / "first")
    with warnings.catch_warnings(action="error"):
        ended = train_to_end(run, tmp_path / "second", prepared, url=url)
    assert differences(ended, uninterrupted) == []
    with mock.patch("experiments.train.advancing", side_effect=AssertionError("trained again")):
        result = train(run, RunFolder(tmp_path / "third", url), prepared)
    assert result == ended.stored
    assert metrics_in(tmp_path / "third") == uninterrupted.metrics


def test_a_run_goes_on_only_with_the_same_rows(run, prepared, bucket, tmp_path):
    """Where the disk is new, the rows are made anew; by another tokenizer they would be other ones of the same text."""
    url = f"{bucket}/runs/one"
    train_until(run, tmp_path / "first", prepared, url=url, calls=2, checkpoint_steps=60)
    other = replace(prepared, metadata=replace(prepared.metadata, tokenizer_sha256="0" * 64))
    with pytest.raises(ValueError, match=r"begun on other rows of the same text than .* \(tokenizer: hash"):
        train(run, RunFolder(tmp_path / "second", url), other)
