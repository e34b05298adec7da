"""Options that several subcommands share: where text comes from, which model, which schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.data.examples import AnyExamples, CaptionedImages, LabelledImages, LabelledText, TextPairs
from experiments.data.images import AnyImages, ImageArrays, ImageFolders, ImageTfds
from experiments.data.packed import DataConfig
from experiments.data.prepare import prepare
from experiments.data.prepared import Layout, Prepared
from experiments.data.sequences import Sequences
from experiments.data.sources import Documents, Embedded, TextFiles, Tfds
from experiments.data.tables import AnyTable, TableFiles, TfdsTable
from experiments.data.tokenizer import Kind, TokenizerConfig
from experiments.objectives import (
    AnyObjective,
    Classification,
    Contrastive,
    ImageClassification,
    SequenceToSequence,
    Sides,
    Vocabulary,
)
from experiments.objectives.named import ANSWERS, USUAL, Name, named
from experiments.optimizer import Schedule, Shape
from models import ladder, zoo
from models.config import Architecture
from models.head import Classifier, Pooling, Tying
from models.layers import Norm, NormForm
from models.positions import Positions
from models.transformer import AnyArchitecture

SOURCES = ("text", "sequences", "tfds", "labelled", "pairs", "images", "captioned")
"""The options that say where data come from."""


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Text, or other data, and how it becomes rows."""

    text: tuple[str, ...] = ()
    """UTF-8 files (plain, .gz, .xz) or quoted patterns to read."""
    sequences: tuple[str, ...] = ()
    """Or sequences of symbols (.json, .jsonl): lists of numbers or words, or strings; in objects by --data.field."""
    documents: tyro.conf.EnumChoicesFromValues[Documents] = Documents.AUTO
    """What one document is in text files: auto is each file, or each paragraph of a single file."""
    tfds: str = ""
    """A dataset of TensorFlow Datasets to read instead."""
    labelled: tuple[str, ...] = ()
    """Or texts with a class each: tables (.tsv, .jsonl, also .gz, .xz), or 'tfds:NAME'."""
    pairs: tuple[str, ...] = ()
    """Or pairs of texts, such as translations: tables, or 'tfds:NAME'."""
    images: tuple[str, ...] = ()
    """Or images with a class each: an .npz, two .npy files, a folder of folders of pictures, or 'tfds:NAME'."""
    captioned: tuple[str, ...] = ()
    """Or images with a caption each, from the same places."""
    columns: tuple[str, ...] = ()
    """The two columns, arrays or fields of those by name; columns of a .tsv without a header by number."""
    split: str = "train"
    """The dataset's split, or a slice of it such as 'train[:10%]'; rows are held out of it too."""
    field: str = "text"
    """Field of the dataset, or key of objects, that holds the text or sequence."""
    data_dir: str = ""
    """Folder with prepared TFDS datasets, if not TFDS' own default."""
    tokenizer: tyro.conf.EnumChoicesFromValues[Kind] | None = None
    """bpe and unigram are trained on the text; file is an existing one. By default bpe, of sequences what they hold."""
    vocab: int = 1024
    """Vocabulary to train, 256 bytes included."""
    tokenizer_model: str = ""
    """An existing SentencePiece model, for --tokenizer file."""
    extra: int = 0
    """Ids reserved behind the vocabulary for a mask or sentinels; objectives other than causal and prefix need some."""
    length: int = 256
    """Tokens a row trains on; of pairs, on either side."""
    held_out: float = 0.05
    """Share of the documents kept for evaluation."""
    data_seed: int = 0
    """Decides which documents are held out and their order."""

    @property
    def named(self) -> list[str]:
        """The options that name where data come from."""
        return [name for name in SOURCES if getattr(self, name)]

    def config(self) -> DataConfig | AnyExamples:
        """The data configuration; the embedded corpus where nothing is named.

        Raises:
            ValueError: if more than one source is named.
            FileNotFoundError: for images that are not there.
        """
        if len(self.named) > 1:
            raise ValueError(f"data come from one place: give one of --{' and --'.join(self.named)}")
        shares = dict(held_out=self.held_out, seed=self.data_seed)
        if self.images:
            source = _images(self.images, self.split, self.columns, self.data_dir)
            return LabelledImages(source=source, shape=source.shape(), **shares)
        sequences = Sequences(self.sequences, self.field) if self.sequences else None
        kind = self.tokenizer or (sequences.suited if sequences else Kind.BPE)
        tokenizer = TokenizerConfig(kind=kind, vocab=self.vocab, path=self.tokenizer_model, extra=self.extra)
        if self.captioned:
            source = _images(self.captioned, self.split, self.columns, self.data_dir)
            sizes = dict(shape=source.shape(), targets=self.length)
            return CaptionedImages(source=source, tokenizer=tokenizer, **sizes, **shares)
        if self.labelled:
            source = _table(self.labelled, self.split, self.columns, self.data_dir)
            return LabelledText(source=source, tokenizer=tokenizer, length=self.length, **shares)
        if self.pairs:
            source, sides = _table(self.pairs, self.split, self.columns, self.data_dir), self.length
            return TextPairs(source=source, tokenizer=tokenizer, inputs=sides, targets=sides, **shares)
        source = sequences or (TextFiles(self.text, self.documents) if self.text else Embedded())
        source = Tfds(self.tfds, self.split, self.field, self.data_dir) if self.tfds else source
        return DataConfig(source=source, tokenizer=tokenizer, length=self.length, **shares)


_DATASET = "tfds:"


def _dataset(paths: tuple[str, ...]) -> str | None:
    """The name of a dataset, where paths are one."""
    if not any(path.startswith(_DATASET) for path in paths):
        return None
    if len(paths) > 1:
        raise ValueError(f"one dataset, or files: {' '.join(paths)} are more")
    return paths[0].removeprefix(_DATASET)


def _table(paths: tuple[str, ...], split: str, columns: tuple[str, ...], data_dir: str) -> AnyTable:
    chosen = {"columns": columns} if columns else {}
    if (name := _dataset(paths)) is not None:
        return TfdsTable(name=name, split=split, data_dir=data_dir, **chosen)
    return TableFiles(paths=paths, **chosen)


def _images(paths: tuple[str, ...], split: str, columns: tuple[str, ...], data_dir: str) -> AnyImages:
    if (name := _dataset(paths)) is not None:
        return ImageTfds(name=name, split=split, data_dir=data_dir, **({"fields": columns} if columns else {}))
    if len(paths) == 1 and Path(paths[0]).suffix not in (".npz", ".npy"):
        return ImageFolders(paths[0])
    return ImageArrays(paths=paths, **({"arrays": columns} if columns else {}))


def reading(prepared: Prepared, name: Name | None) -> dict[str, Any]:
    """What a model must be told of the rows it is to read and of the objective: settings of families in the zoo."""
    return _read(prepared) | ANSWERS.get(name, {})


def _read(prepared: Prepared) -> dict[str, Any]:
    layout, metadata = prepared.metadata.layout, prepared.metadata
    if layout.classes and layout.image:
        return {"vocab": 0, "length": 0, "image": layout.image, "classes": len(layout.classes)}
    if layout.image:
        return {"vocab": metadata.vocab, "length": metadata.length + 1 - layout.inputs, "image": layout.image}
    sides = max(layout.inputs, metadata.length + 1 - layout.inputs) if layout.inputs else metadata.length
    return {"vocab": metadata.vocab, "length": sides}


def answering(architecture: AnyArchitecture, prepared: Prepared) -> AnyArchitecture:
    """The architecture that says what rows ask for: classes in place of tokens where texts have classes."""
    layout = prepared.metadata.layout
    if not layout.classes or layout.image or not isinstance(architecture, Architecture):
        return architecture
    pooling = Pooling.FIRST if Sides.of(architecture) is Sides.ENCODER else Pooling.MEAN
    return replace(architecture, head=None, classifier=Classifier(classes=len(layout.classes), pooling=pooling))


def objective_for(
    name: Name | None, architecture: AnyArchitecture, prepared: Prepared, *, shift: int = 0
) -> AnyObjective:
    """The objective of that name for prepared text; what rows or an architecture are usually asked where there is none.

    Args:
        name: of an objective for text.
        architecture: what is asked.
        prepared: the rows; labelled ones and pairs have one objective each.
        shift: of images, how far they are moved in training.

    Raises:
        ValueError: if too few ids are reserved for it, or rows are not of text alone.
    """
    layout = prepared.metadata.layout
    if shift and not (layout.image and layout.classes):
        raise ValueError("only images with classes can be shifted")
    if layout == Layout():
        return named(name or USUAL.get(Sides.of(architecture), Name.CAUSAL), prepared.tokenizer)
    if name is not None:
        raise ValueError(f"{prepared.folder} does not hold plain text, and has its own objective, not {name.value}")
    if layout.image and layout.classes:
        return ImageClassification(image=layout.image, classes=len(layout.classes), shift=shift)
    vocabulary = Vocabulary.of(prepared.tokenizer)
    if layout.image:
        return Contrastive(vocabulary=vocabulary, inputs=layout.inputs, image=layout.image)
    if layout.classes:
        return Classification(vocabulary=vocabulary, classes=len(layout.classes))
    return SequenceToSequence(vocabulary=vocabulary, inputs=layout.inputs)


def prepare_with_progress(config: DataConfig | AnyExamples, root: Path, console: Console) -> Prepared:
    """Prepares rows, or opens them, with a bar that goes when done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("opening data", total=1.0)
        return prepare(config, root, progress=lambda what, share: bar.update(task, description=what, completed=share))


@dataclass(frozen=True, kw_only=True)
class FamilyOptions:
    """A family of the zoo, with what may differ from its own choices; see `scaling models`."""

    family: str = "decoder"
    """decoder (for small models), gpt2, llama, bert, ...: those that `scaling models` lists."""
    kv_heads: int | None = None
    """Key/value heads; fewer than heads is grouped, 1 multi-query attention."""
    positions: tyro.conf.EnumChoicesFromValues[Positions] | None = None
    """How order is known."""
    norm: tyro.conf.EnumChoicesFromValues[NormForm] | None = None
    """Kind of norm."""
    qk_norm: tyro.conf.EnumChoicesFromValues[NormForm] | None = None
    """Norm of queries and keys."""
    window: int | None = None
    """Keys back that a query sees."""
    tying: tyro.conf.EnumChoicesFromValues[Tying] | None = None
    """Whether the head is the embedding transposed."""
    logit_cap: float | None = None
    """Soft cap of logits."""
    dropout: float | None = None
    """Share dropped in training."""
    patch: int | None = None
    """Side of the squares that an image is cut into, in pixels."""
    experts: int | None = None
    """Experts of each block, where the family has any."""
    chosen: int | None = None
    """How many of them each token uses."""
    capacity: float | None = None
    """Seats of an expert for a row, over those it needs if all are used alike; no limit by default."""

    def settings(self) -> dict:
        """What was set."""
        given = {field.name: getattr(self, field.name) for field in fields(FamilyOptions) if field.name != "family"}
        chosen = {name: value for name, value in given.items() if value is not None}
        return {name: Norm(form=value) if isinstance(value, NormForm) else value for name, value in chosen.items()}


@dataclass(frozen=True, kw_only=True)
class ModelOptions(FamilyOptions):
    """A model: a family and a size, by parameters or by shape."""

    params: float | None = None
    """Parameters, in all; the nearest sane shape is taken. Default 100,000 where no shape is given."""
    width: int | None = None
    """Size of the residual stream; with depth and heads, instead of params."""
    depth: int | None = None
    """Number of blocks."""
    heads: int | None = None
    """Query heads."""

    def build(self, vocab: int, length: int, **reads: Any) -> AnyArchitecture:
        """The architecture.

        Args:
            vocab: vocabulary size.
            length: longest row in tokens.
            **reads: other settings of the family that follow from the data.

        Raises:
            ValueError: for an unknown family, half a shape, both a shape and a size, or a size that is none.
        """
        shape = {name: getattr(self, name) for name in ("width", "depth", "heads") if getattr(self, name) is not None}
        if self.params is not None and not 0 < self.params < math.inf:
            raise ValueError(f"--model.params is {self.params:g} and must be more than 0")
        if shape and (len(shape) < 3 or self.params is not None):
            raise ValueError("a model's size is --model.params, or --model.width, --model.depth and --model.heads")
        if shape:
            return zoo.make(self.family, **shape, vocab=vocab, length=length, **reads, **self.settings())
        return ladder.closest(self.family, self.params or 1e5, vocab=vocab, length=length, **reads, **self.settings())


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """Learning rate over a run."""

    peak: float | None = None
    """Highest rate; by default one that depends on the model's size and the number of steps."""
    shape: tyro.conf.EnumChoicesFromValues[Shape] = Shape.LINEAR
    """What follows the warmup, down to `final` times the peak."""
    warmup: float = Schedule.warmup
    """Share of all steps with a linear rise from zero."""
    decay: float = Schedule.decay
    """Share of all steps in which wsd falls."""
    final: float = 0.0
    """Rate at the end, as a share of the peak."""

    def build(self, usual: float) -> Schedule:
        """The schedule; its peak is `usual` where none is set."""
        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        return Schedule(**chosen | {"peak": usual if self.peak is None else self.peak})
