"""The rows of a comparison: what a bench measured joined with what the pack's manifest says of accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepack.benchmark.stats import Comparison
from edgepack.benchmark.summary import VariantSummary
from edgepack.model.scheme import Format
from edgepack.pack.facts import PackFacts
from edgepack.report.report import Column, Field, Table, hidden, make_table
from edgepack.report.scores import score_header, score_notes, shown_score

LOCAL = "local"


@dataclass(frozen=True)
class Ratio:
    """A variant against one dense baseline of the same format, device and session.

    Attributes:
        speedup: baseline latency / own latency; above 1 is faster. `low`, `high`: its 95 % interval.
        verdict: "faster", "slower" or "no difference", from a test and not from the ratio.
        shrink: baseline file size / own file size; above 1 is smaller.
    """

    speedup: float
    low: float | None
    high: float | None
    verdict: str
    shrink: float | None


@dataclass(frozen=True)
class CompareRow:
    """One model × target × format × variant. None: not measured, or not known.

    Attributes:
        reached: how the device was: "local", "pi@raspberrypi.local" …; `device_id` tells its hardware from others.
        session: when it was measured; rows of one session share it.
        tool: what measured; `governor` and `cluster`: of the CPUs that it ran on.
        variant: "edgepack", "dense-fp32" or "dense-int8".
        scheme: how the layers are written in the file.
        sustained_first_s, sustained_last_s: medians of the first and of the last fifth of a long run, and the
            temperature after it.
        cache_misses: lines from memory per inference; None with `cache_misses_note` saying why.
        metric: on the samples that the pack says, in its own unit; `drop` is dense fp32's metric less this one's.
        conditions: all that must be alike before two devices may stand beside each other.
        methods: how each figure was got.
    """

    model: str
    target: str
    device: str
    reached: str
    device_id: str
    session: str
    tool: str
    governor: str
    cluster: str | None
    native: bool
    threads: int
    quick: bool
    format: Format
    variant: str
    scheme: str | None
    size_bytes: int
    latency_p50_s: float
    latency_low_s: float | None
    latency_high_s: float | None
    latency_p90_s: float
    cold_p50_s: float | None
    sustained_first_s: float | None
    sustained_last_s: float | None
    sustained_end_c: float | None
    load_s: float
    resident_bytes: int | None
    peak_bytes: int | None
    cache_misses: float | None
    cache_misses_note: str | None
    metric_name: str | None
    metric: float | None
    drop: float | None
    vs_fp32: Ratio | None
    vs_int8: Ratio | None
    notes: tuple[str, ...]
    conditions: Mapping[str, str]
    methods: Mapping[str, str]


def compare_rows(measured: Sequence[VariantSummary], facts: PackFacts | None = None) -> list[CompareRow]:
    """Rows of one session, in the order they were measured.

    Args:
        measured: every variant of one session.
        facts: of the pack; what it lacks is None in the rows.
    """
    sizes = {(one.format, one.variant): one.size_bytes for one in measured}
    return [_row(one, sizes, facts or PackFacts(Path())) for one in measured]


def _row(one: VariantSummary, sizes: Mapping[tuple[Format, str], int], facts: PackFacts) -> CompareRow:
    file = facts.file(one.variant, one.format)
    return CompareRow(
        model=one.model,
        target=one.target,
        device=one.device,
        reached=one.reached,
        device_id=one.device_id,
        session=one.session,
        tool=one.tool,
        governor=one.governor,
        cluster=one.cluster,
        native=one.native,
        threads=one.threads,
        quick=one.quick,
        format=one.format,
        variant=one.variant,
        scheme=file.scheme,
        size_bytes=one.size_bytes,
        latency_p50_s=one.warm.median,
        latency_low_s=one.warm.low,
        latency_high_s=one.warm.high,
        latency_p90_s=one.warm.p90,
        cold_p50_s=one.cold.median if one.cold is not None else None,
        sustained_first_s=one.sustained.first if one.sustained is not None else None,
        sustained_last_s=one.sustained.last if one.sustained is not None else None,
        sustained_end_c=one.sustained.temperature_c[1] if one.sustained is not None else None,
        load_s=sum(one.load_s.values()),
        resident_bytes=one.resident_bytes,
        peak_bytes=one.peak_bytes,
        cache_misses=one.cache_misses,
        cache_misses_note=one.cache_misses_note,
        metric_name=facts.metric,
        metric=file.metric,
        drop=file.drop,
        vs_fp32=_ratio(one, one.vs_fp32, sizes.get((one.format, "dense-fp32"))),
        vs_int8=_ratio(one, one.vs_int8, sizes.get((one.format, "dense-int8"))),
        notes=tuple(one.notes),
        conditions=dict(one.conditions),
        methods=dict(one.methods),
    )


def _ratio(one: VariantSummary, against: Comparison | None, baseline_bytes: int | None) -> Ratio | None:
    if against is None:
        return None
    shrink = baseline_bytes / one.size_bytes if baseline_bytes and one.size_bytes else None
    return Ratio(against.speedup, against.low, against.high, against.verdict, shrink)


DeviceKey = tuple[str, str, str]


def device_key(row: CompareRow) -> DeviceKey:
    """What tells a device, or a cluster of it, from others."""
    return row.reached, row.device_id, row.cluster or ""


def device_names(rows: Sequence[CompareRow]) -> dict[DeviceKey, str]:
    """A short name for every device in the rows: how it was reached, and more only where that is not enough."""
    keys = list(dict.fromkeys(map(device_key, rows)))
    titles = {device_key(row): row.device for row in rows}
    names = {key: titles[key] if key[0] == LOCAL else key[0] for key in keys}
    for part in (2, 1):
        shared = {name for name in names.values() if list(names.values()).count(name) > 1}
        names = {key: f"{name} {key[part]}".strip() if name in shared else name for key, name in names.items()}
    return names


def measured_table(rows: Sequence[CompareRow]) -> Table:
    """A row per measured file. Every note stands once; one that holds for some rows only names their model and target.

    Sustained latency has a column where it was measured. Several devices are told apart by their names.
    """
    names = device_names(rows)
    metric = score_header(row.metric_name for row in rows)
    return make_table(_fields(names, metric), rows, notes=tuple(_notes(rows, names)), lead=3, name="measured")


def _fields(names: Mapping[DeviceKey, str], metric: str) -> tuple[Field[CompareRow], ...]:
    def place(row: CompareRow) -> str:
        device = f" on {names[device_key(row)]}" if len(names) > 1 else ""
        threads = f" ({row.threads} threads)" if row.threads > 1 else ""
        return f"{row.target}{device}{threads}{'' if row.native else ' *'}"

    return (
        Field(Column("model", "model")),
        Field(hidden("target")),
        Field(Column("place", "target", only="people"), place),
        *(Field[CompareRow](hidden(key)) for key in ("device", "reached", "device_id", "session", "tool", "governor")),
        *(Field[CompareRow](hidden(key)) for key in ("cluster", "native")),
        Field(hidden("threads", "integer")),
        Field(hidden("quick")),
        Field(Column("format", "format")),
        Field(Column("variant", "variant")),
        Field(hidden("scheme")),
        Field(Column("size_bytes", "size", "bytes")),
        Field(Column("latency_p50_s", "p50", "seconds")),
        Field(hidden("latency_low_s", "seconds")),
        Field(hidden("latency_high_s", "seconds")),
        Field(Column("latency_p90_s", "p90", "seconds")),
        Field(Column("cold_p50_s", "cold", "seconds")),
        Field(
            Column(
                "sustained",
                "sustained",
                "drift",
                optional=True,
                parts=("sustained_first_s", "sustained_last_s", "sustained_end_c"),
            ),
            _sustained,
        ),
        Field(hidden("load_s", "seconds")),
        Field(Column("resident_bytes", "memory", "bytes")),
        Field(hidden("peak_bytes", "bytes")),
        Field(Column("cache_misses", "misses", "count", missing="unavailable")),
        Field(hidden("cache_misses_note")),
        Field(hidden("metric_name")),
        Field(Column("metric", metric, "score"), lambda row: shown_score(row.metric_name, row.metric)),
        Field(Column("drop", "drop", "score")),
        *(Field[CompareRow](_against(key, header)) for key, header in (("vs_fp32", "vs fp32"), ("vs_int8", "vs int8"))),
        Field(hidden("notes", "list")),
    )


def _sustained(row: CompareRow) -> tuple[float, float, float | None] | None:
    if row.sustained_first_s is None or row.sustained_last_s is None:
        return None
    return row.sustained_first_s, row.sustained_last_s, row.sustained_end_c


def _against(key: str, header: str) -> Column:
    parts = ("speedup", "low", "high", "verdict", "shrink")
    return Column(key, header, "ratio", parts=tuple(f"{key}_{part}" for part in parts))


def _notes(rows: Sequence[CompareRow], names: Mapping[DeviceKey, str]) -> list[str]:
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
    return [*found, *score_notes((row.model, row.metric_name) for row in rows)]
