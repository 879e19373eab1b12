"""The rank of a matrix by empirical variational Bayesian matrix factorization, which has no knob.

Nakajima, Sugiyama, Babacan and Tomioka: Global Analytic Solution of Fully-observed Variational Bayesian Matrix
Factorization, Journal of Machine Learning Research 14 (2013). Kim et al. (2016) chose the ranks of Tucker-2 by it.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize_scalar

from edgepack.model.types import Array

TAU = 2.5129
"""Its threshold is this times the root of the ratio of the sides."""


def evbmf_rank(matrix: Array) -> int:
    """How many singular values stand out of noise whose variance is fitted as well; 0 where none does."""
    short, long = sorted(matrix.shape)
    ratio = short / long
    values = np.square(np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False))
    tau = TAU * math.sqrt(ratio)
    threshold = (1 + tau) * (1 + ratio / tau)
    most = min(math.ceil(short / (1 + ratio)) - 1, short) - 1
    lowest = max(values[most + 1] / (long * threshold), float(values[most + 1 :].mean()) / long)
    highest = float(values.sum()) / (short * long)
    found = minimize_scalar(
        lambda variance: _free_energy(values / (long * variance), threshold, ratio), (lowest, highest),
        bounds=(lowest, highest), method="bounded", options={"xatol": 1e-4 * lowest},
    )  # fmt: skip
    return int(np.sum(values > long * found.x * threshold))


def _free_energy(scaled: Array, threshold: float, ratio: float) -> float:
    """Of the noise by which squared singular values were scaled, but for a constant."""
    out, under = scaled[scaled > threshold], scaled[scaled <= threshold]
    excess = out - (1 + ratio)
    tau = (excess + np.sqrt(np.square(excess) - 4 * ratio)) / 2
    noise = np.sum(under - np.log(under))
    signal = np.sum(out - tau + np.log((tau + 1) / out) + ratio * np.log(tau / ratio + 1))
    return float(noise + signal)
