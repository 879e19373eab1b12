"""What a reader must know before trusting the figures of a result."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from edgepack.bench.results import BenchResult, Block, VariantResult

BUSY = 0.1
"""Share of the CPUs' time that others took, above which it is worth saying: the clock loop's own limit is far below."""


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
