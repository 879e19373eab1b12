"""A report for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from edgepack.report.render.cells import cell_text, cell_texts, line_text, words
from edgepack.report.report import Block, Chart, Paragraph, Report, Table

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table as RichTable

BARS = "▁▂▃▄▅▆▇█"
_STYLES = {"faster": "green", "fewer": "green", "slower": "red", "more": "red"}


def render(report: Report) -> Group:
    """A rich renderable. On a narrow terminal cells wrap between words.

    A table whose rows are grouped names each group in a line of its own before its rows, and lacks the columns in which
    no row has a figure; its notes say why.
    """
    from rich.console import Group
    from rich.text import Text

    # Text, not markup: names come from files and may hold square brackets.
    parts: list[Any] = [Text(line_text(line)) for line in report.title]
    for block in report.blocks:
        parts += _parts(block)
    return Group(*parts, *(Text(f"warning: {warning}", style="yellow") for warning in report.warnings))


def _parts(block: Block) -> list[Any]:
    from rich.text import Text

    if isinstance(block, Paragraph):
        return [Text(line_text(block.line), style="dim" if block.note else "")]
    if isinstance(block, Chart):
        return [Text(f"  {block.title:<16} {chart_text(block)}")]
    if block.only == "data":
        return []
    table = block.shown_to("people")
    title = line_text(table.title)
    return [
        *([Text(f"\n{title}")] if title else []),
        _grouped(table) if table.lead else _plain(table),
        *(Text(line_text(note), style="dim") for note in table.notes),
    ]


def _plain(table: Table) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        shown.add_column(column.header, justify="right" if column.right else "left", overflow="fold")
    for row in cell_texts(table):
        shown.add_row(*(Text(cell) for cell in row))
    return shown


def _grouped(full: Table) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    table, lead = _without_empty_columns(full), full.lead
    rows = cell_texts(table)
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    names = 2 + max((len(row[lead]) for row in rows), default=0)
    for number, column in enumerate(table.columns[lead:]):
        justify: Literal["left", "right"] = "right" if column.right else "left"
        shown.add_column(column.header, justify=justify, overflow="fold", min_width=None if number else names)
    previous: tuple[str, ...] = ()
    for row in rows:
        if row[:lead] != previous:
            if previous:
                shown.add_section()
            previous = row[:lead]
            shown.add_row(Text(", ".join(previous), style="bold"))
        name, *figures = row[lead:]
        shown.add_row(Text(f"  {name}"), *(Text(cell, style=_style(cell)) for cell in figures))
    return shown


def _without_empty_columns(table: Table) -> Table:
    return table.with_columns(
        [
            index
            for index, column in enumerate(table.columns)
            if index <= table.lead or any(cell_text(row[index], column) != column.missing for row in table.rows)
        ]
    )


def _style(cell: str) -> str:
    return next((_STYLES[word] for word in cell.split() if word in _STYLES), "")


def chart_text(chart: Chart) -> str:
    """A curve as a line of bars, and from where to where it goes."""
    low, high = (words(end(chart.x.values), chart.x.unit) for end in (min, max))
    return f"{sparkline(chart.y.values)} {low} to {high}"


def sparkline(values: Sequence[float]) -> str:
    """A bar per positive value, on a logarithmic scale from the least to the greatest."""
    logs = [math.log(value) for value in values]
    low, span = min(logs), max(logs) - min(logs)
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] if span else BARS[0] for value in logs)
