"""What a result says about each variant: medians, intervals, memory, counters, the verdict against the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

from edgepack.bench.results import BenchResult, Block, Counter, Snapshot, VariantResult
from edgepack.bench.stats import Comparison, Summary, compare, summarize
from edgepack.types import Format

FP32, INT8 = "dense-fp32", "dense-int8"
# Events whose count is lines brought in from memory, the most direct first.
MISS_COUNTERS = ("l3d_cache_refill", "ll_cache_miss_rd", "l2d_cache_refill", "ll-read-misses", "cache-misses")
LINE_BYTES = 64


@dataclass(frozen=True)
class VariantSummary:
    """One row of a comparison, still without accuracy, which a bench does not measure.

    Attributes:
        device: one line that names it; `native` says whether it is of the target's kind.
        warm, cold: latency; cold is None where it was not measured.
        load_s: median seconds of each phase of loading, by name.
        resident_bytes: held after the load, less an import-only process; None where the device does not say.
        peak_bytes: the most ever held through inference, less the import-only peak.
        cache_misses: lines from memory per inference, None with `cache_misses_note` saying why.
        vs_fp32, vs_int8: against the dense baseline of the same format and session; None where there is none.
        notes: what a reader must know before trusting the row.
    """

    model: str
    target: str
    device: str
    native: bool
    threads: int
    quick: bool
    format: Format
    variant: str
    file: str
    size_bytes: int
    warm: Summary
    cold: Summary | None
    load_s: dict[str, float]
    resident_bytes: int | None
    peak_bytes: int | None
    cache_misses: float | None
    cache_misses_note: str | None
    vs_fp32: Comparison | None
    vs_int8: Comparison | None
    notes: tuple[str, ...]


def summarize_result(result: BenchResult) -> list[VariantSummary]:
    """One summary per variant, in the result's order."""
    return [_summary(result, variant) for variant in result.variants]


def _summary(result: BenchResult, variant: VariantResult) -> VariantSummary:
    conditions = result.conditions
    misses, misses_note = cache_misses(variant.counters, result.counters_unavailable)
    warm, cold = latencies(variant.warm), latencies(variant.cold)
    baseline = result.import_only[variant.format]
    return VariantSummary(
        model=conditions.model,
        target=conditions.target,
        device=conditions.device.title,
        native=conditions.native,
        threads=conditions.threads,
        quick=conditions.quick,
        format=variant.format,
        variant=variant.name,
        file=variant.file,
        size_bytes=variant.size_bytes,
        warm=summarize(warm),
        cold=summarize(cold) if cold else None,
        load_s=_load(variant.warm),
        resident_bytes=_above([m.loaded for m in variant.memory], baseline, "rss_bytes"),
        peak_bytes=_above([m.ran for m in variant.memory], baseline, "peak_bytes"),
        cache_misses=misses,
        cache_misses_note=misses_note,
        vs_fp32=_against(result, variant, FP32),
        vs_int8=_against(result, variant, INT8),
        notes=tuple(_notes(result, variant)),
    )


def latencies(blocks: Sequence[Block]) -> list[tuple[float, ...]]:
    """Raw seconds per process, without the blocks that a steadier one replaced."""
    return [block.latency_s for block in blocks if not block.rejected]


def _against(result: BenchResult, variant: VariantResult, name: str) -> Comparison | None:
    for baseline in result.variants:
        if baseline.format == variant.format and baseline.name == name and variant.name != name:
            return compare(latencies(variant.warm), latencies(baseline.warm))
    return None


def _load(blocks: Sequence[Block]) -> dict[str, float]:
    loads = [asdict(block.load) for block in blocks]
    phases = {phase: [load[phase] for load in loads if load[phase] is not None] for phase in loads[0]}
    return {phase: median(values) for phase, values in phases.items() if values}


def _above(snapshots: Sequence[Snapshot], baseline: Sequence[Snapshot], what: str) -> int | None:
    """Median of the snapshots less the median of the baseline; a swapping process is no measure of memory."""
    if any(snapshot.swap_bytes for snapshot in (*snapshots, *baseline)):
        return None
    own = [getattr(snapshot, what) for snapshot in snapshots]
    base = [getattr(snapshot, what) for snapshot in baseline]
    if not own or not base or None in own or None in base:
        return None
    return int(median(own) - median(base))


def cache_misses(counters: Sequence[Counter], unavailable: str | None) -> tuple[float | None, str | None]:
    """Cache lines from memory per inference, by the first event that can be trusted, or why there is none.

    An event is trusted if it counted between half and twice the lines of the streamed buffer: prefetchers hide misses
    from some events, and others count more than memory traffic.
    """
    reason = unavailable or "no event counts them"
    by_name = {counter.name: counter for counter in counters}
    for name in MISS_COUNTERS:
        counter = by_name.get(name)
        if counter is None or not counter.counts:
            reason = f"{name}: {counter.unavailable}" if counter and counter.unavailable else reason
            continue
        lines = (counter.stream_bytes or 0) / LINE_BYTES
        if counter.stream_count is None or not 0.5 * lines <= counter.stream_count <= 2 * lines:
            reason = f"{name} saw {counter.stream_count} of {lines:.0f} lines streamed"
            continue
        return median(counter.counts) / counter.runs, None
    return None, reason


def _notes(result: BenchResult, variant: VariantResult) -> list[str]:
    conditions = result.conditions
    notes = []
    if conditions.quick:
        notes.append("quick run: short and few measurements")
    if not conditions.native:
        notes.append(f"measured on {conditions.device.title}, not on {conditions.target}")
    limit = conditions.schedule.drift_limit
    drifting = [b for b in (*variant.warm, *variant.cold) if not b.rejected and b.clock_drift > limit]
    if drifting:
        worst = max(block.clock_drift for block in drifting)
        notes.append(
            f"the CPU clock drifted by up to {worst:.1%} in {len(drifting)} of the processes with {variant.file}"
        )
    if any(snapshot.swap_bytes for memory in variant.memory for snapshot in (memory.loaded, memory.ran)):
        notes.append("the device swapped: its memory figures are left out")
    return notes
