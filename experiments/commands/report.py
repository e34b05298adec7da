"""`scaling report`: one HTML file about a table of runs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from experiments.commands.fit import TableOptions


@dataclass(frozen=True)
class Command(TableOptions):
    """Write one self-contained HTML report about a table of runs.

    It opens with the answer in plain words, then says how far to trust it, shows figures, the three approaches side by
    side and every run. Rows with role 'held-out' are predicted, not fitted. A curves.csv beside the table is used.
    """

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = field(default=Path("report.html"))
    """The file to write."""
    title: str = "Scaling report"
    """Heading of the page."""

    def __call__(self) -> int:
        """Write the report and print its path."""
        from scaling import report

        study, held = self.study()
        command = f"scaling report {self.table.name} -o {self.output.name}{self.mapping()}"
        print(report.write(study, self.output, held, title=self.title, command=command))
        return 0
