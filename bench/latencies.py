"""Latencies of model files against each other, in the project's own measuring session, as data to be kept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgepack import load_target
from edgepack.benchmark.results import BenchResult, VariantResult, latencies
from edgepack.benchmark.schedule import Schedule
from edgepack.benchmark.session import Settings, Variant, bench_variants
from edgepack.benchmark.stats import process_medians, summarize
from edgepack.devices.local import LocalDevice
from edgepack.targets.target import HOST

SIGNIFICANT = 5


def measure_files(
    variants: Sequence[Variant], schedule: Schedule, *, model: str, inputs: Path | None = None, cold: bool = False
) -> dict[str, Any]:
    """One session on this machine, one thread: `{"threads", "cpus", "schedule", "rows"}`, a row per variant in order.

    A row holds the median of every process (seconds) and not a single statistic that follows from them.
    """
    with closing(LocalDevice()) as device:
        result = bench_variants(
            variants,
            target=load_target(HOST),
            device=device,
            model=model,
            inputs=inputs,
            settings=Settings(cold=cold, schedule=schedule),
        )
    return {
        "threads": result.conditions.threads,
        "schedule": asdict(schedule),
        "rows": [_row(result, variant) for variant in result.variants],
    }


def _row(result: BenchResult, variant: VariantResult) -> dict[str, Any]:
    warm, cold = latencies(variant.warm), latencies(variant.cold)
    row: dict[str, Any] = {
        "format": variant.format,
        "size_bytes": variant.size_bytes,
        "process_medians_s": _rounded(process_medians(warm)),
        "p90_s": _rounded([summarize(warm).p90])[0],
        "inferences": sum(block.runs for block in variant.warm if not block.rejected),
        "worst_clock_drift": round(max(block.clock_drift for block in variant.warm if not block.rejected), 4),
    }
    if cold:
        row["cold_process_medians_s"] = _rounded(process_medians(cold))
    return row


def _rounded(values: Sequence[float]) -> list[float]:
    """Five significant digits: a timer has no more to tell, and the files stay small."""
    return [float(f"{value:.{SIGNIFICANT}g}") for value in values]
