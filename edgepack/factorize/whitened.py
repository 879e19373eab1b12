"""Centred whitening: the rank-r factors that lose least of the layer's *output* on the calibration inputs.

With inputs of mean μ and covariance C, min over rank-r M of E‖(W − M)(x − μ)‖² is reached by M = U_r U_rᵀ W, where U
are the left singular vectors of W C^½; the error is the tail of their squared singular values. This is the principal
component analysis of the layer's outputs (Yu and Wu, "Compressing Transformers: Features Are Low-Rank, but Weights Are
Not!", AAAI 2023). No inverse of C appears, so singular covariances (constant pixels) are no problem.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgepack.errors import DataError
from edgepack.factorize import svd
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array, Moments, Spectrum

needs_moments = True


def shrunk_covariance(moments: Moments) -> Array:
    """C_λ = (1 − λ) C + λ (tr C / n) I: (in, in) float64. λ = n / (n + 4 N) unless it was chosen.

    Few samples of many features make directions look empty that are not.
    """
    features = len(moments.mean)
    shrinkage = features / (features + 4 * moments.count) if moments.shrinkage is None else moments.shrinkage
    covariance = moments.covariance
    covariance *= 1 - shrinkage
    covariance[np.diag_indices(features)] += shrinkage * max(float(moments.variance.sum()), 0.0) / features
    return covariance


def spectrum(layer: View) -> Spectrum:
    """Left singular vectors and squared singular values of W C^½, one decomposition of the smaller side.

    Raises:
        DataError: the layer carries no moments, or its input never varied.
    """
    from scipy.linalg import eigh

    if layer.moments is None:
        raise DataError(f"{layer.name}: the whitened method needs calibration statistics", hint="use --method svd")
    covariance = shrunk_covariance(layer.moments)
    if np.trace(covariance) <= 0:
        raise DataError(f"{layer.name}: its input is constant over the calibration data", hint="give inputs that vary")
    weight = layer.weight.astype(np.float64)
    if layer.out_features <= layer.in_features:
        gram = weight @ covariance @ weight.T
        del weight, covariance  # each may be as large as the largest layer, in float64
        energies, basis = eigh(gram, overwrite_a=True, check_finite=False, driver="evd")
        return Spectrum(basis[:, ::-1].astype(np.float32), np.clip(energies[::-1], 0.0, None), layer.moments.mean)
    values, vectors = eigh(covariance, overwrite_a=True, check_finite=False, driver="evd")
    # V Λ^½ has the same left singular vectors under W as the symmetric root V Λ^½ Vᵀ, one product cheaper.
    return replace(svd.decompose(weight @ (vectors * np.sqrt(np.clip(values, 0.0, None)))), mean=layer.moments.mean)


def factors(layer: View, spectrum: Spectrum, rank: int) -> Replacement:
    """A = U_r, B = U_rᵀ W, b + (W − A B) μ: the mean output is exact at every rank."""
    if spectrum.mean is None:
        return svd.factors(layer, spectrum, rank)
    basis = spectrum.basis[:, :rank]
    projected = np.asarray(basis.T @ layer.weight, np.float32)
    mean = spectrum.mean
    correction = layer.weight @ mean - basis @ (projected @ mean)
    bias = correction if layer.bias is None else layer.bias + correction
    return low_rank(np.ascontiguousarray(basis), projected, np.asarray(bias, np.float32))
