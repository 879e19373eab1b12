"""One-sided confidence bounds of a mean paired difference, for what differences of scores look like."""

from __future__ import annotations

import numpy as np

from edgepack.model.types import Array

UNSEEN = 0.5
"""Of what a difference can be at most: weight of one more where none was seen. Answers that compression changes lie
near a tie: they cost 0.2 to 0.4 on average on the perceptron of `edgepack.metrics.soft_labels`."""


def of_counts(worse: int, better: int, count: int, confidence: float) -> float:
    """Upper bound of p(worse) − p(better), of `count` samples of which so many changed for the worse and the better.

    The score interval of Tango ("Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17, 1998), which is McNemar's test at a difference of 0, and Wilson's
    interval where nothing changed for the better.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtri

    z = float(ndtri(confidence))

    def statistic(difference: float) -> float:
        linear = -worse - better + (2 * count - worse + better) * difference
        constant = -better * difference * (1 - difference)
        root = (np.sqrt(linear**2 - 8 * count * constant) - linear) / (4 * count)
        variance = count * (2 * root + difference * (1 - difference))
        return float((worse - better - count * difference) / np.sqrt(variance)) if variance > 0 else 0.0

    point = (worse - better) / count
    low, high = point + 1e-12, 1 - 1e-12
    if statistic(low) + z <= 0:  # half of the confidence: the bound is the difference that was seen
        return point
    if statistic(high) + z > 0:
        return 1.0
    return float(brentq(lambda difference: statistic(difference) + z, low, high))


def of_rare(differences: Array, confidence: float) -> float:
    """Upper bound of the mean of differences (N,) of 0 or more, of which few are not 0.

    They are taken for a weighted sum of Poisson counts: the gamma interval of Fay and Feuer ("Confidence intervals for
    directly standardized rates", Statistics in Medicine 16, 1997), which holds also where next to nothing was seen.
    """
    from scipy.special import gammaincinv

    most = float(differences.max()) if differences.any() else UNSEEN
    total, squares = float(differences.sum()) + most, float(np.square(differences).sum()) + most**2
    return float(gammaincinv(total**2 / squares, confidence)) * (squares / total) / len(differences)


def of_mean(differences: Array, confidence: float) -> float:
    """Upper bound of the mean of differences (N,) of any kind.

    Student's interval with the skew taken out, by the monotone transformation of Hall ("On the removal of skewness by
    transformation", Journal of the Royal Statistical Society B 54, 1992). One sample bounds nothing.
    """
    from scipy.special import stdtrit

    count = len(differences)
    mean = float(differences.mean())
    if count < 2:
        return float("inf")
    deviation = float(differences.std(ddof=1))
    if deviation <= 1e-9 * abs(mean):
        return mean
    quantile = -float(stdtrit(count - 1, confidence)) / count**0.5
    skew = float((((differences - mean) / deviation) ** 3).mean())
    if abs(skew) < 1e-6:
        return float(mean - deviation * quantile)
    moved = float(np.cbrt(1.0 + skew * (quantile - skew / (6.0 * count)))) - 1.0
    return float(mean - deviation * 3.0 / skew * moved)
