"""`scaling plot`: the figures of a table of runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from experiments.buckets import on_disk
from experiments.commands.fit import TableOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scaling.approaches.study import Study
    from scaling.figures import Theme


@dataclass(frozen=True)
class Command(TableOptions):
    """Draw the figures of a table of runs, for papers and slides.

    Loss against compute, IsoFLOP parabolas, optimal sizes, contours of equal loss, predicted against measured,
    residuals, profile likelihoods. Shape and lightness tell things apart, so they survive grey print. Rows with role
    'held-out' are predicted, not fitted. A curves.csv beside the table is used.
    """

    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = field(default="figures")
    """The folder to write to; made when it is not there."""
    formats: tuple[Literal["png", "svg", "pdf"], ...] = ("png", "svg")
    """Kinds of files, each figure in every one: png, svg, pdf."""
    theme: Literal["light", "dark"] = "light"
    """Colours: light for paper, dark for slides."""
    beside: tuple[str, ...] = ()
    """Published laws to draw beside the table's own, by name, such as Hoffmann Besiroglu."""
    audit: bool = False
    """Also draw how the exponents drift with the compute cut-off; refits the law below several cut-offs."""

    def __call__(self) -> int:
        """Write the figures and print their paths."""
        from scaling import figures
        from scaling.figures import beside

        output = on_disk(self.output, "--output")
        laws = beside.named(self.beside)  # before the fits: a mistyped name should not cost them
        study, held = self.study()
        theme = {"light": figures.LIGHT, "dark": figures.DARK}[self.theme]
        formats = [figures.Format(kind) for kind in self.formats]
        further = {"exponent_drift": drift(study, theme)} if self.audit else {}
        settings = {"theme": theme, "formats": formats, "beside": laws, "further": further}
        for path in figures.save(study, output, held, **settings):
            print(path)
        return 0


def drift(study: Study, theme: Theme) -> Figure:
    """The figure of exponents below rising compute cut-offs."""
    from scaling import figures, laws, runs
    from scaling.decisions.audit import audit

    table = runs.Table(study.frame)
    found = audit(table, [laws.CHINCHILLA], objective=study.objective, convention=study.convention, seed=study.seed)
    return figures.exponent_drift(found, theme=theme)
