"""`scaling models`: the architectures there are, and ladders of their sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from models.config import Architecture


@dataclass(frozen=True)
class Command:
    """List the architectures, or print the sizes of one: parameters and training FLOPs under every convention.

    Without arguments, the families and the published sizes. With a family and a range of parameters, a ladder:

        scaling models
        scaling models gpt2-xl
        scaling models llama --params 1e6 1e9 --count 6 --vocab 1024 --length 256

    FLOPs are those of training, forward and backward, for each token: exact, 6 x params (Hoffmann et al. 2022), and
    6 x parameters without embeddings and head (Kaplan et al. 2020).
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[NAME]")] = ""
    """A family, or a published size."""

    params: tuple[float, ...] = ()
    """Smallest and largest number of parameters of a ladder, or a single number for one model."""

    count: int = 6
    """Sizes in the ladder, first and last included."""

    convention: Literal["params", "params_nonembedding"] = "params"
    """Which parameters --params counts: all, or those without embeddings and head."""

    vocab: int = 1024
    """Vocabulary of the ladder's models."""

    length: int = 256
    """Tokens in a row of the ladder's models."""

    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON, with exact numbers."""

    def __call__(self) -> int:
        """Prints what was asked for."""
        from models import zoo  # not at the top: help need not wait for JAX

        if self.name in zoo.FAMILIES and (self.params or self.name not in zoo.PUBLISHED):
            rows = [_row(self.name, architecture) for architecture in self._ladder()]
            title = f"{self.name}: {_summary(zoo.FAMILIES[self.name])}"
        elif self.name:
            if self.params:
                zoo.family(self.name)  # raises: only families have ladders
            rows, title = [_row(self.name, zoo.get(self.name))], zoo.PUBLISHED[self.name].source
        else:
            if self.params:
                raise ValueError(f"name the family of the ladder, one of {', '.join(zoo.FAMILIES)}")
            rows = [_row(name, published.architecture) for name, published in zoo.PUBLISHED.items()]
            title = "\n".join(f"{name}: {_summary(build)}" for name, build in zoo.FAMILIES.items())
        if self.json:
            print(json.dumps(rows, indent=2))
        else:
            _print(title, rows)
        return 0

    def _ladder(self) -> tuple[Architecture, ...]:
        from models.ladder import Convention, ladder

        if len(self.params) not in (1, 2):
            raise ValueError(
                "say how large with --params: one number for one model, two for a ladder (--params 1e6 1e9)"
            )
        low, high, count = self.params[0], self.params[-1], self.count if len(self.params) == 2 else 1
        sizes = dict(vocab=self.vocab, length=self.length, convention=Convention(self.convention))
        return ladder(self.name, low, high, count, **sizes)


def _summary(build: Any) -> str:
    return build.__doc__.partition("\n")[0]


def _row(name: str, architecture: Architecture) -> dict[str, Any]:
    from models.cost import cost

    price, block = cost(architecture), architecture.blocks[0]
    return {
        "name": name,
        "family": architecture.family,
        "width": architecture.width,
        "depth": architecture.depth,
        "heads": block.mixer.heads,
        "kv_heads": block.mixer.kv_heads,
        "hidden": block.feedforward.hidden,
        "vocab": architecture.vocab,
        "length": architecture.length,
        "params": price.params,
        "params_nonembedding": price.params_nonembedding,
        "params_active": price.params_active,
        "flops_per_token": price.flops_per_token,
        "flops_per_token_6n": price.flops_6nd(1),
        "flops_per_token_kaplan": price.flops_kaplan(1),
    }


def _print(title: str, rows: list[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in ("width", "depth", "heads", "params", "without\nends", "FLOPs\na token", "6 N", "Kaplan"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        heads = f"{row['heads']}" if row["kv_heads"] == row["heads"] else f"{row['heads']}/{row['kv_heads']}"
        counts = ("params", "params_nonembedding", *(f"flops_per_token{name}" for name in ("", "_6n", "_kaplan")))
        table.add_row(row["name"], f"{row['width']}", f"{row['depth']}", heads, *(_short(row[name]) for name in counts))
    console.print(table)
    console.print(
        "heads: queries/keys where they differ. without ends: without embeddings and head. "
        "FLOPs: of training, on rows of full length.",
        soft_wrap=True,
    )


def _short(count: float) -> str:
    """Four digits and a unit."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.4g}{name}"
    return f"{count:,.0f}"
