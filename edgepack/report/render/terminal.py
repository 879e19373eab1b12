"""A report for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgepack.report.render.cells import cell_text, cell_texts, line_text, words
from edgepack.report.report import Chart, Column, Paragraph, Report, Table, Told

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group, RenderableType
    from rich.table import Table as RichTable

NAME, SENTENCE = 24, 40
"""Widths up to which names stay whole, and beyond which text is a sentence."""
INDENT = EDGES = 2
"""Before names within a group and sentences; on both sides of a table together."""
WIDE, TIGHT = 3, 1
"""Between two columns."""
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
    parts += [Text(f"warning: {warning}", style="yellow") for warning in report.warnings]
    for block in report.for_people:
        parts += _parts(block)
    return Group(*parts)


def _parts(block: Told) -> list[Any]:
    from rich.text import Text

    if isinstance(block, Paragraph):
        return [Text(line_text(block.line), style="dim" if block.note else "")]
    if isinstance(block, Chart):
        return [Text(f"  {block.title:<16} {chart_text(block)}")]
    table = block.shown_to("people")
    title = line_text(table.title)
    return [
        *([Text(f"\n{title}")] if title else []),
        _Fitted(table),
        *(Text(line_text(note), style="dim") for note in table.notes),
    ]


@dataclass(frozen=True)
class _Fitted:
    """A table as wide as there is room: figures and short names stay whole.

    Where it would be wider, its sentences follow below it, each behind the name of its row; then its columns stand
    closer; and what is still too wide goes into further tables below, each with the first column again.
    """

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        grouped = bool(self.table.lead)
        table = _without_empty_columns(self.table) if grouped else self.table
        rows, first, gap = cell_texts(table), table.lead, TIGHT if grouped else WIDE
        cells = [[row[index] for row in rows] for index in range(len(table.columns))]
        least = [_least(own, column) for own, column in zip(cells, table.columns, strict=True)]
        whole = [max(len(column.header), *map(len, own), 0) for own, column in zip(cells, table.columns, strict=True)]
        if grouped:
            heads = max((len(", ".join(row[:first])) for row in rows), default=0)
            least[first] = max(least[first], INDENT + max(map(len, cells[first]), default=0), min(heads, NAME))
            whole[first] = max(least[first], heads)
        shown = range(first, len(least))
        below = [index for index in shown[1:] if _is_sentence(cells[index], table.columns[index])]
        room = options.max_width - EDGES
        if sum(least[index] + gap for index in shown) - gap <= room:
            below = []
        beside = [index for index in shown if index not in below]
        edge, needed = True, sum(least[index] for index in beside)
        if needed + gap * (len(beside) - 1) > room:
            gap = TIGHT
            edge = needed + gap * (len(beside) - 1) <= room
            room = room if edge else options.max_width
        for part in _parts_of(beside, least, room, gap):
            widths = {index: least[index] for index in part}
            spare = room - sum(widths.values()) - gap * (len(part) - 1)
            widths[first] = max(widths[first] + min(spare, 0), 1)
            for index in sorted(part, key=lambda one: _is_sentence(cells[one], table.columns[one])):
                more = max(min(whole[index] - widths[index], spare), 0)
                widths[index], spare = widths[index] + more, spare - more
            part_table = _headed(table, widths, gap=gap, edge=edge)
            yield from ([] if edge else [Text("")])
            (_grouped if grouped else _plain)(part_table, table, rows, widths)
            yield part_table
            yield from ([] if edge else [Text("")])
        for index in below:
            yield from _sentences(rows, first, index, table.columns[index].header)


def _least(cells: Sequence[str], column: Column) -> int:
    """How narrow a column may be: a figure is never wrapped, a header between words, a name or a sentence beyond some
    width."""
    longest = max(map(len, cells), default=0)
    header = max(map(len, column.header.split()), default=0)
    return max(header, longest if column.right else min(longest, SENTENCE if longest > SENTENCE else NAME))


def _is_sentence(cells: Sequence[str], column: Column) -> bool:
    return not column.right and max(map(len, cells), default=0) > SENTENCE


def _parts_of(indices: Sequence[int], least: Sequence[int], room: int, gap: int) -> list[list[int]]:
    """The columns of each table: the first in all of them, and as many others as there is room for, at least one."""
    first, *others = indices
    parts = [[first]]
    for index in others:
        if len(parts[-1]) > 1 and sum(least[one] + gap for one in (*parts[-1], index)) - gap > room:
            parts.append([first])
        parts[-1].append(index)
    return parts


def _sentences(rows: Sequence[tuple[str, ...]], first: int, index: int, header: str) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    yield Text(f"{header}:")
    for row in rows:
        yield Padding(Text(f"{row[first]}: {row[index]}", overflow="fold"), (0, 0, 0, INDENT))


def _headed(table: Table, widths: Mapping[int, int], *, gap: int, edge: bool) -> RichTable:
    """An empty table with the columns of these widths; with an edge, blank lines and columns stand around it."""
    from rich import box
    from rich.table import Table as RichTable

    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, (gap - 1) // 2), show_edge=edge)
    for index, width in widths.items():
        column = table.columns[index]
        justify: Literal["left", "right"] = "right" if column.right else "left"
        shown.add_column(column.header, justify=justify, overflow="fold", width=width)
    return shown


def _plain(shown: RichTable, _: Table, rows: Sequence[tuple[str, ...]], widths: Mapping[int, int]) -> None:
    from rich.text import Text

    for row in rows:
        shown.add_row(*(Text(row[index]) for index in widths))


def _grouped(shown: RichTable, table: Table, rows: Sequence[tuple[str, ...]], widths: Mapping[int, int]) -> None:
    from rich.text import Text

    lead = table.lead
    previous: tuple[str, ...] = ()
    for row in rows:
        if row[:lead] != previous:
            if previous:
                shown.add_section()
            previous = row[:lead]
            shown.add_row(Text(", ".join(previous), style="bold"))
        figures = [row[index] for index in widths if index != lead]
        shown.add_row(Text(f"  {row[lead]}"), *(Text(cell, style=_style(cell)) for cell in figures))


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
    """Its first curve as a line of bars, and from where to where it goes."""
    marks = chart.series[0].marks
    low, high = (words(end(mark.x for mark in marks), chart.x.unit) for end in (min, max))
    return f"{sparkline([mark.y for mark in marks])} {low} to {high}"


def sparkline(values: Sequence[float]) -> str:
    """A bar per positive value, on a logarithmic scale from the least to the greatest."""
    logs = [math.log(value) for value in values]
    low, span = min(logs), max(logs) - min(logs)
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] if span else BARS[0] for value in logs)
