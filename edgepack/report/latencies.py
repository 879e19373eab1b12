"""Charts of raw latencies: what share of the inferences of a session took how long."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgepack.benchmark.results import BenchResult, VariantResult, latencies
from edgepack.report.report import Axis, Chart, Mark, Series
from edgepack.report.tradeoffs import VARIANTS

SHARES = (*(step / 20 for step in range(20)), 0.99)
"""Quantiles that a curve is drawn through."""
NOTE = "kept warm inferences of all processes, the slowest 1 % left out; a steep curve is a steady latency"


def latency_charts(result: BenchResult) -> Iterator[Chart]:
    """For every format of a session a curve for each file. Tools that give means alone have none."""
    conditions = result.conditions
    for fmt in dict.fromkeys(one.format for one in result.variants):
        curves = []
        for one in sorted(result.variants, key=_place):
            times = [time for process in latencies(one.warm) for time in process]
            if one.format == fmt and len(times) > len(SHARES):
                marks = zip(np.quantile(times, SHARES), SHARES, strict=True)
                curves.append(Series(VARIANTS.get(one.name, one.name), tuple(Mark(float(x), y) for x, y in marks)))
        if curves:
            title = f"{conditions.model} for {conditions.target}, {fmt}, on {conditions.device.title}: raw latencies"
            x, y = (
                Axis("latency_s", "seconds", "latency", log=True),
                Axis("share", "whole share", "share that took less"),
            )
            yield Chart(title, x, y, tuple(curves), note=NOTE)


def _place(one: VariantResult) -> int:
    """Each variant has the same colour everywhere."""
    return list(VARIANTS).index(one.name) if one.name in VARIANTS else len(VARIANTS)
