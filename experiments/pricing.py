"""What a sweep would cost on a topology: for every run its layout, whether it fits, how long it takes, chip-hours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from experiments.layouts import Layouts
from experiments.placement import Layout
from experiments.runs import Run
from experiments.show import duration, short
from parallel.search import Candidate
from parallel.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Price:
    """A run's layout on a topology, and what it costs there by arithmetic.

    Attributes:
        run: the run.
        topology: where.
        candidate: the fastest layout that fits; the smallest one if none does.
        fits: whether it fits.
    """

    run: Run
    topology: Topology
    candidate: Candidate[Layout]
    fits: bool

    @property
    def seconds(self) -> float:
        """Of training."""
        return self.run.steps * self.candidate.seconds

    @property
    def chip_hours(self) -> float:
        """Chips times hours."""
        return self.topology.chips * self.seconds / 3600


def prices(
    runs: Sequence[Run], topology: Topology, layout: Layout, report: Callable[[Run], None] = lambda run: None
) -> list[Price]:
    """Prices of runs; those that differ only in length or seed share a layout.

    Args:
        runs: what would be trained.
        topology: where.
        layout: what all layouts share.
        report: told which run is looked at next.

    Raises:
        ValueError: if no mesh of the topology suits the batch and the architecture of a run.
    """
    known, found = {}, []
    for run in runs:
        key = (run.architecture, run.batch, run.data, run.objective, run.precision)
        if key not in known:
            report(run)
            told = Layouts(run, topology, layout).search(compiled=0)
            smallest = min(told.candidates, key=lambda each: each.predicted.memory_needed)
            known[key] = (told.best or smallest, told.best is not None)
        candidate, fits = known[key]
        found.append(Price(run=run, topology=topology, candidate=candidate, fits=fits))
    return found


def price_table(found: Sequence[Price]) -> Table:
    """A row for each run, and the sum."""
    table = Table(
        title=f"{len(found)} runs on {found[0].topology}, by arithmetic", title_justify="left", box=box.SIMPLE_HEAD,
        pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    # Which run is which shows the table of runs, in the same order.
    for name in ("params", "mesh", "remat", "parts", "GiB", "step", "MFU", "time", "chip-hours"):
        table.add_column(name, justify="left" if name in ("mesh", "remat") else "right", no_wrap=True)
    for price in found:
        layout, said = price.candidate.layout, price.candidate.predicted
        table.add_row(
            short(price.run.cost.params), layout.mesh, layout.remat.value, str(layout.accumulate),
            f"{said.memory_needed / 2**30:.3g}" + ("" if price.fits else " (too much)"), f"{said.step_seconds:.3g} s",
            f"{said.mfu:.2f}" if said.mfu else "", duration(price.seconds), f"{price.chip_hours:,.0f}",
        )  # fmt: skip
    total = sum(price.chip_hours for price in found if price.fits)
    table.caption = f"{total:,.0f} chip-hours in all, one run after another {duration(sum(p.seconds for p in found))}"
    return table


def check_fit(found: Sequence[Price]) -> None:
    """Raises ValueError if a run does not fit; the message says by how much."""
    large = [price for price in found if not price.fits]
    if not large:
        return
    worst = max(large, key=lambda price: price.candidate.predicted.memory_needed)
    needed, topology = worst.candidate.predicted.memory_needed / 2**30, worst.topology
    raise ValueError(
        f"{len(large)} of {len(found)} runs do not fit {topology}: {short(worst.run.cost.params)} parameters need "
        f"{needed:.3g} GiB a chip of {topology.chip.memory_bytes / 2**30:.3g} in the smallest layout; take more chips, "
        "smaller models, or fewer or shorter rows"
    )
