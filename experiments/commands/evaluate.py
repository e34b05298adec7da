"""`scaling evaluate`: what a trained model makes of text it has not seen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from experiments.data.sources import Documents


@dataclass(frozen=True)
class Command:
    """Measure a trained model on held-out rows, or on other text.

    Printed are the loss in nats per prediction, its exponential (perplexity), and bits per byte, which no tokenizer
    changes; the standard error of each comes from the spread between rows. Where a row ends, so does what the model
    sees: the first tokens of each row have little before them, which makes the loss somewhat higher than with a
    window that slides. --bleu needs the extra `bleu` (the package sacrebleu).

        scaling evaluate runs/0123456789ab                                  # the rows held out of its training
        scaling evaluate runs/0123456789ab --data 'speeches/*.txt'          # other text
        scaling evaluate runs/imported/gpt2 --data speeches.txt.xz --documents line
        scaling evaluate runs/0123456789ab --bleu                           # a model of pairs: its translations
        scaling evaluate gs://bucket/runs/0123456789ab --data speeches.txt  # a run in a bucket
    """

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER|URL")]
    """The model: folder of a run, of an imported model, or of transformers; also gs://bucket/folder (extra `gcs`)."""

    data: tuple[str, ...] = ()
    """UTF-8 files (plain, .gz, .xz) or quoted patterns; by default the rows held out of the run's training."""

    documents: tyro.conf.EnumChoicesFromValues[Documents] = Documents.AUTO
    """What one document is in --data: auto is each file, or each paragraph of a single file."""

    length: int | None = None
    """Tokens in a row of --data; by default those the model was trained on."""

    bleu: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also let the model say the second of each held-out pair, and compare with what it is."""

    beams: int = 4
    """Beams of that search."""

    rows: int | None = None
    """Held-out rows, or pairs, to read, spread over all; all by default."""

    batch: int = 16
    """Rows at a time."""

    prepared: str = ""
    """Folder of the run's prepared rows, if it is not where `scaling train` puts them."""

    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON."""

    def __call__(self) -> int:
        """Prints the measures."""
        if self.bleu and self.data:
            raise ValueError("--bleu is of the pairs held out of training: leave out --data")
        if self.batch < 1 or (self.rows or 1) < 1:
            raise ValueError("--batch and --rows must be 1 or more")
        import jax

        from experiments import scores, trained
        from experiments.buckets import on_disk
        from parallel.mesh import device_mesh

        if self.bleu:
            scores.need_sacrebleu()  # before anything is computed
        prepared = on_disk(self.prepared, "--prepared") if self.prepared else None
        mesh = device_mesh("data=1", jax.devices()[:1])
        with jax.set_mesh(mesh):
            found = trained.load(self.folder, mesh)
            if self.data:
                measured = scores.of_text(
                    found, self.data, self.documents, length=self.length, batch=self.batch, rows=self.rows,
                    prepared=prepared,
                )  # fmt: skip
            else:
                measured = scores.of_held_out(found, mesh, batch=self.batch, rows=self.rows, prepared=prepared)
            if self.bleu:
                settings = dict(beams=self.beams, batch=self.batch, rows=self.rows, prepared=prepared)
                measured |= scores.bleu(found, **settings)
        print(json.dumps(measured, indent=2) if self.json else "\n".join(_lines(measured)))
        return 0


_TOLD = {
    "loss": "nats per prediction",
    "perplexity": "",
    "bits_per_byte": "",
    "accuracy": "",
    "bleu": "",
    "bleu_of_copying": "were the source said again",
    "predictions": "",
    "bytes": "",
    "pairs": "",
}


def _lines(measured: dict[str, Any]) -> list[str]:
    """A line for each measure, with its error where there is one."""
    lines = []
    for name in (name for name in _TOLD if name in measured):
        value, error = measured[name], measured.get(f"{name}_se")
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        lines.append(f"{name.replace('_', ' '):<16} {shown}{f' ± {error:.4f}' if error else ''} {_TOLD[name]}".rstrip())
    return [*lines, f"signature        {measured['signature']}"] if "signature" in measured else lines
