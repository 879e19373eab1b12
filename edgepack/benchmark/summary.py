"""What a result says about each variant: medians, intervals, memory, counters, the verdict against the baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

from edgepack import units
from edgepack.benchmark.conditions import like_conditions
from edgepack.benchmark.results import (
    BROWSER,
    LOCAL,
    RUNNER,
    BenchResult,
    Block,
    Counter,
    Snapshot,
    VariantResult,
    latencies,
)
from edgepack.benchmark.stats import Comparison, Summary, compare, summarize
from edgepack.model.scheme import Format

FP32, INT8 = "dense-fp32", "dense-int8"
# Events whose count is lines brought in from memory, the most direct first.
MISS_COUNTERS = ("l3d_cache_refill", "ll_cache_miss_rd", "l2d_cache_refill", "ll-read-misses", "cache-misses")
LINE_BYTES = 64
FIFTHS = 5

BUSY = 0.1
"""Share of the CPUs' time that others took, above which it is worth saying: the clock loop's own limit is far below."""


@dataclass(frozen=True)
class Sustained:
    """Latency of a process that ran back to back for long, seconds.

    Attributes:
        first, last: medians of the first and of the last fifth of the kept times.
        temperature_c: before and after, None where the device does not say.
    """

    first: float
    last: float
    temperature_c: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True)
class VariantSummary:
    """One row of a comparison, still without accuracy, which a bench does not measure.

    Attributes:
        device: one line that names it; `native` says whether it is of the target's kind.
        warm, cold, sustained: latency; None where it was not measured.
        load_s: median seconds of each phase of loading, by name.
        resident_bytes: held after the load, less an import-only process; None where the device does not say.
        peak_bytes: the most ever held through inference, less the import-only peak.
        cache_misses: lines from memory per inference, None with `cache_misses_note` saying why.
        vs_fp32, vs_int8: against the dense baseline of the same format and session; None where there is none.
        notes: what a reader must know before trusting the row.
        reached: how the device was, "local" or its name on the wire; `device_id` tells it from others.
        session: when it was measured; rows of one session share it.
        tool: what measured.
        governor: of the CPUs in use, empty where the kernel has none; `cluster`: their core.
        conditions: all that must be alike before two devices may stand beside each other, as text by name.
        methods: how each figure was got, a sentence by figure.
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
    sustained: Sustained | None = None
    reached: str = LOCAL
    device_id: str = ""
    session: str = ""
    tool: str = RUNNER.title
    governor: str = ""
    cluster: str | None = None
    conditions: Mapping[str, str] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)


def summarize_result(result: BenchResult) -> list[VariantSummary]:
    """One summary per variant, in the result's order."""
    return [_summary(result, variant) for variant in result.variants]


def _summary(result: BenchResult, variant: VariantResult) -> VariantSummary:
    conditions = result.conditions
    misses, misses_note = cache_misses(variant.counters, result.counters_unavailable)
    warm, cold = latencies(variant.warm), latencies(variant.cold)
    baseline = result.import_only.get(variant.format, ())
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
        notes=tuple(notes(result, variant)),
        sustained=sustained(variant.sustained),
        reached=conditions.reached,
        device_id=conditions.device.fingerprint[:8],
        session=result.created,
        tool=conditions.tool(variant.format).title,
        governor=", ".join(conditions.governors),
        cluster=conditions.cluster,
        conditions=like_conditions(result, variant.format),
        methods=dict(result.methods),
    )


def sustained(blocks: Sequence[Block]) -> Sustained | None:
    """How latency changed over a long run, the median of several; None where nothing, or only a mean, was measured."""
    whole = [block for block in blocks if len(block.latency_s) >= FIFTHS]
    if not whole:
        return None
    first = median(median(block.latency_s[: len(block.latency_s) // FIFTHS]) for block in whole)
    last = median(median(block.latency_s[-(len(block.latency_s) // FIFTHS) :]) for block in whole)
    return Sustained(first, last, whole[-1].temperature_c)


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


def notes(result: BenchResult, variant: VariantResult) -> Iterator[str]:
    """Sentences about one variant, those that hold for the whole session first."""
    yield from _of_session(result)
    yield from _of_blocks(result, variant)
    held = [*result.import_only.get(variant.format, ())]
    held += [snapshot for memory in variant.memory for snapshot in (memory.loaded, memory.ran)]
    if any(snapshot.swap_bytes for snapshot in held):
        yield "the device swapped: its memory figures are left out"
    for figure, why in result.not_measured.items():
        yield f"{figure} not measured: {why}"


def _of_session(result: BenchResult) -> Iterator[str]:
    conditions = result.conditions
    if conditions.quick:
        yield "quick run: short and few measurements"
    if any(tool.name == BROWSER for tool in conditions.tools.values()):
        yield f"measured in {conditions.device.title}: to be compared with figures of browsers only"
        return
    if not conditions.native:
        yield f"measured on {conditions.device.title}, not on {conditions.target}"
    slow = [name for name in conditions.governors if name != "performance"]
    if slow:
        yield f"the CPU governor was {', '.join(slow)}, not performance: the clock follows the load"
    if not conditions.cpus:
        yield "not pinned to CPUs: the device does not allow it"
    start, limit = result.start_temperature_c, conditions.schedule.start_below_c
    if start is not None and start > limit:
        yield f"it started at {start:.0f} °C, above the {limit:.0f} °C at which it should"
    shares = [block.others_busy for one in result.variants for block in _kept(one) if block.others_busy is not None]
    if shares and median(shares) > BUSY:
        yield f"other programs took {median(shares):.0%} of the CPUs' time meanwhile"


def _of_blocks(result: BenchResult, variant: VariantResult) -> Iterator[str]:
    kept = _kept(variant)
    if variant.agreement_db is not None:
        yield f"the answers of {variant.file} agree with this machine's: {units.agreement(variant.agreement_db)}"
    if any(block.is_mean for block in kept):
        tool = result.conditions.tool(variant.format).title
        yield f"{tool} gives one mean per process: p50 and p90 are of these means"
    throttled = sum(block.throttled is True for block in kept)
    if throttled:
        yield f"the CPU was throttled in {throttled} of the processes with {variant.file}"
    limit = result.conditions.schedule.drift_limit
    drifts = [block.clock_drift for block in kept if block.clock_drift is not None and block.clock_drift > limit]
    if drifts:
        yield f"the CPU clock drifted by up to {max(drifts):.1%} in {len(drifts)} of the processes with {variant.file}"


def _kept(variant: VariantResult) -> list[Block]:
    return [block for block in (*variant.warm, *variant.cold) if not block.rejected]
