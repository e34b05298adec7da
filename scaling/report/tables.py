"""What the report says in words and tables."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from scaling import published
from scaling.approaches.diagnostics import Diagnostic, Severity
from scaling.approaches.held_out import HeldOut
from scaling.approaches.study import Approach, Study
from scaling.certainty.bootstrap import Estimate
from scaling.figures import power_of_ten, short
from scaling.figures.axes import selection

_NOTES = 4  # shown before the rest is folded away


def _range(estimate: Estimate, form: str = ".3f") -> str:
    """A value with its interval, or the value alone when there is no interval."""
    if not np.isfinite([estimate.low, estimate.high]).all():
        return f"{estimate.value:{form}} (no interval)"
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def _count(estimate: Estimate) -> str:
    if not np.isfinite([estimate.low, estimate.high]).all():
        return f"{short(estimate.value)} (no interval)"
    return f"{short(estimate.value)} ({short(estimate.low)} to {short(estimate.high)})"


def findings(study: Study) -> str:
    """The diagnostics of a study as a list, the worrying ones first and many notes folded away."""
    notes = [each for each in study.diagnostics if each.severity is Severity.NOTE]
    folded = notes[_NOTES:] if len(notes) > _NOTES + 1 else []
    shown = _findings(each for each in study.diagnostics if each not in folded)
    more = f"<details><summary>{len(folded)} more notes</summary>{_findings(folded)}</details>" if folded else ""
    return shown + more


def _findings(found: Iterable[Diagnostic]) -> str:
    items = "".join(f"<li class='{each.severity.value}'>{typeset(each.text)}</li>" for each in found)
    return f"<ul class='findings'>{items}</ul>"


def typeset(text: str) -> str:
    """Text as HTML: escaped, with C^0.48 and N_opt raised and lowered."""
    text = re.sub(r"\^(\(.+?\)|-?[\d.]+\d|-?\w+)", r"<sup>\1</sup>", escape(text))
    return re.sub(r"([A-Zα])_(\w+)", r"\1<sub>\2</sub>", text)


def _cell(text: str, *, words: bool) -> str:
    """A table cell; an interval in brackets goes below its value."""
    value, bracket, interval = text.partition(" (")
    if bracket and " to " in interval:
        return f"<td>{typeset(value)}<small>{typeset(interval[:-1])}</small></td>"
    return f"<td class='words'>{typeset(text)}</td>" if words else f"<td>{typeset(text)}</td>"


@dataclass(frozen=True)
class _Row:
    """Cells of a table and what is special about the row."""

    cells: Sequence[str]
    kind: str = ""


def _table(
    caption: str, head: Sequence[str], rows: Iterable[_Row], *, words: Sequence[str] = (), tall: bool = False
) -> str:
    """A table; `words` names the columns that hold text, not numbers."""
    wordy = [name in words for name in head]
    header = "".join(
        f"<th scope='col'{' class=words' if text else ''}>{typeset(name)}</th>"
        for name, text in zip(head, wordy, strict=True)
    )
    body = "".join(
        f"<tr{f' class={row.kind}' if row.kind else ''}>"
        + "".join(_cell(cell, words=text) for cell, text in zip(row.cells, wordy, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f"<p class='soft'>{typeset(caption)}</p>"
        f"<div class='scroll{' tall' if tall else ''}' tabindex='0' role='region' "
        f"aria-label='{escape(caption, quote=True)}'>"
        f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def target(study: Study, held: tuple[HeldOut, ...]) -> float:
    """The budget the report answers for: the held-out run's, or ten times the largest fitted."""
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


def cards(study: Study, held: tuple[HeldOut, ...]) -> str:
    """The numbers people look for first."""
    a, b = study.exponents()[study.choice]
    flops = target(study, held)
    best = study.optimum(flops)
    cards = [
        (f"{a.value:.2f}", f"exponent a of N_opt ~ C^a; 95 % {a.low:.2f} to {a.high:.2f}"),
        (f"{b.value:.2f}", f"exponent b of D_opt ~ C^b; 95 % {b.low:.2f} to {b.high:.2f}"),
        (
            f"{short(best.params.value)} / {short(best.tokens.value)}",
            f"best N / D at {power_of_ten(flops)} FLOPs: {short(best.tokens.value / best.params.value)} a parameter",
        ),
    ]
    if held and held[0].loss is not None:
        text = f"held-out error: predicted {held[0].predicted.value:.3f}, measured {held[0].loss:.3f} nats per token"
        cards.append((f"{held[0].error:+.2%}", text))
    elif best.loss is not None:
        cards.append((f"{best.loss.value:.3f}", f"expected loss there, nats per token; {_range(best.loss)}"))
    return "".join(
        f"<div class='card'><b>{escape(value)}</b><span>{typeset(text)}</span></div>" for value, text in cards
    )


def approaches(study: Study, held: tuple[HeldOut, ...]) -> str:
    """The three approaches side by side, and published exponents below."""
    flops = target(study, held)
    exponents, optima, rows = study.exponents(), study.optima(flops), []
    for approach in Approach:
        if approach in study.missing:
            rows.append(_Row([approach.value, *["—"] * 5]))
            continue
        best = optima[approach]
        cells = [approach.value, *(_range(each, ".2f") for each in exponents[approach])]
        cells += [_count(best.params), _count(best.tokens), _range(best.loss) if best.loss else "—"]
        rows.append(_Row(cells, "chosen" if approach is study.choice else ""))
    head = ("approach", "a", "b", "N_opt", "D_opt", "loss")
    caption = (
        f"Three approaches; N_opt, D_opt and loss at {power_of_ten(flops)} FLOPs. "
        f"Bold: used for predictions, since {study.reason}."
    )
    others = [
        _Row(
            [
                each.name,
                f"{each.a:.2f}" + (f" ({each.low:.3g} to {each.high:.3g})" if each.low else ""),
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
        words=("convention", "source"),
    )


def parameters(study: Study) -> str:
    """Parameters of the fitted laws with their intervals."""
    parts = []
    if study.parametric is not None:
        boot = study.parametric.bootstrap
        rows = []
        for each in boot.fit.law.parameters:
            at = boot.interval(each.name)
            rows.append(_Row([each.name, f"{at.value:.5g}", f"{at.low:.4g} to {at.high:.4g}", each.meaning]))
        caption = f"{boot.fit.law.text}; minimum of {boot.fit.objective}; intervals: {boot.method}"
        parts.append(_table(caption, ("parameter", "value", "95 % interval", "meaning"), rows, words=("meaning",)))
    rows = []
    for each in study.kaplan.values():
        scale, _ = each.law.names
        rows.append(
            _Row([each.law.text, _range(each.alpha), f"{each.parameters[scale]:.3g}", str(each.rows), each.law.source])
        )
    if rows:
        caption = "Kaplan's laws of one variable, through the runs that no run with less of it beats"
        parts.append(_table(caption, ("law", "exponent", "scale", "runs", "source"), rows, words=("source",)))
    return "".join(parts)


def runs(study: Study, held: tuple[HeldOut, ...]) -> str:
    """Every run with what the law says of it; of a large table the rows that the figures show too."""
    view = study.view
    names = view["run"].astype(str) if "run" in view else view.index.astype(str)
    predicted = None
    if study.parametric is not None:
        predicted = study.parametric.bootstrap.fit.predict(
            {name: view[name].to_numpy() for name in ("params", "tokens")}
        )
    rows = []
    drawn = selection(len(view))
    for i in drawn[np.lexsort((view["params"].iloc[drawn], view["flops"].iloc[drawn]))]:
        run = view.iloc[i]
        cells = [str(names[i])[:12], short(run["params"]), short(run["tokens"]), power_of_ten(run["flops"])]
        cells += [short(run["tokens"] / run["params"]), f"{run['loss']:.4f}"]
        if predicted is not None:
            cells += [f"{predicted[i]:.4f}", f"{run['loss'] / predicted[i] - 1:+.2%}"]
        rows.append(_Row(cells))
    for each in held:
        cells = [f"{each.run[:12]} held out".strip(), short(each.params), short(each.tokens), power_of_ten(each.flops)]
        cells += [short(each.tokens / each.params), "—" if each.loss is None else f"{each.loss:.4f}"]
        cells += [f"{each.predicted.value:.4f}", "—" if each.loss is None else f"{each.error:+.2%}"]
        rows.append(_Row(cells[: 8 if predicted is not None else 6], "held"))
    head = ["run", "N", "D", "C", "D / N", "loss"] + (["predicted", "difference"] if predicted is not None else [])
    caption = "Every run, by compute and size" if len(drawn) == len(view) else f"{len(drawn):,} of {len(view):,} runs"
    return _table(caption, head, rows, tall=True)
