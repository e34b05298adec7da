"""Sources yield the documents they say, in one order, and refuse bad input in one clear line."""

import gzip
import lzma
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments.data.sources import Documents, Embedded, TextFiles, Tfds


def write(folder, **files):
    for name, data in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".txt").write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(folder)


def test_embedded_is_the_standard_library_without_its_tests():
    documents = list(Embedded().documents())
    names = [document.name for document in documents]
    assert {"argparse.py", "json/decoder.py"} <= set(names)
    assert names == sorted(names)
    assert not [name for name in names if "test" in name.split("/") or "tests" in name.split("/")]
    assert not [name for name in names if "site-packages" in name or "dist-packages" in name]
    assert 8e6 < sum(len(document.text.encode()) for document in documents) < 20e6
    assert all(document.text for document in documents)


def test_contents_are_equal_in_another_process():
    script = "from experiments.data.sources import Embedded; print(Embedded().contents().sha256)"
    environment = {**os.environ, "PYTHONHASHSEED": "99"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == Embedded().contents().sha256


def test_documents_are_files_lines_or_paragraphs(tmp_path):
    text = "one\r\ntwo\n\n  \nthree \n four\n\n"
    folder = write(tmp_path, a=text, b="five")

    def read(split_into, *names):
        source = TextFiles(tuple(f"{folder}/{name}" for name in names), split_into)
        return [tuple(document) for document in source.documents()]

    assert read(Documents.FILE, "*.txt") == [("a.txt", text), ("b.txt", "five")]
    assert read(Documents.LINE, "a.txt") == [
        ("a.txt:1", "one"), ("a.txt:2", "two"), ("a.txt:4", "  "), ("a.txt:5", "three "), ("a.txt:6", " four")
    ]  # fmt: skip
    assert read(Documents.PARAGRAPH, "*.txt") == [
        ("a.txt:1", "one\ntwo"), ("a.txt:5", "three \n four"), ("b.txt:1", "five")
    ]  # fmt: skip
    assert read(Documents.AUTO, "a.txt") == read(Documents.PARAGRAPH, "a.txt")
    assert read(Documents.AUTO, "*.txt") == read(Documents.FILE, "*.txt")


def test_compressed_files_are_read_like_plain_ones(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("á\nb".encode()))
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress("ç\nd".encode()))
    source = TextFiles((f"{tmp_path}/*",), Documents.LINE)
    assert [document.text for document in source.documents()] == ["á", "b", "ç", "d"]


def test_patterns_may_overlap_and_reach_into_folders(tmp_path):
    folder = write(tmp_path, a="1", sub__b="2")
    source = TextFiles((f"{folder}/**/*.txt", f"{folder}/a.txt"))
    assert [tuple(document) for document in source.documents()] == [("a.txt", "1"), ("sub/b.txt", "2")]


def test_hash_follows_names_and_texts_and_not_the_place(tmp_path):
    original = TextFiles((write(tmp_path / "x", a="1", b="2") + "/*",)).contents()
    moved = TextFiles((write(tmp_path / "elsewhere" / "y", a="1", b="2") + "/*",)).contents()
    assert moved == original
    assert (original.documents, original.bytes) == (2, 2)
    renamed = TextFiles((write(tmp_path / "z", a="1", c="2") + "/*",)).contents()
    shifted = TextFiles((write(tmp_path / "w", a="12", b="") + "/a.txt",)).contents()
    changed = TextFiles((write(tmp_path / "v", a="1", b="3") + "/*",)).contents()
    assert len({contents.sha256 for contents in (original, renamed, shifted, changed)}) == 4


@pytest.mark.parametrize("split_into", list(Documents))
def test_text_that_is_not_utf8_is_named_with_its_offset(tmp_path, split_into):
    write(tmp_path, good="ok\n", latin=b"line one\nna" + b"\xefve\n")
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8: byte 0xef at offset 11") as info:
        list(TextFiles((f"{tmp_path}/*.txt",), split_into).documents())
    assert "\n" not in str(info.value)


def test_missing_and_empty_files_are_named(tmp_path):
    folder = write(tmp_path, speeches="hello", void="")
    with pytest.raises(FileNotFoundError, match=r"no file matches '.*spechees\.txt'; did you mean '.*speeches\.txt'"):
        TextFiles((f"{folder}/spechees.txt",)).files()
    with pytest.raises(FileNotFoundError, match=r"no file matches '.*\*\.md'"):
        TextFiles((f"{folder}/*.md",)).files()
    with pytest.raises(ValueError, match=r"void\.txt is empty"):
        list(TextFiles((f"{folder}/*.txt",)).documents())
    with pytest.raises(ValueError, match=r"is a folder; to read files in it say '.*/\*\*/\*\.txt'"):
        TextFiles((folder,)).files()
    with pytest.raises(ValueError, match="at least one path"):
        TextFiles(()).files()


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_damaged_archives_are_named(tmp_path, suffix, pack):
    path = tmp_path / f"a.txt{suffix}"
    whole = pack(os.urandom(1000).hex().encode())
    for damaged in (whole[: len(whole) // 2], b"not an archive"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"a\.txt\{suffix} is not a whole \{suffix} archive"):
            list(TextFiles((str(path),)).documents())


def test_stamp_changes_with_every_change_of_a_file(tmp_path):
    source = TextFiles((write(tmp_path, a="1", b="2") + "/*",))
    stamp, newest = source.stamp()
    assert source.stamp() == (stamp, newest)
    times = (tmp_path / "a.txt").stat()
    (tmp_path / "a.txt").write_text("3")  # same size, and the old time put back
    os.utime(tmp_path / "a.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert source.stamp()[0] != stamp
    assert TextFiles(source.paths, Documents.LINE).stamp()[0] != source.stamp()[0]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A TFDS dataset `tiny_text` made here, without TensorFlow and without a network."""
    import tensorflow_datasets as tfds

    class TinyText(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
            features["steps"] = tfds.features.Tensor(shape=(None, 2), dtype=np.int32)
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(600), "test": self._generate_examples(5)}

        def _generate_examples(self, count):
            for index in range(count):
                steps = np.asarray([[index, 7], [8, -index]], np.int32)
                yield index, {"text": f"example {index} of {count}: ¡olé!", "label": index % 2, "steps": steps}

    folder = str(tmp_path_factory.mktemp("tfds"))
    download = tfds.download.DownloadConfig(try_download_gcs=False)
    TinyText(data_dir=folder, file_format="array_record").download_and_prepare(download_config=download)
    return folder


def test_tfds_reads_every_example_in_one_order_without_tensorflow(data_dir):
    source = Tfds("tiny_text", data_dir=data_dir)
    texts = [document.text for document in source.documents()]
    assert sorted(texts) == sorted(f"example {index} of 600: ¡olé!" for index in range(600))
    assert texts == [document.text for document in source.documents()]
    assert len(list(Tfds("tiny_text", "train[:10%]+test", data_dir=data_dir).documents())) == 65
    assert source.contents().documents == 600
    assert source.stamp() == source.stamp()
    assert "tensorflow" not in sys.modules


def test_numbers_of_a_tfds_dataset_are_symbols_step_by_step(data_dir):
    texts = {document.text for document in Tfds("tiny_text", "test", field="steps", data_dir=data_dir).documents()}
    assert texts == {f"{index} 7 8 {-index} " for index in range(5)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "tiny_txt"}, "no dataset 'tiny_txt'; did you mean 'tiny_text'"),
        ({"name": "tiny_text:9.9.9"}, "'tiny_text:9.9.9'"),
        ({"split": "trian"}, "no split 'trian'; did you mean 'train'"),
        ({"split": "train[:x]"}, r"cannot read split 'train\[:x\]'"),
        ({"field": "txet"}, "no field 'txet'; did you mean 'text'"),
        ({"field": "label"}, "field 'label' of TFDS dataset 'tiny_text' is not text but int"),
        ({"data_dir": "/does/not/exist"}, "data_dir /does/not/exist does not exist"),
    ],
)
def test_tfds_mistakes_are_one_clear_line(data_dir, wrong, message):
    source = Tfds(**{"name": "tiny_text", "data_dir": data_dir, **wrong})
    with pytest.raises((ValueError, FileNotFoundError), match=message) as info:
        next(source.documents())
    assert "\n" not in str(info.value)
