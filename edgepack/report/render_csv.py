"""A comparison as CSV: one line per row, full precision, SI units in the names."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, fields

from edgepack.report.compare import CompareRow, Ratio
from edgepack.report.devices import SideBySide, side_by_side
from edgepack.report.emulated import CountRatio, EmulatedPart, EmulatedRow

# A spreadsheet takes a text cell that starts so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NOT_IN_CELLS = ("parts", "conditions", "methods")
_AGAINST = ("speedup", "low", "high", "verdict")
_OF_DEVICES = ["table", "model", "format", "variant", "device", "latency_p50_s", "latency_low_s", "latency_high_s"]
_OF_DEVICES += [f"vs_int8_{name}" for name in _AGAINST]
_OF_PART = ("model", "target", "threads", "format", "variant", "last_level")


def render_csv(rows: Sequence[CompareRow], emulated: Sequence[EmulatedRow] = ()) -> str:
    """A header and a line per row. Unknown figures are empty cells, notes are joined by `; `.

    Further tables follow, each after an empty line: the devices side by side, a line for a file on a device; why runs
    do not stand there; emulated rows, and the parts of their files. A table without rows is left out, but for the first
    where there are no rows at all. Text that a spreadsheet would take for a formula gets a leading apostrophe.
    """
    tables = [_table(CompareRow, {"vs_fp32": Ratio, "vs_int8": Ratio}, rows)] if rows or not emulated else []
    beside = side_by_side(rows)
    if beside.tables:
        tables.append(_text(_OF_DEVICES, _devices(beside)))
    if beside.apart:
        tables.append(_text(["not_beside_each_other"], [[line] for line in beside.apart]))
    if emulated:
        tables.append(_table(EmulatedRow, {"vs_fp32": CountRatio, "vs_int8": CountRatio}, emulated))
    parts = [[getattr(row, name) for name in _OF_PART] + list(astuple(part)) for row in emulated for part in row.parts]
    if parts:
        tables.append(_text([*_OF_PART, *(field.name for field in fields(EmulatedPart))], parts))
    return "\n".join(tables)


def _devices(beside: SideBySide) -> Iterator[list[object]]:
    for number, table in enumerate(beside.tables, 1):
        for line in table.lines:
            for device, figure in zip(table.devices, line.figures, strict=True):
                if figure is not None:
                    against = [getattr(figure.vs_int8, name, None) for name in _AGAINST]
                    times = [figure.latency_p50_s, figure.latency_low_s, figure.latency_high_s]
                    yield [number, table.model, line.format, line.variant, device, *times, *against]


def _table(kind: type[CompareRow | EmulatedRow], ratios: Mapping[str, type], rows: Sequence[object]) -> str:
    header: list[str] = []
    for name in _columns(kind):
        header += [f"{name}_{part.name}" for part in fields(ratios[name])] if name in ratios else [name]
    return _text(header, [_cells(row, _columns(kind), ratios) for row in rows])


def _columns(kind: type[CompareRow | EmulatedRow]) -> list[str]:
    return [field.name for field in fields(kind) if field.name not in _NOT_IN_CELLS]


def _cells(row: object, columns: Sequence[str], ratios: Mapping[str, type]) -> list[object]:
    cells: list[object] = []
    for name in columns:
        value = getattr(row, name)
        if name in ratios:
            cells += [getattr(value, part.name) if value is not None else None for part in fields(ratios[name])]
        else:
            cells.append("; ".join(value) if isinstance(value, tuple) else value)
    return cells


def _text(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_safe(cell) for cell in line] for line in lines)
    return buffer.getvalue()


def _safe(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
