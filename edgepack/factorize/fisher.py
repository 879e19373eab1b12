"""Fisher-weighted factors: each row of the weight counts by its share in the Fisher information.

FWSVD (Hsu, Hua, Chang, Lou, Shen and Jin, "Language Model Compression with Weighted Low-Rank Factorization", ICLR
2022): D = diag(√(row sums of the Fisher)), U the left singular vectors of D W, A = D⁻¹ U_r, B = U_rᵀ D W. It is the
two-sided method with the diagonal of G alone: no root of a matrix, and no statistics of outputs together. With moments
the directions come from D W C^½ instead, and the bias makes up for the mean of what is lost.

The Fisher of a weight is E[(∂ℓ/∂w_ij)²] = E[g_i² x_j²]. Where gradients and inputs are independent its sum over row i
is G_ii E‖x‖², so that D² is the diagonal of G up to a factor that cancels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgepack.errors import DataError
from edgepack.factorize import svd, two_sided, whitened
from edgepack.model.layer import View
from edgepack.model.types import Array, Spectrum

needs_moments = True
needs_gradients = True

FLOOR = 1e-3
"""Least weight of a row, as a share of the mean: D is inverted, and rows that few samples reach are not free."""

factors = two_sided.factors


def spectrum(layer: View, gradient: Array | None = None) -> Spectrum:
    """Row weights from the diagonal of G; data-aware where the layer carries moments, FWSVD as published where not.

    Args:
        layer: with or without moments.
        gradient: G, (out, out), the second moment of the loss gradient at the layer's output.

    Raises:
        DataError: no gradients, they do not fit the layer, or there is nothing in them.
    """
    if gradient is None:
        raise DataError(
            f"{layer.name}: the Fisher-weighted method needs output gradients", hint="use --method whitened"
        )
    return by_rows(layer, np.diag(two_sided.checked_gradient(layer, gradient)))


def by_rows(layer: View, sums: Array) -> Spectrum:
    """The same for given row sums of the Fisher, (out,), up to a common factor: `fisher.sum(axis=1)`.

    Raises:
        DataError: not one finite sum ≥ 0 per row, or all of them zero.
    """
    if sums.shape != (layer.out_features,) or not np.isfinite(sums).all() or not sums.min() >= 0 or not sums.max() > 0:
        raise DataError(
            f"{layer.name}: row sums of the Fisher must be {layer.out_features} finite numbers ≥ 0, not all zero"
        )
    shares = sums.astype(np.float64) / sums.mean()
    scale = np.sqrt(np.maximum(shares, FLOOR))[:, None]
    weighted = replace(layer, weight=scale * layer.weight.astype(np.float64))
    seen = svd.spectrum(weighted) if layer.moments is None else whitened.spectrum(weighted)
    directions = seen.basis.astype(np.float64)
    return replace(seen, basis=(directions / scale).astype(np.float32), dual=(directions * scale).astype(np.float32))
