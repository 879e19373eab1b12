"""Matrices whose entries share few numbers, M_ij = s_ij w[k_ij]: the shared numbers that lose least of the output.

tr((W − M) C (W − M)ᵀ) is quadratic in w; its gradient is a sum over buckets. So it is fitted by conjugate gradients,
preconditioned by the diagonal (Hestenes and Stiefel, Journal of Research of the NBS 49, 1952), which never does worse
than what it starts from and needs a product of the layer's size per iteration, no matrix of the shared numbers.
"""

from __future__ import annotations

import numpy as np

from edgepack.types import Array

ITERATIONS = 12
LARGEST_WORK = 200_000_000_000
"""Multiplications of one fit at most: a layer of 4096 × 4096 gets two iterations."""


def bucket_sums(entries: Array, index: Array, count: int) -> Array:
    """(count,) float64: the sum of the entries of each bucket, both of one shape."""
    return np.bincount(index.reshape(-1), weights=entries.reshape(-1), minlength=count)


def bucket_means(weight: Array, index: Array, count: int, importance: Array, signs: Array | None = None) -> Array:
    """(count,) float64: the shared numbers that are best where C is diagonal, in closed form; 0 for an empty bucket.

    Args:
        weight: (out, in).
        index: (out, in) whole numbers below `count`: which number stands there.
        count: of the shared numbers.
        importance: (in,) ≥ 0: the diagonal of C.
        signs: (out, in) of ±1; None for all +1.
    """
    signed = weight * importance if signs is None else weight * importance * signs
    weights = bucket_sums(np.broadcast_to(importance, weight.shape), index, count)
    return np.divide(bucket_sums(signed, index, count), weights, out=np.zeros(count), where=weights > 0)


def refitted(
    weight: Array,
    index: Array,
    start: Array,
    covariance: Array,
    signs: Array | None = None,
    iterations: int = ITERATIONS,
) -> Array:
    """(count,) float64: shared numbers that lose less of the output than those at the start, or as much.

    Args:
        weight: (out, in).
        index: (out, in) whole numbers below len(start): which number stands there.
        start: (count,).
        covariance: (in, in), symmetric and positive semidefinite.
        signs: (out, in) of ±1; None for all +1.
        iterations: at most; fewer where the layer is so large that they take more than `LARGEST_WORK`.
    """
    count = len(start)

    def spread(shared: Array) -> Array:
        return shared[index] if signs is None else shared[index] * signs

    def gathered(matrix: Array) -> Array:
        return bucket_sums(matrix if signs is None else matrix * signs, index, count)

    found = start.astype(np.float64)
    curvature = bucket_sums(np.broadcast_to(np.diag(covariance), weight.shape), index, count)
    inverse = np.divide(1.0, curvature, out=np.zeros(count), where=curvature > 0)
    slope = gathered((weight - spread(found)) @ covariance)
    towards = scaled = inverse * slope
    power = first = float(slope @ scaled)
    for _ in range(min(iterations, LARGEST_WORK // (weight.size * len(covariance)))):
        if not power > 1e-12 * first:
            break
        bent = gathered(spread(towards) @ covariance)
        curve = float(towards @ bent)
        if not curve > 0:
            break
        found = found + power / curve * towards
        slope = slope - power / curve * bent
        scaled = inverse * slope
        power, before = float(slope @ scaled), power
        towards = scaled + power / before * towards
    return found
