"""How fast one measured file is against another of the same session."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from edgepack.benchmark.stats import compare
from edgepack.report.compare import Ratio

Row = Mapping[str, Any]


def p50(row: Row) -> float:
    """Median of the processes' medians, in seconds."""
    return float(median(row["process_medians_s"]))


def speedup(row: Row, baseline: Row) -> Ratio:
    """A row against another of the same session, by the medians of their processes."""
    medians = ([[value] for value in one["process_medians_s"]] for one in (row, baseline))
    found = compare(*medians)
    return Ratio(found.speedup, found.low, found.high, found.verdict, baseline["size_bytes"] / row["size_bytes"])
