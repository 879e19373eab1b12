"""Figures as the cells of a table for people: short, with a unit, the same in every rendering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgepack.report.compare import CompareRow, Ratio

NONE = "–"
LOCAL = "local"
HEADERS = (
    "model",
    "target",
    "format",
    "variant",
    "size",
    "p50",
    "p90",
    "cold",
    "sustained",
    "memory",
    "misses",
    "accuracy",
    "drop",
    "vs fp32",
    "vs int8",
)
RIGHT_ALIGNED = HEADERS[4:13]
SUSTAINED = HEADERS.index("sustained")


@dataclass(frozen=True)
class Table:
    """Headers, lines of cells, and the notes below: `lines[i]` has as many cells as `headers`.

    Attributes:
        right: headers of the columns of figures.
    """

    headers: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    right: tuple[str, ...]


def table(rows: Sequence[CompareRow]) -> Table:
    """All rows as text. Every note stands once; one that holds for some rows only names their model and target.

    Sustained latency has a column where it was measured. Several devices are told apart by their names.
    """
    names = device_names(rows)
    wanted = [n for n in range(len(HEADERS)) if n != SUSTAINED or any(row.sustained_last_s for row in rows)]
    lines = [_line(row, names[device_key(row)] if len(names) > 1 else "") for row in rows]
    return Table(
        tuple(HEADERS[n] for n in wanted),
        tuple(tuple(line[n] for n in wanted) for line in lines),
        tuple(_notes(rows, names)),
        RIGHT_ALIGNED,
    )


def device_key(row: CompareRow) -> tuple[str, str, str]:
    """What tells a device, or a cluster of it, from others."""
    return row.reached, row.device_id, row.cluster or ""


def device_names(rows: Sequence[CompareRow]) -> dict[tuple[str, str, str], str]:
    """A short name for every device in the rows: how it was reached, and more only where that is not enough."""
    keys = list(dict.fromkeys(map(device_key, rows)))
    titles = {device_key(row): row.device for row in rows}
    names = {key: titles[key] if key[0] == LOCAL else key[0] for key in keys}
    for part in (2, 1):
        shared = {name for name in names.values() if list(names.values()).count(name) > 1}
        names = {key: f"{name} {key[part]}".strip() if name in shared else name for key, name in names.items()}
    return names


def _line(row: CompareRow, device: str) -> tuple[str, ...]:
    threads = f" ({row.threads} threads)" if row.threads > 1 else ""
    return (
        row.model,
        row.target + (f" on {device}" if device else "") + threads + ("" if row.native else " *"),
        row.format,
        row.variant,
        size(row.size_bytes),
        seconds(row.latency_p50_s),
        seconds(row.latency_p90_s),
        NONE if row.cold_p50_s is None else seconds(row.cold_p50_s),
        _sustained(row),
        NONE if row.resident_bytes is None else size(row.resident_bytes),
        "unavailable" if row.cache_misses is None else count(row.cache_misses),
        NONE if row.metric is None else f"{row.metric:.2f}",
        NONE if row.drop is None else f"{round(row.drop, 2) + 0.0:.2f}",
        ratio(row.vs_fp32),
        ratio(row.vs_int8),
    )


def _sustained(row: CompareRow) -> str:
    if row.sustained_first_s is None or row.sustained_last_s is None:
        return NONE
    heat = "" if row.sustained_end_c is None else f" at {row.sustained_end_c:.0f} °C"
    return f"{seconds(row.sustained_first_s)} → {seconds(row.sustained_last_s)}{heat}"


def _notes(rows: Sequence[CompareRow], names: Mapping[tuple[str, str, str], str]) -> list[str]:
    """Notes in the order of the rows; the name of a pack is put before a note where there are several packs."""
    packs = {(row.model, row.target, device_key(row)) for row in rows}
    found: dict[str, None] = {}
    for row in rows:
        own = list(row.notes)
        if row.cache_misses is None and row.cache_misses_note:
            own.append(f"cache misses unavailable: {row.cache_misses_note}")
        for note in own:
            marked = f"* {note}" if note.startswith("measured on") else note
            where = f"{row.target} on {names[device_key(row)]}" if len(names) > 1 else row.target
            found[f"{row.model} for {where}: {marked}" if len(packs) > 1 else marked] = None
    metrics = {row.metric_name for row in rows if row.metric_name}
    return [*found, *(f"accuracy is {name}" for name in sorted(metrics - {"accuracy"}))]


def ratio(value: Ratio | None) -> str:
    """`12.1× faster`; where the test saw none, "no difference"."""
    if value is None:
        return NONE
    if value.verdict == "no difference":
        return value.verdict
    times = value.speedup if value.verdict == "faster" else 1.0 / value.speedup
    return f"{times:.2f}× {value.verdict}" if times < 10 else f"{times:.1f}× {value.verdict}"


def size(value: int) -> str:
    """Bytes in powers of 1000: `812 B`, `64.2 kB`, `1.63 MB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= 0.9995 * scale:
            return f"{three(value / scale)} {unit}"
    return f"{value} B"


def seconds(value: float) -> str:
    """`48.2 µs`, `1.24 ms`, `2.10 s`."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= 0.9995 * scale:
            return f"{three(value / scale)} {unit}"
    return f"{three(value / 1e-9)} ns"


def count(value: float) -> str:
    """`812`, `12.3 k`, `1.05 M`."""
    for unit, scale in ((" M", 1e6), (" k", 1e3)):
        if value >= 0.9995 * scale:
            return three(value / scale) + unit
    return f"{value:.0f}"


def three(value: float) -> str:
    """Three significant digits without an exponent."""
    magnitude = abs(value)
    if magnitude >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if magnitude >= 9.995 else f"{value:.2f}"
