"""Options that several subcommands share: where text comes from, which model, which schedule."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.data.prepare import DataConfig, prepare
from experiments.data.prepared import Prepared
from experiments.data.sources import AnySource, Documents, Embedded, TextFiles, Tfds
from experiments.data.tokenizer import Kind, TokenizerConfig
from experiments.objectives.example import Sides
from experiments.objectives.named import USUAL, Name, TextObjective, named
from models import ladder, zoo
from models.config import Architecture
from models.head import Tying
from models.layers import Norm, NormForm
from models.positions import Positions


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Text, and how it becomes rows of tokens."""

    text: tuple[str, ...] = ()
    """UTF-8 files (plain, .gz, .xz) or quoted patterns to read."""
    documents: tyro.conf.EnumChoicesFromValues[Documents] = Documents.AUTO
    """What one document is in text files: auto is each file, or each paragraph of a single file."""
    tfds: str = ""
    """A dataset of TensorFlow Datasets to read instead."""
    split: str = "train"
    """The dataset's split, or a slice of it such as 'train[:10%]'; rows are held out of it too."""
    field: str = "text"
    """The dataset's field that holds text."""
    data_dir: str = ""
    """Folder with prepared TFDS datasets, if not TFDS' own default."""
    tokenizer: tyro.conf.EnumChoicesFromValues[Kind] = Kind.BPE
    """bpe and unigram are trained on the text, bytes needs no training, file is an existing model."""
    vocab: int = 1024
    """Vocabulary to train, 256 bytes included."""
    tokenizer_model: str = ""
    """An existing SentencePiece model, for --tokenizer file."""
    extra: int = 0
    """Ids reserved behind the vocabulary for a mask or sentinels; objectives other than causal and prefix need some."""
    length: int = 256
    """Tokens a row trains on."""
    held_out: float = 0.05
    """Share of the documents kept for evaluation."""
    data_seed: int = 0
    """Decides which documents are held out and their order."""

    def config(self) -> DataConfig:
        """The data configuration; the embedded corpus where no other text is named.

        Raises:
            ValueError: if more than one source is named.
        """
        sources: list[AnySource] = [TextFiles(self.text, self.documents)] if self.text else []
        sources += [Tfds(self.tfds, self.split, self.field, self.data_dir)] if self.tfds else []
        if len(sources) > 1:
            raise ValueError("text comes from one place: give --text or --tfds, not both")
        return DataConfig(
            source=sources[0] if sources else Embedded(),
            tokenizer=TokenizerConfig(
                kind=self.tokenizer, vocab=self.vocab, path=self.tokenizer_model, extra=self.extra
            ),
            length=self.length,
            held_out=self.held_out,
            seed=self.data_seed,
        )


def objective_for(name: Name | None, architecture: Architecture, prepared: Prepared) -> TextObjective:
    """The objective of that name for prepared text; what an architecture is usually asked where there is none.

    Raises:
        ValueError: if too few ids are reserved for it.
    """
    return named(name or USUAL[Sides.of(architecture)], prepared.tokenizer)


def prepare_with_progress(config: DataConfig, root: Path, console: Console) -> Prepared:
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

    def build(self, vocab: int, length: int) -> Architecture:
        """The architecture.

        Raises:
            ValueError: for an unknown family, half a shape, or both a shape and a size.
        """
        shape = {name: getattr(self, name) for name in ("width", "depth", "heads") if getattr(self, name) is not None}
        if shape and (len(shape) < 3 or self.params is not None):
            raise ValueError("a model's size is --model.params, or --model.width, --model.depth and --model.heads")
        if shape:
            return zoo.make(self.family, **shape, vocab=vocab, length=length, **self.settings())
        return ladder.closest(self.family, self.params or 1e5, vocab=vocab, length=length, **self.settings())
