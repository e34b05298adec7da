"""`scaling plot`: the figures of a table of runs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from experiments.commands.fit import TableOptions


@dataclass(frozen=True)
class Command(TableOptions):
    """Draw the figures of a table of runs, as PNG and SVG.

    Loss against compute, IsoFLOP parabolas, optimal sizes, predicted against measured. Rows with role 'held-out' are
    predicted, not fitted. A curves.csv beside the table is used.
    """

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = field(default=Path("figures"))
    """The folder to write to; made when it is not there."""

    def __call__(self) -> int:
        """Write the figures and print their paths."""
        from scaling import figures

        study, held = self.study()
        for path in figures.save(study, self.output, held):
            print(path)
        return 0
