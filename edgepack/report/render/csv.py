"""A report as CSV: one table with raw values in full precision, SI units in the names of the columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, is_dataclass
from typing import Any

from edgepack.report.render.cells import words
from edgepack.report.report import Chart, Column, Report, Table, Unit

# A spreadsheet takes a text cell that starts so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_OF = "kind"
_SENTENCES: frozenset[Unit] = frozenset(("text", "figures", "list", "clusters"))


def render(report: Report) -> str:
    """A header and a line per row. What is not known is an empty cell.

    Tables of several kinds become one: with the columns of all of them, and with a first column, `kind`, that says
    which one a row is of. Text that a spreadsheet would take for a formula gets a leading apostrophe.
    """
    tables = [
        _chart(block) if isinstance(block, Chart) else block.shown_to("data")
        for block in report.blocks
        if (isinstance(block, Chart) and not block.drawn) or (isinstance(block, Table) and block.only != "people")
    ]
    filled = [table for table in tables if table.rows] or tables[:1]
    several = len({table.name for table in filled}) > 1
    header = dict.fromkeys([*([_OF] if several else []), *(name for table in filled for name in _header(table))])
    return _text(list(header), (row for table in filled for row in _rows(table)))


def _chart(chart: Chart) -> Table:
    columns = (Column("of"), Column("chart"), *(Column(axis.key, unit=axis.unit) for axis in (chart.x, chart.y)))
    marks = (mark for series in chart.series for mark in series.marks)
    return Table(columns, tuple((chart.of, chart.title, mark.x, mark.y) for mark in marks))


def _header(table: Table) -> list[str]:
    return [name for column in table.columns for name in (column.parts or (column.key,))]


def _rows(table: Table) -> Iterator[Mapping[str, object]]:
    header = _header(table)
    for row in table.rows:
        cells = (cell for value, column in zip(row, table.columns, strict=True) for cell in _cells(value, column))
        yield {_OF: table.name, **dict(zip(header, cells, strict=True))}


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


def _text(header: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_safe(row.get(name)) for name in header] for row in rows)
    return buffer.getvalue()


def _safe(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
