"""The report: one HTML file that answers first, says how far to trust it, lets a budget be chosen, and shows why.

It needs nothing but a browser: no network, and without scripts it shows drawings in place of the interactive chart.
"""

import os
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from matplotlib.figure import Figure

from scaling import figures
from scaling.approaches.diagnostics import Severity
from scaling.approaches.held_out import as_held_out
from scaling.approaches.study import Study
from scaling.figures import DARK, LIGHT
from scaling.laws import Law
from scaling.report import explorer, pictures, tables
from scaling.report.tables import lead

__all__ = ["html", "lead", "write"]

_CAPTIONS = {
    "loss_against_compute": (
        "Loss against compute",
        "Each dot is a run at the end of its training{curves}; lighter is larger. The line is the lowest loss the "
        "fitted law allows at each budget, with its 95 % interval; dashed, it goes beyond the runs it was fitted to. "
        "{held}The closer the best dots of each budget lie to the line, the better the law.",
    ),
    "isoflop_parabolas": (
        "One parabola a budget",
        "Runs of equal compute and different size. Left of a minimum the model is too small for its budget, right of "
        "it too large for the tokens it could afford. A budget is used only where runs on both sides show the minimum.",
    ),
    "optimal_sizes": (
        "How to spend compute",
        "The best number of parameters and of training tokens at each budget, by three methods that use the runs "
        "differently. Where the lines part, the answer depends on the method; the shaded band is the 95 % interval of "
        "the one used for predictions.",
    ),
    "iso_loss": (
        "The landscape of the law",
        "Along each line the fitted law gives the same loss. The thick line joins the points where a loss is reached "
        "with the least compute; dashed, it goes beyond the runs. Where contours run flat along it, a size off the "
        "optimum costs little.",
    ),
    "predicted_against_measured": (
        "Predicted against measured",
        "Every run's measured loss against what the law gives, and the difference in per cent below. Dots should "
        "scatter about the line without pattern; a slope or a bend means the law misses something.",
    ),
    "residuals": (
        "What the law misses",
        "The same differences along parameters, tokens and compute. A median that leaves zero at an end is where the "
        "law would go wrong beyond the runs.",
    ),
    "profiles": (
        "Which values the runs allow",
        "How much worse the best fit becomes when one quantity is held at a value and everything else is refitted. "
        "Where the curve crosses the dashed line the 95 % interval ends; where it never does, the runs do not "
        "determine the quantity.",
    ),
    "exponent_drift": (
        "Do the exponents hold?",
        "Fitted to the runs below rising compute cut-offs, beside the value and interval of all runs. Exponents that "
        "move with the cut-off go on moving beyond the largest run.",
    ),
}
_SCRIPTS = ("numbers.js", "chart.js", "explorer.js")
_WITHOUT_SCRIPTS = ("loss_against_compute", "optimal_sizes", "isoflop_parabolas")
"""Drawn for readers without scripts; the interactive chart shows the same."""


def _figure(name: str, figure: Figure, fill: Mapping[str, str]) -> str:
    title, caption = (escape(text.format(**fill), quote=True) for text in _CAPTIONS.get(name, (name, "")))
    width = figure.get_size_inches()[0]
    return (
        f"<figure id='{escape(name, quote=True)}'><h3>{title}</h3>"
        f"<img src='{pictures.source(figure)}' alt='{title}: {caption}' style='max-width:{6.4 * width:.0f}rem'>"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _read(name: str) -> str:
    return files("scaling.report").joinpath(name).read_text(encoding="utf-8")


def _style() -> str:
    light, dark = pictures.variables(LIGHT), pictures.variables(DARK)
    themes = f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return themes + _read("report.css")


def _scripts() -> str:
    parts = map(_read, _SCRIPTS)
    return '"use strict";\n(() => {\n' + "".join(parts) + "start();\n})();"


def html(
    study: Study,
    held_out=None,
    *,
    title: str = "Scaling report",
    command: str = "",
    further: Sequence[str | Law] = explorer.FURTHER,
    evidence: Mapping[str, Figure] | None = None,
) -> str:
    """The report as one page without any reference to the network.

    Args:
        study: what to report; it is refitted under every other convention of N and C that its table has.
        held_out: a `HeldOut`, a mapping of its fields, or several.
        title: heading of the page.
        command: the command line that makes these numbers again.
        further: laws of N and D offered beside the three approaches.
        evidence: figures by name, such as `figures.exponent_drift` makes, shown with the others.

    Raises:
        ValueError: no such law among `further`, or one that reads more than N and D.
    """
    held = as_held_out(held_out)
    said = "".join(f"<p class='lead'>{tables.typeset(sentence)}</p>" for sentence in lead(study, held))
    warnings = sum(each.severity is Severity.WARNING for each in study.diagnostics)
    how_many = "1 warning: read it" if warnings == 1 else f"{warnings} warnings: read them"
    verdict = (
        f"<p class='caution'>▲ {how_many} before using any number here.</p>"
        if warnings
        else "<p class='sound'>✓ Nothing here speaks against using these numbers within the range of the runs.</p>"
    )
    content = explorer.data(study, held, further=further) | {"target": tables.target(study, held)}
    shown, of = len(content["runs"]["name"]), content["runs"]["of"]
    thinned = f" {shown:,} of {of:,} runs are drawn and listed; all were fitted." if shown < of else ""
    fill = {
        "curves": ", the thin lines are its training" if study.curves is not None else "",
        "held": "The star was not fitted: it should lie within the bar, which was computed without it. "
        if held
        else "",
    }
    drawn = figures.draw(study, held) | dict(evidence or {})
    plain = "".join(_figure(name, drawn.pop(name), fill) for name in _WITHOUT_SCRIPTS)
    others = "".join(_figure(name, figure, fill) for name, figure in drawn.items())
    refused = "".join(f"<p class='soft'>Not fitted: {escape(each)}</p>" for each in content["refused"])
    again = (
        f"<p>The same numbers again, to the last bit:</p><pre tabindex='0'>{escape(command)}</pre>" if command else ""
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{_style()}</style></head><body><main>
<h1>{escape(title)}</h1>
<p class="soft">{escape(explorer.words(study))}</p>
{said}
<h2>Can it be trusted?</h2>{verdict}{tables.findings(study)}
<div class="cards">{tables.cards(study, held)}</div>
{_read("explorer.html").format(thinned=thinned)}{refused}
<noscript>{plain}</noscript>
<h2>Figures</h2>{others}
<h2>Three approaches side by side</h2>{tables.approaches(study, held)}
<h2>The laws</h2>{tables.parameters(study)}
<h2>Runs</h2>{tables.runs(study, held)}
<h2>How this was made</h2>
<p>{escape(str(study.convention))}; D counts training tokens, repeats included; loss is held-out cross-entropy,
nats per token. Compute follows {tables.typeset(str(study.cost))}, read off the runs. Approaches after Hoffmann et al.
2022, arXiv:2203.15556, section 3; laws of one variable after Kaplan et al. 2020, arXiv:2001.08361. Every bootstrap drew
{study.resamples} resamples with seed {study.seed}. An interval holds the uncertainty of the parameters and, for a
new run, its noise; it does not know of ways in which the law itself may stop holding.</p>
{again}
</main><script type="application/json" id="data">{explorer.script(content)}</script>
<script>{_scripts()}</script></body></html>
"""


def write(study: Study, path: str | Path, held_out=None, **settings) -> Path:
    """Write the report; whole or not at all.

    Args:
        study: what to report.
        path: the .html file; its folder is made.
        held_out: a `HeldOut`, a mapping of its fields, or several.
        **settings: as for `html`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(html(study, held_out, **settings), encoding="utf-8")
    os.replace(partial, path)
    return path
