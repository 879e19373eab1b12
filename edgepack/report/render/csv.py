"""A report as CSV: its tables with raw values in full precision, SI units in the names of the columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, is_dataclass
from typing import Any

from edgepack.report.render.cells import words
from edgepack.report.report import Chart, Column, Paragraph, Report, Table, Unit

# A spreadsheet takes a text cell that starts so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_SENTENCES: frozenset[Unit] = frozenset(("text", "figures", "list", "clusters"))


def render(report: Report) -> str:
    """A header and a line per row for every table, an empty line between tables. What is not known is an empty cell.

    A table without rows is left out, but for the first where there are no rows at all. Text that a spreadsheet would
    take for a formula gets a leading apostrophe.
    """
    tables = [
        _chart(block) if isinstance(block, Chart) else block.shown_to("data")
        for block in report.blocks
        if not isinstance(block, Paragraph) and (isinstance(block, Chart) or block.only != "people")
    ]
    filled = [table for table in tables if table.rows]
    return "\n".join(_text(_header(table), _lines(table)) for table in filled or tables[:1])


def _chart(chart: Chart) -> Table:
    columns = (Column("of"), Column("chart"), *(Column(axis.key, unit=axis.unit) for axis in (chart.x, chart.y)))
    points = zip(chart.x.values, chart.y.values, strict=True)
    return Table(columns, tuple((chart.of, chart.title, x, y) for x, y in points))


def _header(table: Table) -> list[str]:
    return [name for column in table.columns for name in (column.parts or (column.key,))]


def _lines(table: Table) -> Iterator[list[object]]:
    for row in table.rows:
        yield [cell for value, column in zip(row, table.columns, strict=True) for cell in _cells(value, column)]


def _cells(value: Any, column: Column) -> Sequence[object]:
    if not column.parts:
        return (words(value, column.unit) if column.unit in _SENTENCES and value is not None else value,)
    if value is None:
        return (None,) * len(column.parts)
    if isinstance(value, str):
        return (value, *(None,) * (len(column.parts) - 1))
    parts = astuple(value) if is_dataclass(value) and not isinstance(value, type) else tuple(value)
    if len(parts) != len(column.parts):
        raise ValueError(f"{column.key} has {len(parts)} parts, its column names {len(column.parts)}")
    return parts


def _text(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_safe(cell) for cell in line] for line in lines)
    return buffer.getvalue()


def _safe(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
