"""A comparison as a markdown table."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgepack.report.cells import Table, table
from edgepack.report.compare import CompareRow
from edgepack.report.devices import device_tables, side_by_side
from edgepack.report.emulated import EmulatedRow
from edgepack.report.emulated_cells import emulated_table, layer_tables

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#])")


def render_markdown(rows: Sequence[CompareRow], emulated: Sequence[EmulatedRow] = ()) -> str:
    """One table with every column of the measured rows, then their notes as a list; likewise the emulated ones below.

    Between them stand the devices side by side, where there are several. Each kind has its table only where it has
    rows. Signs with a meaning in markdown are escaped.
    """
    parts = [_table(table(rows))] if rows or not emulated else []
    beside = side_by_side(rows)
    for devices in device_tables(beside):
        parts.append(f"{_escape(devices.title)}\n\n{_table(devices.table)}")
    if beside.apart:
        parts.append("".join(f"- {_escape(line)}\n" for line in beside.apart))
    if emulated:
        parts.append(_table(emulated_table(emulated)))
    for layers in layer_tables(emulated):
        parts.append(f"{_escape(layers.title)}\n\n{_table(layers.table)}")
    return "\n".join(parts)


def _table(cells: Table) -> str:
    headers = [_escape(header) for header in cells.headers]
    rule = ["---:" if header in cells.right else "---" for header in cells.headers]
    lines = [_line(headers), _line(rule), *(_line([_escape(cell) for cell in line]) for line in cells.lines)]
    if cells.notes:
        lines += ["", *(f"- {_escape(note)}" for note in cells.notes)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)
