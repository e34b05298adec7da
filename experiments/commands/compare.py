"""`scaling compare`: two tables of runs, and which is better at a budget."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from experiments.commands.fit import TableOptions, print_result
from experiments.commands.plan import values


@dataclass(frozen=True, kw_only=True)
class Command(TableOptions):
    """Say which of two tables, two architectures or recipes, is better at a budget, and with what probability.

    Each is fitted by the law and judged at its own best size. The compute multiplier is how many times its compute the
    second is worth in runs of the first. Two parts of one table are compared with --where-first and --where-second.
    """

    second: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TABLE|URL")]
    """The other table; columns are mapped alike in both."""
    names: tuple[str, str] | None = None
    """What to call the two; by their files unless given."""
    where_first: str | None = None
    """Keep only these rows of the first table."""
    where_second: str | None = None
    """Keep only these rows of the second table."""
    flops: Annotated[str, tyro.conf.arg(name="flops-column")] = "flops"
    """Column with the training FLOPs."""
    budgets: Annotated[tuple[float, ...], tyro.conf.arg(name="flops")] = ()
    """Budgets in training FLOPs; from the compute that both tables hold to ten times beyond unless given."""
    law: str = "chinchilla"
    """Name of a law that reads params and tokens."""
    at: tuple[str, ...] = ()
    """Values of what else the law reads, such as: --at width=1024."""
    json: bool = False
    """Print one JSON object."""

    def __call__(self) -> int:
        """Compare and print."""
        from scaling.decisions.compare import compare

        first = replace(self, where=both(self.where, self.where_first))
        second = replace(self, table=self.second, where=both(self.where, self.where_second))
        found = compare(
            first.read(),
            second.read(),
            flops=self.budgets or None,
            law=self.law,
            names=self.names or called(Path(self.table), Path(self.second)),
            at=values(self.at),
            resamples=self.resamples,
            seed=self.seed,
        )
        print_result(found, as_json=self.json)
        return 0


def both(one: str | None, other: str | None) -> str | None:
    """A row filter that keeps what both keep."""
    given = [f"({each})" for each in (one, other) if each]
    return " and ".join(given) or None


def called(first: Path, second: Path) -> tuple[str, str]:
    """What two tables are called: by their files, their folders where those are named alike, or by their order."""
    for names in ((first.stem, second.stem), (first.resolve().parent.name, second.resolve().parent.name)):
        if names[0] != names[1]:
            return names
    return "first", "second"
