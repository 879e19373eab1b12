"""Figures as the cells of a table for people: short, with a unit, the same in every rendering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgepack.report.compare import CompareRow, Ratio

NONE = "–"
HEADERS = (
    "model",
    "target",
    "format",
    "variant",
    "size",
    "p50",
    "p90",
    "cold",
    "memory",
    "misses",
    "accuracy",
    "drop",
    "vs fp32",
    "vs int8",
)
RIGHT_ALIGNED = HEADERS[4:12]


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
    """All rows as text. Every note stands once; one that holds for some rows only names their model and target."""
    return Table(HEADERS, tuple(_line(row) for row in rows), tuple(_notes(rows)), RIGHT_ALIGNED)


def _line(row: CompareRow) -> tuple[str, ...]:
    threads = f" ({row.threads} threads)" if row.threads > 1 else ""
    return (
        row.model,
        row.target + threads + ("" if row.native else " *"),
        row.format,
        row.variant,
        size(row.size_bytes),
        seconds(row.latency_p50_s),
        seconds(row.latency_p90_s),
        NONE if row.cold_p50_s is None else seconds(row.cold_p50_s),
        NONE if row.resident_bytes is None else size(row.resident_bytes),
        "unavailable" if row.cache_misses is None else count(row.cache_misses),
        NONE if row.metric is None else f"{row.metric:.2f}",
        NONE if row.drop is None else f"{round(row.drop, 2) + 0.0:.2f}",
        ratio(row.vs_fp32),
        ratio(row.vs_int8),
    )


def _notes(rows: Sequence[CompareRow]) -> list[str]:
    """Notes in the order of the rows; the name of a pack is put before a note where there are several packs."""
    packs = {(row.model, row.target, row.device) for row in rows}
    found: dict[str, None] = {}
    for row in rows:
        own = list(row.notes)
        if row.cache_misses is None and row.cache_misses_note:
            own.append(f"cache misses unavailable: {row.cache_misses_note}")
        for note in own:
            marked = f"* {note}" if note.startswith("measured on") else note
            found[f"{row.model} for {row.target}: {marked}" if len(packs) > 1 else marked] = None
    names = {row.metric_name for row in rows if row.metric_name}
    return [*found, *(f"accuracy is {name}" for name in sorted(names - {"accuracy"}))]


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
