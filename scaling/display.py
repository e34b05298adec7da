"""How a result shows itself: the answer first, then what to worry about, small tables, notes.

One `Page` is shown as plain text (`print`), as HTML (a notebook) and through rich (a terminal).
"""

import html
import math
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scaling.estimate import Estimate

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

_WIDTH = 110
_NAME = 28  # characters of a first column that are not folded
_NUMERIC = tuple("0123456789+-−–∞")  # what a cell begins with that is set to the right


@dataclass(frozen=True)
class Section:
    """A small table.

    Attributes:
        title: what it shows.
        header: names of the columns.
        rows: cells as they are shown.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> tuple[bool, ...]:
        """For each column whether it holds words, which are set to the left: the first, and those without a number."""
        return tuple(i == 0 or not any(row[i][:1] in _NUMERIC for row in self.rows) for i in range(len(self.header)))


@dataclass(frozen=True)
class Page:
    """What a result says.

    Attributes:
        answer: one or two sentences.
        warnings: what must be known before acting on it.
        sections: the figures.
        notes: assumptions and provenance.
    """

    answer: str
    warnings: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()
    notes: tuple[str, ...] = ()


class Displayed(ABC):
    """A result that displays itself from its `page`."""

    @abstractmethod
    def page(self) -> Page:
        """What is shown."""

    def __str__(self) -> str:
        page = self.page()
        lines = [textwrap.fill(page.answer, _WIDTH)]
        for mark, sentences in (("▲ ", page.warnings), ("· ", page.notes)):
            if mark == "· ":
                lines += [line for section in page.sections for line in ("", *_text(section))]
                lines += [""] if sentences else []
            lines += [textwrap.fill(mark + each, _WIDTH, subsequent_indent="  ") for each in sentences]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        page = self.page()
        parts = [f"<p><strong>{html.escape(page.answer)}</strong></p>"]
        parts += [f"<p>▲ {html.escape(each)}</p>" for each in page.warnings]
        for section in page.sections:
            head = "".join(f"<th>{html.escape(each)}</th>" for each in section.header)
            rows = "".join(
                "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in section.rows
            )
            caption = f"<caption>{html.escape(section.title)}</caption>"
            parts.append(f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")
        parts += [f"<p><small>{html.escape(each)}</small></p>" for each in page.notes]
        return "".join(parts)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        """For `rich.print` and the command line."""
        from rich.markup import escape
        from rich.table import Table

        page = self.page()
        yield f"[bold]{escape(page.answer)}[/]"
        for each in page.warnings:
            yield f"[bold yellow]▲[/] {escape(each)}"
        for section in page.sections:
            yield f"\n[dim]{escape(section.title)}[/]"
            table = Table(box=None, pad_edge=False, header_style="dim")
            for i, (name, left) in enumerate(zip(section.header, section.text(), strict=True)):
                short = not i and max(len(row[0]) for row in section.rows) <= _NAME  # the name of a row stays whole
                table.add_column(escape(name), justify="left" if left else "right", overflow="fold", no_wrap=short)
            for row in section.rows:
                table.add_row(*(escape(cell) for cell in row))
            yield table
        if page.notes:
            yield ""
        for each in page.notes:
            yield f"[dim]· {escape(each)}[/]"


def _text(section: Section) -> list[str]:
    cells = [section.header, *section.rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(section.header))]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return [section.title, *(line.rstrip() for line in lines)]


def count(value: float) -> str:
    """Three digits and a suffix: 70.2B for parameters or tokens, 5.76e+23 from 1e16 on."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    if value >= 1e16 or value < 1:
        return f"{value:.3g}"
    rounded = float(f"{value:.3g}")
    power = min(4, int(math.log10(rounded) // 3))
    return f"{rounded / 1000**power:.4g}" + ("", "k", "M", "B", "T")[power]


def number(value: float) -> str:
    """Four digits, and a dash for what could not be known."""
    return f"{value:.4g}" if math.isfinite(value) else "–"


def end(value: float) -> str:
    """An end of an interval: infinity is said, since the search for it found none."""
    return number(value) if math.isfinite(value) else ("−∞" if value < 0 else "∞")


def share(value: float) -> str:
    """A relative size in percent with two or three digits."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    size = abs(value)
    digits = 2 if size < 0.0995 else 1 if size < 0.3 else 0
    return f"{value:.{digits}%}" if size < 10 else f"{1 + value:.3g}x"


def interval(estimate: Estimate, show=number) -> str:
    """'70.2B (45B to 98B)', or the value alone where there is no interval."""
    if estimate.low == estimate.high or math.isnan(estimate.low):
        return show(estimate.value)
    return f"{show(estimate.value)} ({show(estimate.low)} to {show(estimate.high)})"


def plain(value):
    """Any result as what JSON holds: estimates as mappings, numbers as Python's own, nan and infinity as null."""
    if isinstance(value, Estimate):
        return plain(value.to_dict())
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value
