"""A comparison as CSV: one line per row, full precision, SI units in the names."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import fields

from edgepack.report.compare import CompareRow, Ratio

# A spreadsheet takes a text cell that starts so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_RATIOS = ("vs_fp32", "vs_int8")


def render_csv(rows: Sequence[CompareRow]) -> str:
    """A header and a line per row. Unknown figures are empty cells, notes are joined by `; `.

    Text that a spreadsheet would take for a formula gets a leading apostrophe.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_header())
    for row in rows:
        writer.writerow([_safe(cell) for cell in _cells(row)])
    return buffer.getvalue()


def _header() -> list[str]:
    names: list[str] = []
    for field in fields(CompareRow):
        if field.name in _RATIOS:
            names += [f"{field.name}_{part.name}" for part in fields(Ratio)]
        else:
            names.append(field.name)
    return names


def _cells(row: CompareRow) -> list[object]:
    cells: list[object] = []
    for field in fields(CompareRow):
        value = getattr(row, field.name)
        if field.name in _RATIOS:
            cells += [getattr(value, part.name) if value is not None else None for part in fields(Ratio)]
        else:
            cells.append("; ".join(value) if field.name == "notes" else value)
    return cells


def _safe(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
