"""A comparison for the terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from edgepack.report.cells import NONE, Table, table
from edgepack.report.compare import CompareRow
from edgepack.report.devices import device_tables, side_by_side
from edgepack.report.emulated import EmulatedRow
from edgepack.report.emulated_cells import emulated_table, layer_tables
from edgepack.report.tables import plain_table

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

LEAD = 3  # columns that name a group of rows: model, target, format
_STYLES = {"faster": "green", "fewer": "green", "slower": "red", "more": "red"}


def render_terminal(rows: Sequence[CompareRow], emulated: Sequence[EmulatedRow] = ()) -> Group:
    """A rich renderable: one table, its notes below; a line names model, target and format before their variants.

    A column in which no row has a figure is left out; the notes say why it is missing. On a narrow terminal cells
    wrap between words. Devices stand side by side in a table of their own below; then come the emulated rows, and
    their layers.
    """
    from rich.console import Group
    from rich.text import Text

    parts = _grouped(table(rows)) if rows or not emulated else []
    beside = side_by_side(rows)
    for devices in device_tables(beside):
        cells = devices.table
        parts += [Text(f"\n{devices.title}"), plain_table(cells.headers, cells.lines, right=cells.right)]
    parts += [Text(line, style="dim") for line in beside.apart]
    if emulated:
        parts += _grouped(emulated_table(emulated))
    for layers in layer_tables(emulated):
        cells = layers.table
        parts += [Text(f"\n{layers.title}"), plain_table(cells.headers, cells.lines, right=cells.right)]
    return Group(*parts)


def _grouped(full: Table) -> list[RichTable | Text]:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    cells = _without_empty_columns(full)
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    names = 2 + max((len(line[LEAD]) for line in cells.lines), default=0)
    for header in cells.headers[LEAD:]:
        justify: Literal["left", "right"] = "right" if header in cells.right else "left"
        shown.add_column(header, justify=justify, overflow="fold", min_width=names if header == "variant" else None)
    previous: tuple[str, ...] = ()
    for line in cells.lines:
        if line[:LEAD] != previous:
            if previous:
                shown.add_section()
            previous = line[:LEAD]
            # Text, not markup: names come from files and may hold square brackets.
            shown.add_row(Text(f"{previous[0]}, {previous[1]}, {previous[2]}", style="bold"))
        variant, *figures = line[LEAD:]
        shown.add_row(Text(f"  {variant}"), *(Text(cell, style=_style(cell)) for cell in figures))
    return [shown, *(Text(note, style="dim") for note in cells.notes)]


def _style(cell: str) -> str:
    return next((_STYLES[word] for word in cell.split() if word in _STYLES), "")


def render_text(rows: Sequence[CompareRow], width: int = 160, emulated: Sequence[EmulatedRow] = ()) -> str:
    """The same as plain text without colours, `width` characters wide at most."""
    from rich.console import Console

    buffer = io.StringIO()
    console = Console(file=buffer, width=width, color_system=None, force_terminal=False)
    console.print(render_terminal(rows, emulated))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _without_empty_columns(cells: Table) -> Table:
    kept = [
        index
        for index in range(len(cells.headers))
        if index <= LEAD or any(line[index] not in (NONE, "unavailable") for line in cells.lines)
    ]
    return Table(
        tuple(cells.headers[index] for index in kept),
        tuple(tuple(line[index] for index in kept) for line in cells.lines),
        cells.notes,
        cells.right,
    )
