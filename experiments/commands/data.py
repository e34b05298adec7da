"""`scaling data`: text to prepared rows, and a look at rows prepared before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from experiments.data.prepare import DataConfig, prepare
from experiments.data.prepared import Prepared, load
from experiments.data.sources import AnySource, Documents, Embedded, TextFiles, Tfds
from experiments.data.tokenizer import Kind, TokenizerConfig


@dataclass(frozen=True)
class Command:
    """Turn text into rows of tokens to train on, once; or show what a folder of rows holds.

    Say where the text comes from with one of --embedded, --text and --tfds:

        scaling data --embedded
        scaling data --text 'books/*.txt' --vocab 1024 --length 256 -o prepared
        scaling data --text speeches.txt.xz --documents line
        scaling data --tfds wiki40b/en --field text --data-dir ~/tensorflow_datasets
        scaling data prepared/bpe-length256-0123456789abcdef

    The rows land in a folder of their own below --output, named by a hash of everything that decides them.
    The same command again finds them there.
    """

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[FOLDER]")] = ""
    """Show this folder of prepared rows, and make nothing."""

    embedded: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Use the Python standard library's own source, about 11 MB that every machine has."""

    text: tuple[str, ...] = ()
    """Use these UTF-8 files (plain, .gz, .xz) or quoted patterns."""

    documents: tyro.conf.EnumChoicesFromValues[Documents] = Documents.AUTO
    """What one document is in text files: auto is each file, or each paragraph of a single file."""

    tfds: str = ""
    """Use this dataset of TensorFlow Datasets."""

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

    model: str = ""
    """An existing SentencePiece model, for --tokenizer file."""

    length: int = 256
    """Tokens a row trains on."""

    held_out: float = 0.05
    """Share of the documents kept for evaluation."""

    seed: int = 0
    """Decides which documents are held out and their order."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("prepared")
    """Folder of prepared data."""

    samples: int = 2
    """Show the beginning of so many training rows as text."""

    def __call__(self) -> int:
        """Prepares, or opens, and prints."""
        console = Console()
        if self.folder:
            if self._sources():
                raise ValueError(f"give a folder to show ({self.folder}) or a source to prepare, not both")
            prepared = load(self.folder)
        else:
            prepared = self._prepare(console)
        _show(console, prepared, self.samples)
        return 0

    def _sources(self) -> list[AnySource]:
        sources: list[AnySource] = [Embedded()] if self.embedded else []
        sources += [TextFiles(self.text, self.documents)] if self.text else []
        sources += [Tfds(self.tfds, self.split, self.field, self.data_dir)] if self.tfds else []
        return sources

    def _prepare(self, console: Console) -> Prepared:
        sources = self._sources()
        if len(sources) != 1:
            raise ValueError(
                f"say where the text comes from with one of --embedded, --text and --tfds, not {len(sources)} of them"
            )
        config = DataConfig(
            source=sources[0],
            tokenizer=TokenizerConfig(kind=self.tokenizer, vocab=self.vocab, path=self.model),
            length=self.length,
            held_out=self.held_out,
            seed=self.seed,
        )
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("starting", total=1.0)
            return prepare(
                config,
                self.output,
                progress=lambda what, share: bar.update(task, description=what, completed=share),
            )


def _show(console: Console, prepared: Prepared, samples: int) -> None:
    metadata = prepared.metadata
    splits = (metadata.train, metadata.held_out)
    table = Table(title=str(prepared.folder), title_justify="left")
    table.add_column("")
    for name in ("training", "held out"):
        table.add_column(name, justify="right")
    for name in ("documents", "bytes", "tokens", "rows"):
        table.add_row(name, *(f"{getattr(split, name):,}" for split in splits))
    table.add_row("tokens in no row", *(f"{split.dropped:,}" for split in splits))
    table.add_row("bytes / token", *(f"{split.bytes / split.tokens:.3f}" for split in splits))
    table.add_row("hash of the rows", *(split.sha256[:16] for split in splits))
    console.print(table)
    facts = {
        "source": metadata.source,
        "text": f"sha256 {metadata.contents_sha256[:16]}",
        "tokenizer": f"{metadata.tokenizer['kind']} of {metadata.vocab:,}, sha256 {metadata.tokenizer_sha256[:16]}",
        "a row": f"{metadata.length} tokens, seed {metadata.seed}",
        "fingerprint": metadata.fingerprint,
    }
    for index in range(min(samples, len(prepared.train))):
        tokens = prepared.train[index][:40]
        facts[f"row {index}"] = repr("|".join(prepared.tokenizer.decode([token]) or "<>" for token in tokens))
    for name, fact in facts.items():
        console.print(f"{name:<12} {fact}", markup=False, highlight=False, soft_wrap=True)
