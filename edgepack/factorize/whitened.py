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
from edgepack.factorize.leading import leading
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array, Moments, Spectrum
from edgepack.quantize.gptq import output_energy as energy_of_product

needs_moments = True

MOST_SHRUNK = 0.9
"""λ up to which C is found again in what C_λ gives."""
PANELS = 16
"""Parts of a sum over the columns of a matrix."""


def shrunk_covariance(moments: Moments) -> Array:
    """C_λ = (1 − λ) C + λ (tr C / n) I: (in, in) float64. λ = n / (n + 4 N) unless it was chosen.

    Few samples of many features make directions look empty that are not.
    """
    covariance = moments.covariance
    covariance *= 1 - _shrinkage(moments)
    covariance[np.diag_indices(len(covariance))] += _white(moments)
    return covariance


def output_energy(layer: View, moments: Moments, found: Spectrum) -> float:
    """tr(W C Wᵀ), the energy of what the layer's output varies, with C as it was seen.

    From the energies of its spectrum, which are those of C_λ and whose sum is known: a product of wide matrices less.

    Args:
        layer: of which the spectrum is.
        moments: that it was made from.
        found: of `spectrum`.
    """
    shrinkage = _shrinkage(moments)
    if shrinkage > MOST_SHRUNK:  # next to nothing of C is left in C_λ
        return energy_of_product(layer.weight, moments.covariance)
    squares = sum(float(np.square(row, dtype=np.float64).sum()) for row in layer.weight)  # no wide copy
    total = float(found.energies.sum()) + found.rest
    return max(total - _white(moments) * squares, 0.0) / (1 - shrinkage)


def _shrinkage(moments: Moments) -> float:
    """λ of the moments: that which was chosen, else by the number of rows."""
    features = len(moments.mean)
    return features / (features + 4 * moments.count) if moments.shrinkage is None else moments.shrinkage


def _white(moments: Moments) -> float:
    """λ tr C / n."""
    return _shrinkage(moments) * max(float(moments.variance.sum()), 0.0) / len(moments.mean)


def spectrum(layer: View, most: int | None = None) -> Spectrum:
    """Left singular vectors and squared singular values of W C^½, one decomposition of the smaller side.

    Args:
        layer: with moments.
        most: the largest rank that will be looked at; the columns beyond it may be left out, and are where `leading`
            gets along without them.

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
    if most is not None and (first := _leading(weight, covariance, most)) is not None:
        return replace(first, mean=layer.moments.mean)
    if layer.out_features <= layer.in_features:
        gram = weight @ covariance @ weight.T
        del weight, covariance  # each may be as large as the largest layer, in float64
        energies, basis = eigh(gram, overwrite_a=True, check_finite=False, driver="evd")
        return Spectrum(basis[:, ::-1].astype(np.float32), np.clip(energies[::-1], 0.0, None), layer.moments.mean)
    values, vectors = eigh(covariance, overwrite_a=True, check_finite=False, driver="evd")
    # V Λ^½ has the same left singular vectors under W as the symmetric root V Λ^½ Vᵀ, one product cheaper.
    return replace(svd.decompose(weight @ (vectors * np.sqrt(np.clip(values, 0.0, None)))), mean=layer.moments.mean)


def _leading(weight: Array, covariance: Array, rank: int) -> Spectrum | None:
    """The first columns alone, and the energy of all others together."""
    total = _trace(weight, covariance)
    side, whole = len(weight), min(weight.shape)
    found = leading(lambda block: weight @ (covariance @ (weight.T @ block)), side, rank, total, whole=whole)
    if found is None:
        return None
    energies = np.clip(found[0], 0.0, None)
    return Spectrum(found[1].astype(np.float32), energies, rest=max(total - float(energies.sum()), 0.0))


def _trace(weight: Array, covariance: Array) -> float:
    """tr(W C Wᵀ), from one half of the symmetric C: half the multiplications of W C."""
    total, start = 0.0, 0
    for columns in np.array_split(weight, PANELS, axis=1):
        stop = start + columns.shape[1]
        total += float(np.vdot(columns @ covariance[start:stop, start:stop], columns))
        total += 2.0 * float(np.vdot(weight[:, :start] @ covariance[:start, start:stop], columns))
        start = stop
    return total


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
