"""The rows of a comparison: what a bench measured joined with what the pack's manifest says of accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepack.model.scheme import Format
from edgepack.report.measured import Against, Measured


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
        metric: on the guard split, in its own unit; `drop` is dense fp32's metric less this one's.
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


def compare_rows(measured: Sequence[Measured], manifest: Mapping[str, Any] | None = None) -> list[CompareRow]:
    """Rows of one session, in the order they were measured.

    Args:
        measured: every variant of one session.
        manifest: of the pack; what it lacks is None in the rows.
    """
    sizes = {(one.format, one.variant): one.size_bytes for one in measured}
    return [_row(one, sizes, manifest or {}) for one in measured]


def _row(one: Measured, sizes: Mapping[tuple[Format, str], int], manifest: Mapping[str, Any]) -> CompareRow:
    facts = file_facts(manifest, one.variant, one.format)
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
        scheme=facts.scheme,
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
        metric_name=facts.metric_name,
        metric=facts.metric,
        drop=facts.drop,
        vs_fp32=_ratio(one, one.vs_fp32, sizes.get((one.format, "dense-fp32"))),
        vs_int8=_ratio(one, one.vs_int8, sizes.get((one.format, "dense-int8"))),
        notes=tuple(one.notes),
        conditions=dict(one.conditions),
        methods=dict(one.methods),
    )


@dataclass(frozen=True)
class FileFacts:
    """What a manifest says of one model file; None where it does not, or says nonsense."""

    scheme: str | None
    metric_name: str | None
    metric: float | None
    drop: float | None


def file_facts(manifest: Mapping[str, Any], variant: str, fmt: Format) -> FileFacts:
    """Form and accuracy of a variant's file."""
    entry = file_entry(manifest, variant, fmt)
    metric = _number(entry.get("metric"))
    return FileFacts(
        scheme=_text(entry.get("scheme")),
        metric_name=_text(_mapping(manifest.get("metric")).get("name")) or _text(manifest.get("metric")),
        metric=metric,
        drop=_drop(entry, metric, file_entry(manifest, "dense-fp32", fmt)),
    )


def file_ranks(manifest: Mapping[str, Any], variant: str, fmt: Format) -> dict[str, int]:
    """Rank of every factored layer of a variant's file by the layer's name; a dense layer has none."""
    layers = file_entry(manifest, variant, fmt).get("layers")
    ranks = {}
    for layer in map(_mapping, layers if isinstance(layers, list) else ()):
        name, rank = layer.get("layer"), layer.get("rank")
        if isinstance(name, str) and isinstance(rank, int) and not isinstance(rank, bool):
            ranks[name] = rank
    return ranks


def file_entry(manifest: Mapping[str, Any], variant: str, fmt: Format) -> Mapping[str, Any]:
    """What a manifest says of a variant's file; empty where it says nothing."""
    path = f"baseline/{variant.removeprefix('dense-')}.{fmt}" if variant.startswith("dense-") else f"model.{fmt}"
    return _mapping(_mapping(manifest.get("files")).get(path))


def _drop(entry: Mapping[str, Any], metric: float | None, fp32: Mapping[str, Any]) -> float | None:
    written = _number(entry.get("drop"))
    if written is not None:
        return written
    best = _number(fp32.get("metric"))
    return None if metric is None or best is None else best - metric


def _ratio(one: Measured, against: Against | None, baseline_bytes: int | None) -> Ratio | None:
    if against is None:
        return None
    shrink = baseline_bytes / one.size_bytes if baseline_bytes and one.size_bytes else None
    return Ratio(against.speedup, against.low, against.high, against.verdict, shrink)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value and value.isprintable() else None
