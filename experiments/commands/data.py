"""`scaling data`: text and other data to prepared rows, and a look at rows prepared before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from experiments.buckets import on_disk
from experiments.commands.options import SOURCES, TextOptions, prepare_with_progress
from experiments.data.prepared import Metadata, Prepared, load


@dataclass(frozen=True)
class Command(TextOptions):
    """Turn text, sequences, labelled text, pairs or images into rows to train on, once; or show what rows there are.

    Say where the data come from with one of --embedded, --text, --sequences, --tfds, --labelled, --pairs, --images
    and --captioned:

        scaling data --embedded
        scaling data --text 'books/*.txt' --vocab 1024 --length 256 -o prepared
        scaling data --text speeches.txt.xz --documents line
        scaling data --sequences chorales.json
        scaling data --sequences proteins.jsonl.gz --field seq
        scaling data --tfds wiki40b/en --field text --data-dir ~/tensorflow_datasets
        scaling data --pairs en_es.tsv.xz --columns 1 2 --length 64
        scaling data --labelled reviews.jsonl --columns review stars
        scaling data --images digits.npz
        scaling data prepared/bpe-length256-0123456789abcdef

    The rows land in a folder of their own below --output, named by a hash of everything that decides them.
    The same command again finds them there.
    """

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[FOLDER]")] = ""
    """Show this folder of prepared rows, and make nothing."""

    embedded: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Use the Python standard library's own source, about 11 MB that every machine has."""

    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "runs/data"
    """Folder of prepared data; the default is where `scaling train` looks."""

    samples: int = 2
    """Show the beginning of so many training rows as text."""

    def __call__(self) -> int:
        """Prepares, or opens, and prints."""
        console = Console()
        named = len(self.named) + self.embedded
        if self.folder and named:
            raise ValueError(f"give a folder to show ({self.folder}) or a source to prepare, not both")
        if not self.folder and named != 1:
            raise ValueError(
                f"say where the data come from with one of --embedded, --{', --'.join(SOURCES[:-1])} and "
                f"--{SOURCES[-1]}, not {named} of them"
            )
        if self.folder:
            prepared = load(on_disk(self.folder, "FOLDER"))
        else:
            prepared = prepare_with_progress(self.config(), on_disk(self.output, "--output"), console)
        _show(console, prepared, self.samples)
        return 0


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
    facts = {"source": metadata.source, "contents": f"sha256 {metadata.contents_sha256[:16]}"}
    facts |= _facts(metadata) | {"fingerprint": metadata.fingerprint}
    if metadata.layout.image:
        samples = 0  # pixels are no text
    for index in range(min(samples, len(prepared.train))):
        tokens = prepared.train[index][int(bool(metadata.layout.classes)) :][:40]
        facts[f"row {index}"] = repr("|".join(prepared.tokenizer.decode([token]) or "<>" for token in tokens))
    for name, fact in facts.items():
        console.print(f"{name:<12} {fact}", markup=False, highlight=False, soft_wrap=True)


def _facts(metadata: Metadata) -> dict[str, str]:
    """What a row is, and which tokenizer made it."""
    layout, kind = metadata.layout, metadata.tokenizer.get("kind")
    facts = {"tokenizer": f"{kind} of {metadata.vocab:,}, sha256 {metadata.tokenizer_sha256[:16]}"} if kind else {}
    row = f"{metadata.length} tokens"
    if layout.image:
        row = "an image of " + " x ".join(map(str, layout.image))
        row += f", and {metadata.length + 1 - layout.inputs} tokens of its caption" if layout.inputs else ""
    elif layout.inputs:
        row = f"{layout.inputs} tokens, and {metadata.length + 1 - layout.inputs} of their partner"
    if layout.classes:
        shown = ", ".join(layout.classes[:10]) + (", ..." if len(layout.classes) > 10 else "")
        facts["classes"] = f"{len(layout.classes)}: {shown}"
    return facts | {"a row": f"{row}, seed {metadata.seed}"}
