"""`scaling quickstart`: the main job, end to end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train an IsoFLOP sweep on the Python standard library's source, fit the law, and predict a larger run.

    Takes about 6 minutes on two CPU cores and downloads nothing. Leaves runs.csv, fit.json, figures and report.html.
    Interrupt it whenever you like: the same command goes on where it was, and finished runs are never done again.
    """

    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "runs/quickstart"
    """Folder for everything it makes."""
    workers: int = 0
    """Training processes at a time; one a core by default."""
    seed: int = 0
    """Of initialisation and order."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show the runs and what they would cost, and train nothing."""

    def __call__(self) -> int:
        """Runs the recipe."""
        from rich.console import Console

        from experiments.buckets import on_disk
        from experiments.launch.lock import exclusive
        from experiments.recipes.quickstart import Quickstart

        output, console = on_disk(self.output, "--output"), Console()
        recipe = Quickstart(output=output, workers=self.workers, seed=self.seed)
        if self.dry_run:
            return recipe.dry_run(console)
        with exclusive(output):
            return recipe.run(console)
