"""What flows through a matrix: the one sum by which layers, their factors and their roundings are judged."""

from __future__ import annotations

import numpy as np

from edgepack.types import Array


def output_energy(matrix: Array, covariance: Array | None, gradient: Array | None = None) -> float:
    """tr(G M C Mᵀ), in float64: of a layer what its output varies, of a difference of weights what is lost by it.

    Args:
        matrix: (out, in) M.
        covariance: (in, in) C of the inputs; None for the identity.
        gradient: (out, out) G; None for the identity.
    """
    wide = np.asarray(matrix, np.float64)
    seen = wide if covariance is None else wide @ covariance
    return float(np.vdot(seen, wide if gradient is None else gradient @ wide))
