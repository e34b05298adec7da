"""`scaling report`: one HTML file about a table of runs."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from experiments.buckets import on_disk
from experiments.commands.fit import TableOptions
from experiments.commands.plot import drift


@dataclass(frozen=True)
class Command(TableOptions):
    """Write one self-contained HTML report about a table of runs, to read in any browser without a network.

    It opens with the answer in plain words and says how far to trust it. Then a budget can be chosen: parameters,
    tokens and loss with their intervals follow, by every approach and under every way to count N and C that the table
    has columns for; pointing at a run reads it. Figures, parameters and every run come below. Rows with role
    'held-out' are predicted, not fitted. A curves.csv beside the table is used.
    """

    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = field(default="report.html")
    """The file to write."""
    title: str = "Scaling report"
    """Heading of the page."""
    laws: tuple[str, ...] = ("kaplan-nd",)
    """Laws of params and tokens offered beside the three approaches."""
    audit: bool = False
    """Also show how the exponents drift with the compute cut-off; refits the law below several cut-offs."""

    def __call__(self) -> int:
        """Write the report and print its path."""
        from scaling import figures, report
        from scaling.report import explorer

        output = on_disk(self.output, "--output")
        explorer.of_params_and_tokens(self.laws)  # before the fits: a mistyped name should not cost them
        study, held = self.study()
        evidence = {"exponent_drift": drift(study, figures.LIGHT)} if self.audit else {}
        settings = {"title": self.title, "further": self.laws, "evidence": evidence, "command": self.command()}
        print(report.write(study, output, held, **settings))
        return 0

    def command(self) -> str:
        """The command line that makes the same report again."""
        table, output = (shlex.quote(Path(each).name) for each in (self.table, self.output))
        said = f"scaling report {table} -o {output}{self.mapping()}"
        said += f" --title {shlex.quote(self.title)}" if self.title != type(self).title else ""
        said += f" --laws {shlex.join(self.laws)}" if self.laws != type(self).laws else ""
        return said + (" --audit" if self.audit else "")
