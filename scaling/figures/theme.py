"""Colours: two themes, told apart by lightness before hue, so that they survive a grey printer and any eye."""

from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.colors import ListedColormap, to_hex

RAMP_STEPS = 40
"""Colours in a ramp: enough to look even, few enough for a colour bar that stays a vector drawing."""


@dataclass(frozen=True)
class Theme:
    """Colours of a figure.

    Attributes:
        ink: text and axes.
        paper: background.
        faint: grid.
        soft: laws of others, drawn beside one's own.
        accent: the held-out run.
        approaches: one colour an approach; neighbours differ in lightness by a tenth of the range and more.
        ramp: the part of the sequential colour map (viridis, even in lightness) that stands out from the paper.
    """

    ink: str
    paper: str
    faint: str
    soft: str
    accent: str
    approaches: tuple[str, str, str]
    ramp: tuple[float, float]

    @property
    def colours(self) -> tuple[str, ...]:
        """The ramp, from least to most."""
        return tuple(map(to_hex, mpl.colormaps["viridis"](np.linspace(*self.ramp, RAMP_STEPS))))

    @property
    def colormap(self) -> ListedColormap:
        """The ramp as matplotlib takes it."""
        return ListedColormap(self.colours)

    @property
    def settings(self) -> dict:
        """Matplotlib settings of the theme."""
        text = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor")
        return dict.fromkeys(text, self.ink) | {
            "figure.facecolor": self.paper,
            "axes.facecolor": self.paper,
            "savefig.facecolor": self.paper,
            "grid.color": self.faint,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "font.size": 10,
            "legend.frameon": False,
            "legend.fontsize": 8.5,
            "pdf.fonttype": 42,  # text that stays text in a paper
            "svg.hashsalt": "scaling",
        }


LIGHT = Theme(
    ink="#1b1f24",
    paper="#ffffff",
    faint="#e4e7eb",
    soft="#6b7480",
    accent="#d55e00",
    approaches=("#0f9d8a", "#b3367f", "#0b3d73"),
    ramp=(0.0, 0.82),
)
DARK = Theme(
    ink="#e6e9ee",
    paper="#14171c",
    faint="#2b3038",
    soft="#8f98a5",
    accent="#ff9a3c",
    approaches=("#2f9e8c", "#f08fb8", "#a8e0ff"),
    ramp=(0.28, 1.0),
)
