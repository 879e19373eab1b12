"""Devices side by side: the latency of the same files under the same conditions, and what keeps other runs apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgepack.model.scheme import Format
from edgepack.report.compare import CompareRow, DeviceKey, Ratio, device_key, device_names
from edgepack.report.report import Block, Column, Figure, Line, Paragraph, Table, hidden

MISSING = "none"


@dataclass(frozen=True)
class DeviceFigure:
    """Latency of one file on one device, and its ratio to the dense int8 file there; None for that file itself."""

    latency_p50_s: float
    latency_low_s: float | None
    latency_high_s: float | None
    vs_int8: Ratio | None


@dataclass(frozen=True)
class DeviceLine:
    """One file: a figure per device, in the order of the table's devices; None where it was not measured."""

    format: Format
    variant: str
    figures: tuple[DeviceFigure | None, ...]


@dataclass(frozen=True)
class DeviceTable:
    """One model on several devices. `conditions` holds what is alike, by format."""

    model: str
    devices: tuple[str, ...]
    lines: tuple[DeviceLine, ...]
    conditions: Mapping[Format, Mapping[str, str]]


@dataclass(frozen=True)
class SideBySide:
    """Every model that was measured on several devices, and a sentence for all runs that may not stand together."""

    tables: tuple[DeviceTable, ...]
    apart: tuple[str, ...]


@dataclass(frozen=True)
class _Run:
    """The rows of one session in one format."""

    device: DeviceKey
    name: str
    rows: tuple[CompareRow, ...]

    @property
    def conditions(self) -> Mapping[str, str]:
        return self.rows[0].conditions


def side_by_side(rows: Sequence[CompareRow]) -> SideBySide:
    """Groups the runs of every model by their conditions: only like ones share a table.

    Args:
        rows: of any sessions; those of a model with one device only are left out.
    """
    names = device_names(rows)
    tables: list[DeviceTable] = []
    apart: dict[str, None] = {}
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        if len({device_key(row) for row in own}) < 2:
            continue
        groups = {fmt: _groups(_runs(own, fmt, names)) for fmt in dict.fromkeys(row.format for row in own)}
        tables += _tables(model, groups)
        apart.update(dict.fromkeys(_apart(model, groups)))
    return SideBySide(tuple(tables), tuple(apart))


def _runs(rows: Sequence[CompareRow], fmt: Format, names: Mapping[DeviceKey, str]) -> list[_Run]:
    sessions: dict[tuple[object, ...], list[CompareRow]] = {}
    for row in rows:
        if row.format == fmt:
            key = (device_key(row), row.session, row.target, tuple(row.conditions.items()))
            sessions.setdefault(key, []).append(row)
    return [_Run(device_key(own[0]), names[device_key(own[0])], tuple(own)) for own in sessions.values()]


def _groups(runs: Sequence[_Run]) -> list[list[_Run]]:
    """Runs of like conditions, in their order; of several on one device the latest stands."""
    groups: list[list[_Run]] = []
    for run in runs:
        group = next((group for group in groups if group[0].conditions == run.conditions), None)
        if group is None:
            groups.append([run])
            continue
        same = next((n for n, other in enumerate(group) if other.device == run.device), None)
        if same is None:
            group.append(run)
        elif group[same].rows[0].session < run.rows[0].session:
            group[same] = run
    return groups


def _tables(model: str, groups: Mapping[Format, Sequence[Sequence[_Run]]]) -> list[DeviceTable]:
    """A table for every set of devices; formats that were measured on the same ones share it."""
    found: dict[tuple[tuple[str, ...], int], DeviceTable] = {}
    for fmt, own in groups.items():
        seen: dict[tuple[str, ...], int] = {}
        for group in (group for group in own if len(group) > 1):
            devices = tuple(run.name for run in group)
            key = devices, seen.setdefault(devices, 0)
            seen[devices] += 1
            old = found.get(key, DeviceTable(model, devices, (), {}))
            lines = (*old.lines, *_lines(fmt, group))
            found[key] = DeviceTable(model, devices, lines, {**old.conditions, fmt: group[0].conditions})
    return list(found.values())


def _lines(fmt: Format, group: Sequence[_Run]) -> list[DeviceLine]:
    by_device = [{row.variant: row for row in run.rows} for run in group]
    variants = dict.fromkeys(row.variant for run in group for row in run.rows)
    return [DeviceLine(fmt, name, tuple(_figure(found.get(name)) for found in by_device)) for name in variants]


def _figure(row: CompareRow | None) -> DeviceFigure | None:
    if row is None:
        return None
    return DeviceFigure(row.latency_p50_s, row.latency_low_s, row.latency_high_s, row.vs_int8)


def _apart(model: str, groups: Mapping[Format, Sequence[Sequence[_Run]]]) -> list[str]:
    """A sentence for every group but the first, on what parts it from the earlier one that it is nearest to."""
    found: dict[str, list[Format]] = {}
    for fmt, own in groups.items():
        for number, group in enumerate(own[1:], 1):
            nearest = min(own[:number], key=lambda other: len(_differing(other[0], group[0])))
            one, other = _pair(nearest, group)
            differing = " and ".join(_differing(one, other))
            runs = f"two runs on {one.name}" if one.name == other.name else f"{one.name} and {other.name}"
            found.setdefault(f"{runs} differ in {differing}", []).append(fmt)
    every = len(groups)
    return [
        f"not beside each other: {text}" + ("" if len(formats) == every else f" ({model}, {', '.join(formats)})")
        for text, formats in found.items()
    ]


def _pair(nearest: Sequence[_Run], group: Sequence[_Run]) -> tuple[_Run, _Run]:
    """A run of each, on different devices where there are such."""
    pairs = [(one, other) for one in nearest for other in group]
    return next(((one, other) for one, other in pairs if one.device != other.device), pairs[0])


def _differing(one: _Run, other: _Run) -> list[str]:
    """`threads (1, 4)` … in the order of the conditions."""
    names = dict.fromkeys([*one.conditions, *other.conditions])
    values = [(name, one.conditions.get(name, MISSING), other.conditions.get(name, MISSING)) for name in names]
    return [f"{name} ({first}, {second})" for name, first, second in values if first != second]


def device_blocks(found: SideBySide) -> tuple[Block, ...]:
    """For people p50 on every device and the ratio to dense int8 there, a table for each set of devices; for data a row
    for each file on a device. Below, why other runs do not stand there."""
    blocks: list[Block] = [_shown(one) for one in found.tables]
    if found.tables:
        blocks.append(Table(_OF_DEVICES, tuple(_rows(found)), only="data", name="devices"))
    if found.apart:
        blocks += [Paragraph(line, note=True) for line in found.apart]
        lines = tuple((line,) for line in found.apart)
        blocks.append(Table((Column("not_beside_each_other"),), lines, only="data", name="not beside each other"))
    return tuple(blocks)


def _shown(one: DeviceTable) -> Table:
    first = next(iter(one.conditions.values()))
    alike = [f"{value} thread{'s' * (value != '1')}" for name, value in first.items() if name == "threads"]
    alike += [f"{value} schedule" for name, value in first.items() if name == "schedule"]
    title = ", ".join([f"{one.model}: p50 on each device, and against dense int8 there", *alike])
    devices = tuple(Column(name, name, "figures") for name in one.devices)
    columns = (Column("format", "format"), Column("variant", "variant"), *devices)
    rows = tuple((line.format, line.variant, *map(_cell, line.figures)) for line in one.lines)
    return Table(columns, rows, title, only="people")


def _cell(figure: DeviceFigure | None) -> Line | None:
    if figure is None:
        return None
    latency = Figure(figure.latency_p50_s, "seconds")
    return (latency,) if figure.vs_int8 is None else (latency, " (", Figure(figure.vs_int8, "ratio"), ")")


_OF_DEVICES = (
    hidden("table", "integer"),
    *(hidden(key) for key in ("model", "format", "variant", "device")),
    *(hidden(key, "seconds") for key in ("latency_p50_s", "latency_low_s", "latency_high_s")),
    Column("vs_int8", unit="ratio", parts=tuple(f"vs_int8_{part}" for part in ("speedup", "low", "high", "verdict"))),
)


def _rows(found: SideBySide) -> Iterator[tuple[object, ...]]:
    for number, table in enumerate(found.tables, 1):
        for line in table.lines:
            for device, figure in zip(table.devices, line.figures, strict=True):
                if figure is not None:
                    ratio = figure.vs_int8
                    against = None if ratio is None else (ratio.speedup, ratio.low, ratio.high, ratio.verdict)
                    times = (figure.latency_p50_s, figure.latency_low_s, figure.latency_high_s)
                    yield (number, table.model, line.format, line.variant, device, *times, against)
