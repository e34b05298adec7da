"""The report: one HTML file that answers first, then shows why, and needs nothing but a browser."""

import base64
import os
import re
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np

from scaling import published
from scaling.estimate import Estimate
from scaling.figures import DARK, FIGURES, LIGHT, power_of_ten, render, short
from scaling.held_out import HeldOut, as_held_out
from scaling.study import Approach, Study

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
    "predicted_against_measured": (
        "Predicted against measured",
        "Every run's measured loss against what the law gives, and the difference in per cent below. Dots should "
        "scatter about the line without pattern; a slope or a bend means the law misses something.",
    ),
}


def _range(estimate: Estimate, form: str = ".3f") -> str:
    """A value with its interval, or the value alone when there is no interval."""
    if not np.isfinite([estimate.low, estimate.high]).all():
        return f"{estimate.value:{form}} (no interval)"
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def _count(estimate: Estimate) -> str:
    if not np.isfinite([estimate.low, estimate.high]).all():
        return f"{short(estimate.value)} (no interval)"
    return f"{short(estimate.value)} ({short(estimate.low)} to {short(estimate.high)})"


def _typeset(text: str) -> str:
    """Text as HTML: escaped, with C^0.48 and N_opt raised and lowered."""
    text = re.sub(r"\^(\(.+?\)|-?[\d.]+\d|-?\w+)", r"<sup>\1</sup>", escape(text))
    return re.sub(r"([A-Zα])_(\w+)", r"\1<sub>\2</sub>", text)


def _cell(text: str) -> str:
    """A table cell; an interval in brackets goes below its value."""
    value, bracket, interval = text.partition(" (")
    if bracket and " to " in interval:
        return f"<td>{_typeset(value)}<br><small>{_typeset(interval[:-1])}</small></td>"
    return f"<td>{_typeset(text)}</td>"


def _row(cells: Iterable[str], kind: str = "") -> str:
    return f"<tr{f' class={kind!r}' if kind else ''}>" + "".join(map(_cell, cells)) + "</tr>"


def _table(caption: str, head: Iterable[str], rows: Iterable[str], *, tall: bool = False) -> str:
    header = "".join(f"<th scope='col'>{_typeset(cell)}</th>" for cell in head)
    kind = "scroll tall" if tall else "scroll"
    return (
        f"<p class='soft'>{_typeset(caption)}</p>"
        f"<div class='{kind}' tabindex='0' role='region' aria-label='{escape(caption, quote=True)}'>"
        f"<table><thead><tr>{header}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _target(study: Study, held: tuple[HeldOut, ...]) -> float:
    """The budget the tables answer for: the held-out run's, or ten times the largest fitted."""
    return held[0].flops if held else 10 * float(study.view["flops"].max())


def lead(study: Study, held: tuple[HeldOut, ...]) -> list[str]:
    """The answer in a few sentences of plain text."""
    a, b = study.exponents()[study.choice]
    said = []
    if study.parametric is not None:
        p = study.parametric.bootstrap.fit.parameters
        said.append(
            f"{len(study.frame)} runs are described by L = {p['E']:.3f} + {p['A']:.4g} / N^{p['alpha']:.3f} + "
            f"{p['B']:.4g} / D^{p['beta']:.3f}, within {study.parametric.bootstrap.fit.sigma:.2%} of the loss."
        )
    said.append(
        f"With ten times the compute, the best model has {10**a.value:.2g} times the parameters and sees "
        f"{10**b.value:.2g} times the tokens: N_opt grows as C^{_range(a, '.2f')} and D_opt as C^{_range(b, '.2f')}."
    )
    if len(held) > 3:
        measured = [each for each in held if each.loss is not None]
        typical = float(np.median([abs(each.error) for each in measured])) if measured else float("nan")
        inside = sum(bool(each.inside) for each in measured)
        said.append(
            f"Of {len(measured)} held-out runs {inside} ended inside their 95 % intervals; "
            f"the predictions were typically off by {typical:.2%}."
        )
        return said
    for each in held:
        reach = each.flops / float(study.view["flops"].max())
        who = f"The held-out run, at {reach:.2g} times the largest compute fitted," if reach > 1 else "The held-out run"
        if each.loss is None:
            said.append(f"{who} is predicted to reach {_range(each.predicted)} nats per token.")
            continue
        verdict = "inside" if each.inside else "OUTSIDE"
        said.append(
            f"{who} was predicted to reach {_range(each.predicted)} nats per token and reached {each.loss:.3f}: "
            f"{abs(each.error):.2%} {'above' if each.error > 0 else 'below'}, {verdict} the 95 % interval."
        )
    return said


def _cards(study: Study, held: tuple[HeldOut, ...]) -> str:
    a, b = study.exponents()[study.choice]
    flops = _target(study, held)
    best = study.optimum(flops)
    cards = [
        (f"{a.value:.2f}", f"exponent a of N_opt ~ C^a; 95 % {a.low:.2f} to {a.high:.2f}"),
        (f"{b.value:.2f}", f"exponent b of D_opt ~ C^b; 95 % {b.low:.2f} to {b.high:.2f}"),
        (
            f"{short(best.params.value)} / {short(best.tokens.value)}",
            f"best N / D at {power_of_ten(flops)} FLOPs: {best.tokens.value / best.params.value:.3g} a parameter",
        ),
    ]
    if held and held[0].loss is not None:
        text = f"held-out error: predicted {held[0].predicted.value:.3f}, measured {held[0].loss:.3f} nats per token"
        cards.append((f"{held[0].error:+.2%}", text))
    elif best.loss is not None:
        cards.append((f"{best.loss.value:.3f}", f"expected loss there, nats per token; {_range(best.loss)}"))
    return "".join(
        f"<div class='card'><b>{escape(value)}</b><span>{_typeset(text)}</span></div>" for value, text in cards
    )


def _approaches(study: Study, held: tuple[HeldOut, ...]) -> str:
    flops = _target(study, held)
    exponents, optima, rows = study.exponents(), study.optima(flops), []
    for approach in Approach:
        if approach in study.missing:
            rows.append(_row([approach.value, *["—"] * 5]))
            continue
        best = optima[approach]
        cells = [approach.value, *(_range(each, ".2f") for each in exponents[approach])]
        cells += [_count(best.params), _count(best.tokens), _range(best.loss) if best.loss else "—"]
        rows.append(_row(cells, "chosen" if approach is study.choice else ""))
    head = ("approach", "a", "b", "N_opt", "D_opt", "loss")
    caption = (
        f"Three approaches; N_opt, D_opt and loss at {power_of_ten(flops)} FLOPs. "
        f"Bold: used for predictions, since {study.reason}."
    )
    others = [
        _row(
            [
                each.name,
                f"{each.a:.2f}" + (f" ({each.low} to {each.high})" if each.low else ""),
                each.convention,
                each.source,
            ]
        )
        for each in published.ALLOCATIONS
    ]
    return _table(caption, head, rows) + _table(
        "Published exponents of N_opt, for comparison (other data, other conventions)",
        ("law", "a", "convention", "source"),
        others,
    )


def _parameters(study: Study) -> str:
    parts = []
    if study.parametric is not None:
        boot = study.parametric.bootstrap
        rows = []
        for each in boot.fit.law.parameters:
            at = boot.interval(each.name)
            rows.append(_row([each.name, f"{at.value:.5g}", f"{at.low:.4g} to {at.high:.4g}", each.meaning]))
        caption = f"{boot.fit.law.text}; minimum of {boot.fit.objective}; intervals: {boot.method}"
        parts.append(_table(caption, ("parameter", "value", "95 % interval", "meaning"), rows))
    rows = []
    for each in study.kaplan.values():
        scale, _ = each.law.names
        rows.append(
            _row([each.law.text, _range(each.alpha), f"{each.parameters[scale]:.3g}", str(each.rows), each.law.source])
        )
    if rows:
        caption = "Kaplan's laws of one variable, through the runs that no run with less of it beats"
        parts.append(_table(caption, ("law", "exponent", "scale", "runs", "source"), rows))
    return "".join(parts)


def _figures(study: Study, held: tuple[HeldOut, ...]) -> str:
    fill = {
        "curves": ", the thin lines are its training" if study.curves is not None else "",
        "held": "The star was not fitted: it should lie within the bar, which was computed without it. "
        if held
        else "",
    }
    parts = []
    for name, draw in FIGURES.items():
        title, caption = _CAPTIONS[name]
        light, dark = (
            "data:image/svg+xml;base64," + base64.b64encode(render(draw(study, held, theme=theme), "svg")).decode()
            for theme in (LIGHT, DARK)
        )
        caption = caption.format(**fill)
        parts.append(
            f"<figure id='{name}'><h3>{title}</h3>"
            f"<picture><source media='(prefers-color-scheme: dark)' srcset='{dark}'>"
            f"<img src='{light}' alt='{escape(title)}: {escape(caption, quote=True)}'></picture>"
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return "".join(parts)


def _runs(study: Study, held: tuple[HeldOut, ...]) -> str:
    view = study.view
    names = view["run"].astype(str) if "run" in view else view.index.astype(str)
    predicted = None
    if study.parametric is not None:
        predicted = study.parametric.bootstrap.fit.predict(
            {name: view[name].to_numpy() for name in ("params", "tokens")}
        )
    rows = []
    for i in np.lexsort((view["params"], view["flops"])):
        run = view.iloc[i]
        cells = [str(names[i])[:12], short(run["params"]), short(run["tokens"]), power_of_ten(run["flops"])]
        cells += [f"{run['tokens'] / run['params']:.3g}", f"{run['loss']:.4f}"]
        if predicted is not None:
            cells += [f"{predicted[i]:.4f}", f"{run['loss'] / predicted[i] - 1:+.2%}"]
        rows.append(_row(cells))
    for each in held:
        cells = [f"{each.run[:12]} held out".strip(), short(each.params), short(each.tokens), power_of_ten(each.flops)]
        cells += [f"{each.tokens / each.params:.3g}", "—" if each.loss is None else f"{each.loss:.4f}"]
        cells += [f"{each.predicted.value:.4f}", "—" if each.loss is None else f"{each.error:+.2%}"]
        rows.append(_row(cells[: 8 if predicted is not None else 6], "held"))
    head = ["run", "N", "D", "C", "D / N", "loss"] + (["predicted", "difference"] if predicted is not None else [])
    return _table("Every run, by compute and size", head, rows, tall=True)


def html(study: Study, held_out=None, *, title: str = "Scaling report", command: str = "") -> str:
    """The report as one page without any reference to the network.

    Args:
        study: what to report.
        held_out: a `HeldOut`, a mapping of its fields, or several.
        title: heading of the page.
        command: the command line that makes these numbers again.
    """
    held = as_held_out(held_out)
    findings = "".join(f"<li class='{each.severity.value}'>{_typeset(each.text)}</li>" for each in study.diagnostics)
    said = "".join(f"<p class='lead'>{_typeset(sentence)}</p>" for sentence in lead(study, held))
    again = (
        f"<p>The same numbers again, to the last bit:</p><pre tabindex='0'>{escape(command)}</pre>" if command else ""
    )
    style = files("scaling").joinpath("report.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{style}</style></head><body><main>
<h1>{escape(title)}</h1>
{said}
<div class="cards">{_cards(study, held)}</div>
<h2>Can it be trusted?</h2><ul class="findings">{findings}</ul>
<h2>Figures</h2>{_figures(study, held)}
<h2>Three approaches side by side</h2>{_approaches(study, held)}
<h2>The laws</h2>{_parameters(study)}
<h2>Runs</h2>{_runs(study, held)}
<h2>How this was made</h2>
<p>{escape(str(study.convention))}; D counts training tokens, repeats included; loss is held-out cross-entropy,
nats per token. Compute follows {_typeset(str(study.cost))}, read off the runs. Approaches after Hoffmann et al. 2022,
arXiv:2203.15556, section 3; laws of one variable after Kaplan et al. 2020, arXiv:2001.08361. Every bootstrap drew
{study.resamples} resamples with seed {study.seed}. An interval holds the uncertainty of the parameters and, for a
new run, its noise; it does not know of ways in which the law itself may stop holding.</p>
{again}
</main></body></html>
"""


def write(study: Study, path: str | Path, held_out=None, *, title: str = "Scaling report", command: str = "") -> Path:
    """Write the report; whole or not at all.

    Args:
        study: what to report.
        path: the .html file; its folder is made.
        held_out: a `HeldOut`, a mapping of its fields, or several.
        title: heading of the page.
        command: the command line that makes these numbers again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(html(study, held_out, title=title, command=command), encoding="utf-8")
    os.replace(partial, path)
    return path
