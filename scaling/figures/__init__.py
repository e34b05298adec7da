"""Figures for papers: of a study (all sides of one table), and of the evidence beside it.

Drawn with matplotlib's objects (no global state), as PNG, SVG or PDF. Order is shown by lightness and kinds by shape,
so that nothing depends on telling hues apart and all of it survives a grey printer.
"""

import inspect
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from scaling.approaches.study import Study
from scaling.figures.axes import power_of_ten, short
from scaling.figures.budgets import isoflop_parabolas
from scaling.figures.compute import loss_against_compute, optimal_sizes
from scaling.figures.evidence import exponent_drift, profiles, what_the_runs_allow
from scaling.figures.law import iso_loss, predicted_against_measured, residuals
from scaling.figures.theme import DARK, LIGHT, Theme
from scaling.published import PublishedLaw

__all__ = [
    "DARK", "FIGURES", "LIGHT", "Format", "Theme", "draw", "exponent_drift", "iso_loss", "isoflop_parabolas",
    "loss_against_compute", "optimal_sizes", "power_of_ten", "predicted_against_measured", "profiles", "render",
    "residuals", "save", "short", "what_the_runs_allow",
]  # fmt: skip

FIGURES: dict[str, Callable[..., Figure]] = {
    "loss_against_compute": loss_against_compute,
    "isoflop_parabolas": isoflop_parabolas,
    "optimal_sizes": optimal_sizes,
    "iso_loss": iso_loss,
    "predicted_against_measured": predicted_against_measured,
    "residuals": residuals,
    "profiles": what_the_runs_allow,
}
"""Every figure of a study by the name of its file."""


class Format(Enum):
    """Kind of a figure's file."""

    PNG = "png"
    SVG = "svg"
    PDF = "pdf"


_DATES = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None}}


def render(figure: Figure, kind: str | Format) -> bytes:
    """A figure as the bytes of a PNG, SVG or PDF; the same figure gives the same bytes."""
    kind, buffer = Format(kind).value, io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "scaling", "pdf.fonttype": 42}):
        figure.savefig(buffer, format=kind, dpi=160, metadata=_DATES[kind])
    return buffer.getvalue()


def draw(
    study: Study, held_out=None, *, theme: Theme = LIGHT, beside: Sequence[PublishedLaw] = ()
) -> dict[str, Figure]:
    """Every figure of a study by its name.

    Args:
        study: what to draw.
        held_out: a `HeldOut`, a mapping of its fields, or several; drawn beside the prediction.
        theme: colours.
        beside: published laws, drawn where a figure shows optima.
    """
    drawn = {}
    for name, function in FIGURES.items():
        more = {"beside": beside} if "beside" in inspect.signature(function).parameters else {}
        drawn[name] = function(study, held_out, theme=theme, **more)
    return drawn


def save(
    study: Study,
    folder: str | Path,
    held_out=None,
    *,
    theme: Theme = LIGHT,
    formats: Iterable[Format] = (Format.PNG, Format.SVG),
    beside: Sequence[PublishedLaw] = (),
    further: Mapping[str, Figure] | None = None,
) -> tuple[Path, ...]:
    """Write every figure of a study.

    Args:
        study: what to draw.
        folder: made when it is not there.
        held_out: a `HeldOut`, a mapping of its fields, or several; drawn beside the prediction.
        theme: colours.
        formats: of the files, each figure in every one.
        beside: published laws, drawn where a figure shows optima.
        further: figures of evidence, by name, to be written with the others.

    Returns:
        The files, each written whole or not at all.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in (draw(study, held_out, theme=theme, beside=beside) | dict(further or {})).items():
        for kind in formats:
            path = folder / f"{name}.{kind.value}"
            partial = folder / f".{path.name}.{os.getpid()}.partial"
            partial.write_bytes(render(figure, kind))
            os.replace(partial, path)
            written.append(path)
    return tuple(written)
