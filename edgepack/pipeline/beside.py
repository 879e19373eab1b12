"""A dense matrix and a thin pair beside it, as they are written for a layer."""

from __future__ import annotations

import numpy as np

from edgepack.factorize.whitened import shrunk_covariance
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, low_rank_correction
from edgepack.model.scheme import Scheme
from edgepack.quantize.bias import corrected_bias
from edgepack.quantize.lattice import grid_of
from edgepack.quantize.residual import rounded_residual
from edgepack.types import Moments

ROUNDS = ((1024, 3), (1 << 62, 1))
"""By the width of a layer: every round rounds the whole matrix twice."""


def beside(layer: View, pair: Replacement) -> Replacement:
    """The pair with all that it leaves of the layer's weight beside it, for whoever writes it to round."""
    left = layer.weight - pair.A.astype(np.float64) @ pair.B
    return low_rank_correction(pair.A, pair.B, layer.bias, left.astype(np.float32))


def rounded_beside(layer: View, moments: Moments, scheme: Scheme, rank: int, *, seed: int) -> Replacement:
    """The pair and the matrix on the grids of a scheme, the bias corrected for what both together miss.

    Args:
        layer: without its moments.
        moments: of its input.
        scheme: of the matrix.
        rank: of the pair.
        seed: of the pair's rotation.
    """
    thin = scheme.correction
    if thin is None:
        raise ValueError(f"{scheme} has no pair beside a matrix")
    sides = ((scheme, layer.in_features), (thin, rank), (thin, layer.in_features))
    base, A, B = (grid_of(one, columns) for one, columns in sides)
    if base is None or A is None or B is None:
        raise ValueError(f"{scheme} has matrices that are not rounded")
    rounds = next(count for size, count in ROUNDS if layer.in_features <= size)
    covariance = shrunk_covariance(moments)
    found = rounded_residual(layer.weight, covariance, (base, A, B), rank, seed=seed, rounds=rounds)
    whole = found.base.weight + found.A.weight.astype(np.float64) @ found.B.weight
    bias = corrected_bias(layer.bias, layer.weight, whole, moments.mean)
    return low_rank_correction(found.A.weight, found.B.weight, bias, found.base.weight)
