"""One drawing for both themes: a figure as SVG whose colours follow the reader's light or dark setting."""

import base64
import re

from matplotlib.figure import Figure

from scaling.figures import DARK, LIGHT, Format, Theme, render


def palette(theme: Theme) -> dict[str, str]:
    """Every colour of a theme by a name that is the same in all themes."""
    named = {name: getattr(theme, name) for name in ("ink", "paper", "faint", "soft", "accent")}
    named |= {f"approach{i}": colour for i, colour in enumerate(theme.approaches)}
    return named | {f"ramp{i}": colour for i, colour in enumerate(theme.colours)}


def variables(theme: Theme) -> str:
    """The colours of a theme as CSS custom properties."""
    return "".join(f"--{name}:{colour};" for name, colour in palette(theme).items())


def follow_theme(svg: str) -> str:
    """A drawing made in `LIGHT`, its colours replaced by variables that turn to those of `DARK` on a dark page."""
    names = {colour: name for name, colour in palette(LIGHT).items()}
    dark = palette(DARK)
    used = [colour for colour in names if colour in svg]
    light = "".join(f"--{names[colour]}:{colour};" for colour in used)
    night = "".join(f"--{names[colour]}:{dark[names[colour]]};" for colour in used)
    style = f"<style>:root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{night}}}}}</style>"
    if used:
        svg = re.sub("|".join(used), lambda found: f"var(--{names[found[0]]})", svg)
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<\?xml.*?\?>|<!DOCTYPE.*?>", "", svg, flags=re.DOTALL)
    # A hundredth of a point is finer than any screen; matplotlib writes a millionth.
    svg = re.sub(r'(\b(?:d|x|y)=")([^"]*)', lambda found: found[1] + re.sub(r"(\.\d\d)\d+", r"\1", found[2]), svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    return re.sub(r"(<svg\b[^>]*>)", lambda found: found[1] + style, svg, count=1)


def source(figure: Figure) -> str:
    """A figure drawn in `LIGHT` as the address of an image that needs no file."""
    svg = follow_theme(render(figure, Format.SVG).decode())
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
