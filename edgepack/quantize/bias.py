"""Bias correction: rounding weights moves the mean output, and the bias takes that back at no cost.

(Nagel, van Baalen, Blankevoort and Welling, "Data-Free Quantization Through Weight Equalization and Bias Correction",
ICCV 2019.) What is left is tr(ΔW C ΔWᵀ) with the covariance C of the inputs, which is why rounding minimises that and
not the error on the second moment. A layer that must stay without a bias is rounded on its second moment instead.
"""

from __future__ import annotations

import numpy as np

from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array


def corrected_bias(bias: Array | None, weight: Array, rounded: Array, mean: Array) -> Array:
    """b + (W − Ŵ) μ: (out,) float32; the mean output stays what it was.

    Args:
        bias: (out,), None for zeros.
        weight: (out, in) before rounding.
        rounded: (out, in) after it.
        mean: (in,) of the inputs.
    """
    moved = np.asarray(weight, np.float64) @ mean - np.asarray(rounded, np.float64) @ mean
    return np.asarray(moved if bias is None else bias + moved, np.float32)


def corrected_pair(exact: Replacement, rounded: Replacement, mean: Array) -> Replacement:
    """The rounded pair with the bias of the exact one, corrected: b + (A B − Â B̂) μ. The bias of `rounded` is ignored.

    Args:
        exact: before rounding, in any basis, with the bias that it needs.
        rounded: after it.
        mean: (in,) of the inputs.
    """
    moved = _mean_output(exact, mean) - _mean_output(rounded, mean)
    bias = moved if exact.bias is None else exact.bias + moved
    return low_rank(rounded.A, rounded.B, np.asarray(bias, np.float32))


def _mean_output(factors: Replacement, mean: Array) -> Array:
    return np.asarray(factors.A.astype(np.float64) @ (factors.B.astype(np.float64) @ mean))
