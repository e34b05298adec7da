"""`scaling quickstart`: the main job, end to end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train an IsoFLOP sweep on the Python standard library's source, fit the law, and predict a larger run.

    Takes about 6 minutes on two CPU cores and downloads nothing. Leaves runs.csv, fit.json, figures and report.html.
    Interrupt it whenever you like: the same command goes on where it was, and finished runs are never done again.
    """

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/quickstart")
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

        from experiments.launch.lock import exclusive
        from experiments.recipes.quickstart import Quickstart

        recipe, console = Quickstart(output=self.output, workers=self.workers, seed=self.seed), Console()
        if self.dry_run:
            return recipe.dry_run(console)
        with exclusive(self.output):
            return recipe.run(console)
