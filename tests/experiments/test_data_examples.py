"""Labelled texts, pairs and images become a row each: the same rows from the same data, equal ones on one side."""

import dataclasses
import json
import lzma

import numpy as np
import pytest

from experiments.data.examples import CaptionedImages, LabelledImages, LabelledText, TextPairs
from experiments.data.images import ImageArrays, ImageFolders, ImageTfds
from experiments.data.packed import DataConfig
from experiments.data.prepare import prepare
from experiments.data.prepared import load
from experiments.data.sources import TextFiles
from experiments.data.tables import TableFiles, TfdsTable
from experiments.data.tokenizer import Kind, TokenizerConfig

BYTES = TokenizerConfig(kind=Kind.BYTES)
RNG = np.random.default_rng(0)
PAIRS = [(f"verse {number} " + "ab" * (number % 9), f"verso {number} " + "cd" * (number % 7)) for number in range(200)]
IMAGES = RNG.integers(0, 256, (120, 5, 4), np.uint8)
IMAGES[60:] = IMAGES[:60]  # every image twice, under other labels
LABELS = RNG.integers(0, 12, 120)


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.tsv.xz"
    path.write_bytes(lzma.compress("".join(f"{a}\t{b}\tmore\n" for a, b in PAIRS).encode()))
    return TableFiles((str(path),))


@pytest.fixture
def arrays(tmp_path):
    np.savez(tmp_path / "digits.npz", images=IMAGES, labels=LABELS)
    return ImageArrays((str(tmp_path / "digits.npz"),))


def all_rows(prepared):
    return [part.take(np.arange(len(part))) for part in (prepared.train, prepared.held_out)]


def test_pairs_lie_side_by_side(tmp_path, pairs):
    config = TextPairs(source=pairs, tokenizer=BYTES, inputs=24, targets=24, held_out=0.2)
    prepared = prepare(config, tmp_path / "out")
    assert (prepared.metadata.layout.inputs, prepared.train.length) == (24, 47)
    train, held_out = all_rows(prepared)
    ids, found = prepared.tokenizer, []
    for row in np.concatenate([train, held_out]):
        sides = row[:24], row[24:]
        for side in sides:
            size = list(side).index(ids.eos)
            assert (side[size + 1 :] == ids.pad).all()
        found.append(tuple(ids.decode(side) for side in sides))
    fitting = [pair for pair in PAIRS if max(len(text) for text in pair) <= 23]
    assert sorted(found) == sorted(fitting)
    assert 0 < len(fitting) < len(PAIRS)
    counts = prepared.metadata.train, prepared.metadata.held_out
    lost = sum(len(a) + len(b) + 2 for a, b in PAIRS if max(len(a), len(b)) > 23)
    assert sum(count.dropped for count in counts) == lost
    assert sum(count.documents for count in counts) == 200
    assert 20 < len(held_out) < 60
    # Not in the order of the file, the same again, and found without being made.
    assert found[: len(train)] != [pair for pair in fitting if pair in found[: len(train)]]
    assert prepare(config, tmp_path / "again").metadata.train == prepared.metadata.train
    assert prepare(config, tmp_path / "out").folder == prepared.folder
    seeded = prepare(dataclasses.replace(config, seed=1), tmp_path / "out")
    assert seeded.metadata.held_out.sha256 != prepared.metadata.held_out.sha256


def test_texts_bear_their_class(tmp_path):
    path = tmp_path / "reviews.jsonl"
    lines = [{"id": n, "review": f"film {n} " + "x" * (n % 30), "stars": 10 - n % 2} for n in range(100)]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    source = TableFiles((str(path),), columns=("review", "stars"))
    prepared = prepare(LabelledText(source=source, tokenizer=BYTES, length=20, held_out=0.3), tmp_path / "out")
    assert prepared.metadata.layout.classes == ("9", "10")  # numbers in their order, not "10" first
    ids, rows = prepared.tokenizer, np.concatenate(all_rows(prepared))
    assert len(rows) == 100
    for row in rows:
        tokens = row[1:][row[1:] != ids.pad]
        assert (tokens[0], tokens[-1]) == (ids.bos, ids.eos)
        text = ids.decode(tokens)
        line = next(line for line in lines if line["review"][:18] == text)
        assert row[0] == 10 - line["id"] % 2 - 9
    lost = sum(max(0, len(line["review"]) - 18) for line in lines)
    assert prepared.metadata.train.dropped + prepared.metadata.held_out.dropped == lost


def test_a_tokenizer_is_trained_on_both_sides_of_what_is_trained_on(tmp_path, pairs):
    config = TextPairs(source=pairs, tokenizer=TokenizerConfig(vocab=290, extra=3), inputs=40, targets=40)
    prepared = prepare(config, tmp_path / "out")
    assert (prepared.metadata.vocab, prepared.tokenizer.extra) == (293, 3)
    pieces = set(prepared.tokenizer.pieces)
    assert {b"abab", b"cdcd"} <= pieces


def test_images_are_rows_of_pixels(tmp_path, arrays):
    config = LabelledImages(source=arrays, shape=arrays.shape(), held_out=0.25)
    prepared = prepare(config, tmp_path / "out")
    assert prepared.metadata.layout.classes == tuple(map(str, range(12)))
    assert prepared.metadata.layout.image == (5, 4, 1)
    train, held_out = all_rows(load(prepared.folder))
    assert (prepared.folder / "train.npy").stat().st_size < 2 * train.size  # a byte a pixel
    found = sorted(map(tuple, np.concatenate([train, held_out])))
    assert found == sorted((label, *image.ravel()) for label, image in zip(LABELS, IMAGES, strict=True))
    # Equal images are on one side, whatever their labels.
    sides = [{row[1:].tobytes() for row in rows} for rows in (train, held_out)]
    assert not sides[0] & sides[1]
    assert [len(side) for side in sides] == [len(train) // 2, len(held_out) // 2]
    with pytest.raises(ValueError, match="rows of images, which no tokenizer made"):
        _ = prepared.tokenizer


def test_captions_lie_behind_their_images(tmp_path):
    captions = np.asarray([f"picture {'of a long name ' * (n % 3)}{n}" for n in range(120)])
    np.savez(tmp_path / "a.npz", images=IMAGES, captions=captions)
    source = ImageArrays((str(tmp_path / "a.npz"),), ("images", "captions"))
    config = CaptionedImages(source=source, shape=(5, 4, 1), tokenizer=BYTES, targets=20, held_out=0.2)
    prepared = prepare(config, tmp_path / "out")
    assert (prepared.metadata.layout.image, prepared.metadata.layout.inputs) == ((5, 4, 1), 20)
    ids, rows = prepared.tokenizer, np.concatenate(all_rows(prepared))
    assert rows.shape == (120, 40)
    found = {(row[:20].astype(np.uint8).tobytes(), ids.decode(row[20:])) for row in rows}
    assert found == {(image.tobytes(), caption[:19]) for image, caption in zip(IMAGES, captions, strict=True)}
    assert all(ids.eos in row[20:] for row in rows)
    counts = prepared.metadata.train, prepared.metadata.held_out
    assert sum(count.dropped for count in counts) == sum(max(0, len(caption) - 19) for caption in captions)
    with pytest.raises(ValueError, match="a caption needs 2 tokens or more, not 1"):
        dataclasses.replace(config, targets=1)


def test_arrays_folders_and_datasets_hold_the_same_images(tmp_path, arrays):
    from PIL import Image

    np.save(tmp_path / "x.npy", IMAGES[..., None])
    np.save(tmp_path / "y.npy", LABELS)
    two = ImageArrays((str(tmp_path / "x.npy"), str(tmp_path / "y.npy")))
    assert two.contents() == arrays.contents()
    for number, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        folder = tmp_path / "pictures" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    rows = [
        prepare(LabelledImages(source=source, shape=(5, 4, 1)), tmp_path / "out").metadata.train.sha256
        for source in (arrays, ImageFolders(str(tmp_path / "pictures")))
    ]
    assert len(set(rows)) == 2  # of equal images the source's order decides
    pictures = {(image.label, image.pixels.tobytes()) for image in ImageFolders(str(tmp_path / "pictures")).images()}
    assert pictures == {(image.label, image.pixels.tobytes()) for image in arrays.images()}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    import tensorflow_datasets as tfds

    class TinyShots(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(5, 4, 1)),
                "caption": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            import io

            from PIL import Image

            for index in range(40):
                Image.fromarray(IMAGES[index]).save(file := io.BytesIO(), "png")
                yield index, {"image": file.getvalue(), "caption": f"shot {index}", "label": index % 2}

    folder = str(tmp_path_factory.mktemp("tfds"))
    download = tfds.download.DownloadConfig(try_download_gcs=False)
    TinyShots(data_dir=folder, file_format="array_record").download_and_prepare(download_config=download)
    return folder


def test_datasets_give_images_and_tables(data_dir):
    images = {image.pixels.tobytes(): image.label for image in ImageTfds("tiny_shots", data_dir=data_dir).images()}
    assert images == {IMAGES[index].tobytes(): ("cat", "dog")[index % 2] for index in range(40)}
    table = TfdsTable("tiny_shots", columns=("caption", "label"), data_dir=data_dir)
    entries = {entry.first: entry.second for entry in table.entries()}
    assert entries == {f"shot {index}": ("cat", "dog")[index % 2] for index in range(40)}
    for source, message in (
        (TfdsTable("tiny_shots", columns=("captoin", "label"), data_dir=data_dir), "did you mean 'caption'"),
        (TfdsTable("tiny_shots", columns=("image", "label"), data_dir=data_dir), "'image' .* is not text but ndarray"),
        (ImageTfds("tiny_shots", fields=("label", "label"), data_dir=data_dir), "'label' .* is no image"),
    ):
        with pytest.raises(ValueError, match=message):
            source.contents()


def test_everything_that_decides_rows_is_in_the_fingerprint(tmp_path, pairs, arrays):
    from experiments.data.prepare import fingerprint

    text = TextPairs(source=pairs, tokenizer=BYTES)
    shown = LabelledImages(source=arrays, shape=(5, 4, 1))
    labelled = LabelledText(source=pairs, tokenizer=BYTES, length=63)
    configs = [text, shown, labelled, DataConfig(source=TextFiles(pairs.paths), tokenizer=BYTES, length=63)]
    configs += [
        dataclasses.replace(config, **change) for config in configs[:3] for change in ({"seed": 1}, {"held_out": 0.1})
    ]
    configs += [dataclasses.replace(text, **change) for change in ({"inputs": 63}, {"targets": 63})]
    contents = pairs.contents()
    assert len({fingerprint(config, contents) for config in configs}) == len(configs)


def write(folder, name, data):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: TableFiles((write(f, "a.csv", "x"),)), r"a\.csv is no table: want \.tsv or \.jsonl"),
        (lambda f: TableFiles((write(f, "a.tsv", "one\ttwo\nthree\n"),)), r"a\.tsv:2 has 1 columns, and column 2"),
        (lambda f: TableFiles((write(f, "a.tsv", "one\t\n"),)), r"a\.tsv:1 has an empty column"),
        (lambda f: TableFiles((write(f, "a.tsv", ""),)), r"a\.tsv is empty"),
        (lambda f: TableFiles((write(f, "a.tsv", "x\n"),), ("0", "1")), "counted from 1"),
        (lambda f: TableFiles((write(f, "a.tsv", "x\n"),), ("1",)), "name two columns of the table, not 1"),
        (lambda f: TableFiles((write(f, "a.tsv", "text\tlabel\nx\ty\n"),), ("txet", "label")),
         r"a\.tsv:1 has no column 'txet'; did you mean 'text'"),
        (lambda f: TableFiles((write(f, "a.tsv", b"na\xefve\tx\n"),)), r"a\.tsv is not UTF-8: byte 0xef at offset 2"),
        (lambda f: TableFiles((write(f, "a.jsonl", '{"a": 1}\n{"a"\n'),), ("a", "a")), r"a\.jsonl:2 is not JSON"),
        (lambda f: TableFiles((write(f, "a.jsonl", "[1]\n"),)), r"a\.jsonl:1 is no JSON object but list"),
        (lambda f: TableFiles((write(f, "a.jsonl", '{"a": [1], "b": 2}\n'),), ("a", "b")),
         r"a\.jsonl:1: 'a' is not text but list"),
        (lambda f: TableFiles((f"{f}/no.tsv",)), "no file matches"),
        (lambda f: ImageArrays((write(f, "a.npz", "text"),)), r"a\.npz holds no arrays that can be read"),
        (lambda f: ImageArrays((f"{f}/b.npz",)), r"there is no .*b\.npz"),
        (lambda f: ImageArrays((f"{f}/b.npy",)), "are one .npz with the names of two arrays, or two"),
        (lambda f: ImageFolders(f"{f}/none"), "there is no folder"),
        (lambda f: ImageFolders(str(f)), "has no pictures in folders named by class"),
        (lambda f: write(f, "cat/a.png", "no png") and ImageFolders(str(f)), r"a\.png is no picture that can be read"),
    ],
)  # fmt: skip
def test_mistakes_are_one_clear_line(tmp_path, make, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as info:
        make(tmp_path).contents()
    assert "\n" not in str(info.value)


def test_arrays_of_another_kind_are_refused(tmp_path):
    for images, labels, message in (
        (IMAGES.astype(np.float32), LABELS, "images are float32"),
        (IMAGES[0], LABELS, r"images are uint8\[5, 4\]"),
        (IMAGES, LABELS[:3], r"labels are int64\[3\]"),
        (IMAGES, LABELS / 2, r"labels are float64\[120\]"),
    ):
        np.savez(tmp_path / "a.npz", images=images, labels=labels)
        with pytest.raises(ValueError, match=message):
            ImageArrays((str(tmp_path / "a.npz"),)).contents()
    with pytest.raises(ValueError, match=r"has no array 'image'; did you mean 'images'"):
        ImageArrays((str(tmp_path / "a.npz"),), ("image", "labels")).contents()


def test_images_of_two_sizes_are_refused(tmp_path, arrays):
    from PIL import Image

    for label, size in (("a", (4, 5)), ("b", (6, 5))):
        (tmp_path / "p" / label).mkdir(parents=True)
        Image.new("L", size).save(tmp_path / "p" / label / "1.png")
    with pytest.raises(ValueError, match=r"b/1\.png is 5 x 6 x 1 and a/1\.png is 5 x 4 x 1"):
        ImageFolders(str(tmp_path / "p")).contents()
    with pytest.raises(ValueError, match=r"images are 5 x 4 x 1 and should be \(4, 4, 1\)"):
        prepare(LabelledImages(source=arrays, shape=(4, 4, 1)), tmp_path / "out")


def test_too_little_is_said(tmp_path, pairs):
    with pytest.raises(ValueError, match="none of the 200 examples of the source fits a row"):
        prepare(TextPairs(source=pairs, tokenizer=BYTES, inputs=3, targets=3), tmp_path)
    one = TableFiles((write(tmp_path, "one.tsv", "a\tx\nb\tx\n"),))
    with pytest.raises(ValueError, match="has 1 classes, which leave nothing to tell"):
        prepare(LabelledText(source=one, tokenizer=BYTES), tmp_path)
    two = TableFiles((write(tmp_path, "two.tsv", "a\tx\nb\ty\n"),))
    with pytest.raises(ValueError, match="no example of 2 is"):
        prepare(LabelledText(source=two, tokenizer=BYTES, held_out=1e-9), tmp_path)
    with pytest.raises(ValueError, match="an image's shape is height, width and channels"):
        LabelledImages(source=ImageFolders("x"), shape=(4, 4))
