"""Statistics of raw latencies, derived when asked for.

Samples of one process are not independent of each other: they share its memory layout, its core and its neighbours.
So the process is the unit: intervals are bootstrapped over process medians, and a difference is claimed by a
Mann–Whitney U test between the process medians of two variants. Within a process only the spread is described.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgepack.model.types import Array

ALPHA = 0.05
RESAMPLES = 2000
SEED = 0

Verdict = Literal["faster", "slower", "no difference"]


@dataclass(frozen=True)
class Summary:
    """Latency of one variant, seconds.

    Attributes:
        processes: fresh processes behind the figures.
        samples: raw times behind them.
        median: of the process medians.
        low, high: 95 % bootstrap interval of that median; None with fewer than two processes.
        p90: 90th percentile of all samples, every process with the same weight.
        minimum: of all samples.
        iqr: distance of the quartiles of all samples.
    """

    processes: int
    samples: int
    median: float
    low: float | None
    high: float | None
    p90: float
    minimum: float
    iqr: float


@dataclass(frozen=True)
class Comparison:
    """One variant against a baseline of the same session.

    Attributes:
        speedup: baseline median / variant median; above 1 the variant is faster.
        low, high: 95 % bootstrap interval of the speed-up; None with fewer than two processes.
        p_value: two-sided Mann–Whitney U over process medians.
        verdict: "no difference" unless the p-value is below 5 %.
    """

    speedup: float
    low: float | None
    high: float | None
    p_value: float
    verdict: Verdict


def summarize(processes: Sequence[Sequence[float]]) -> Summary:
    """Summary of raw times.

    Args:
        processes: seconds, one non-empty sequence per process.
    """
    arrays = [np.asarray(times, dtype=np.float64) for times in processes]
    medians = process_medians(processes)
    # Weighted: a process that happened to keep more samples must not count for more.
    values = np.concatenate(arrays)
    weights = np.concatenate([np.full(len(array), 1.0 / len(array)) for array in arrays])
    lower, upper, p90 = (_weighted_quantile(values, weights, share) for share in (0.25, 0.75, 0.9))
    low, high = _interval((medians,))
    return Summary(
        processes=len(arrays),
        samples=len(values),
        median=float(np.median(medians)),
        low=low,
        high=high,
        p90=p90,
        minimum=float(values.min()),
        iqr=upper - lower,
    )


def compare(variant: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]]) -> Comparison:
    """A variant against its baseline.

    Args:
        variant: seconds, one non-empty sequence per process.
        baseline: likewise.
    """
    from scipy.stats import mannwhitneyu

    own, base = process_medians(variant), process_medians(baseline)
    speedup = float(np.median(base) / np.median(own))
    # All values alike: the test is not defined, and there is nothing to tell apart.
    same = float(np.ptp(np.concatenate([own, base]))) == 0.0
    p_value = 1.0 if same else float(mannwhitneyu(own, base, alternative="two-sided").pvalue)
    verdict: Verdict = "no difference"
    if p_value < ALPHA and speedup != 1.0:
        verdict = "faster" if speedup > 1.0 else "slower"
    low, high = _interval((base, own))
    return Comparison(speedup, low, high, p_value, verdict)


def is_narrow(processes: Sequence[Sequence[float]], share: float) -> bool:
    """Whether the 95 % interval of the median of process medians is at most that share of it wide.

    Args:
        processes: seconds, one non-empty sequence per process.
        share: of the median.
    """
    medians = process_medians(processes)
    low, high = _interval((medians,))
    return low is not None and high is not None and high - low <= share * float(np.median(medians))


def process_medians(processes: Sequence[Sequence[float]]) -> Array:
    """(processes,) float64: the median of each process."""
    return np.array([np.median(times) for times in processes], dtype=np.float64)


def _interval(samples: tuple[Array, ...]) -> tuple[float | None, float | None]:
    """95 % percentile bootstrap of the median of one sample, or of the ratio of medians of two."""
    from scipy.stats import bootstrap

    if any(len(sample) < 2 for sample in samples):
        return None, None

    def statistic(*values: Array, axis: int) -> Array:
        medians = [np.median(value, axis=axis) for value in values]
        return np.asarray(medians[0] / medians[1] if len(medians) == 2 else medians[0])

    # The percentile method: BCa is not defined where the resamples are all alike, as with two equal medians.
    found = bootstrap(
        samples, statistic, n_resamples=RESAMPLES, vectorized=True, method="percentile", random_state=SEED
    ).confidence_interval
    if len(samples) > 1:
        return float(found.low), float(found.high)
    # Interpolated between two equal medians, a bound may come out a rounding error beyond them.
    low, high = np.clip([found.low, found.high], samples[0].min(), samples[0].max())
    return float(low), float(high)


def _weighted_quantile(values: Array, weights: Array, share: float) -> float:
    """The smallest value at which the sorted weights reach `share` of their sum."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    index = int(np.searchsorted(reached, share * reached[-1] * (1 - 1e-12)))
    return float(values[order][min(index, len(values) - 1)])
