"""Refit on the compressed prefix: factors that answer the layer's *compressed* inputs with its *original* outputs.

Once the layers before it are compressed, a layer sees x̃ instead of x. The linear map that best predicts y = W x + b
from x̃ undoes part of their error: Ŵ = Cov(y, x̃) Cov(x̃)⁻¹, and of rank r, U_r U_rᵀ Ŵ with U the left singular vectors
of Ŵ C̃^½ — reduced-rank regression (Izenman, Journal of Multivariate Analysis 5, 1975).

It overfits where rows are few, so the fit is pulled towards W, not towards 0:
Ŵ_λ = W + (Cov(y, x̃) − W C̃)(C̃ + λ t I)⁻¹, t = tr C̃ / n, the ridge estimate of what W misses (Hoerl and Kennard,
Technometrics 12, 1970). With x̃ = x it is W at every λ, and for λ → ∞ as well: then only the bias is refitted. λ is
chosen on held-out parts of the data, by moments alone; where no λ does better than not refitting, nothing is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgepack.errors import DataError
from edgepack.factorize import whitened
from edgepack.factorize.paired import PairedMoments, pooled
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, low_rank
from edgepack.types import Array

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, math.inf)
"""λ in units of the mean variance of an input; infinite keeps W and refits the basis and the bias."""
STILL = 1e-13
"""Share of E‖x‖² below which a variance is rounding."""


@dataclass(frozen=True)
class Refit:
    """A refitted layer and what the choice was made from.

    Attributes:
        factors: refitted on all parts, or `kept` as it was.
        ridge: the chosen λ; None where not refitting did at least as well.
        errors: by λ, mean squared error of the outputs on the parts held out, in the unit of y², summed over outputs.
        kept_error: the same of the factors that were there before.
    """

    factors: Replacement
    ridge: float | None
    errors: dict[float, float]
    kept_error: float


def refit(
    layer: View,
    kept: Replacement,
    parts: Sequence[PairedMoments],
    *,
    ridges: Sequence[float] = RIDGES,
) -> Refit:
    """Factors of the rank of `kept`, refitted where held-out data say that it helps.

    Every part is held out once. The parts should be of different samples: tokens of one sentence in two of them would
    make the data look less scarce than they are.

    Args:
        layer: the original layer; its moments are not looked at.
        kept: the factors of the layer as they stand, made without knowing of the prefix.
        parts: two or more, of disjoint samples.
        ridges: λ to choose from, > 0.

    Raises:
        DataError: fewer than two parts, or they do not fit the layer, or its inputs never vary in one of them.
    """
    _check(layer, kept, parts, ridges)
    errors = dict.fromkeys(ridges, 0.0)
    kept_error, rows = 0.0, sum(part.inputs.count for part in parts)
    for index, held_out in enumerate(parts):
        share = held_out.inputs.count / rows
        rest = pooled([part for other, part in enumerate(parts) if other != index])
        for ridge, weight in zip(ridges, refitted_weights(layer, rest, ridges), strict=True):
            errors[ridge] += share * output_error(truncated(layer, weight, rest, kept.rank), held_out)
        kept_error += share * output_error(kept, held_out)
    best = min(ridges, key=lambda ridge: (errors[ridge], -ridge))
    if errors[best] >= kept_error:
        return Refit(kept, None, errors, kept_error)
    seen = pooled(parts)
    (weight,) = refitted_weights(layer, seen, [best])
    return Refit(truncated(layer, weight, seen, kept.rank), best, errors, kept_error)


def refitted_weights(layer: View, seen: PairedMoments, ridges: Sequence[float]) -> list[Array]:
    """Ŵ_λ (out, in) float64 for every λ, from one eigendecomposition of C̃."""
    from scipy.linalg import eigh

    weight = layer.weight.astype(np.float64)
    covariance = seen.inputs.covariance
    missed = seen.cross_covariance - weight @ covariance
    unit = float(np.trace(covariance)) / layer.in_features
    if not unit > STILL * float(np.trace(seen.inputs.second)) / layer.in_features:
        raise DataError(f"{layer.name}: its input is constant over the calibration data", hint="give inputs that vary")
    values, vectors = eigh(covariance, overwrite_a=True, check_finite=False, driver="evd")
    values = np.clip(values, 0.0, None)
    missed = missed @ vectors
    return [
        weight if math.isinf(ridge) else weight + (missed / (values + ridge * unit)) @ vectors.T for ridge in ridges
    ]


def truncated(layer: View, weight: Array, seen: PairedMoments, rank: int) -> Replacement:
    """Rank-r factors of `weight` by centred whitening with x̃, and the bias that makes the mean of y exact."""
    spectrum = whitened.spectrum(replace(layer, weight=weight, moments=seen.inputs))
    basis = np.ascontiguousarray(spectrum.basis[:, :rank])
    projected = np.asarray(basis.T @ weight, np.float32)
    bias = seen.mean - basis @ (projected @ seen.inputs.mean)
    return low_rank(basis, projected, np.asarray(bias, np.float32))


def output_error(factors: Replacement, seen: PairedMoments) -> float:
    """E‖y − (A B x̃ + b)‖² over the rows behind `seen`, from their moments alone."""
    A, B = factors.A.astype(np.float64), factors.B.astype(np.float64)
    bias = np.zeros(len(A)) if factors.bias is None else factors.bias.astype(np.float64)
    spread = float((seen.power - np.square(seen.mean)).sum())
    shared = float(((A.T @ seen.cross_covariance) * B).sum())
    own = float(((A.T @ A) * (B @ seen.inputs.covariance @ B.T)).sum())
    offset = seen.mean - A @ (B @ seen.inputs.mean) - bias
    return max(spread - 2 * shared + own, 0.0) + float(np.square(offset).sum())


def _check(layer: View, kept: Replacement, parts: Sequence[PairedMoments], ridges: Sequence[float]) -> None:
    if len(parts) < 2:
        raise DataError(f"{layer.name}: {len(parts)} part of the data to refit on, expected two or more")
    if not ridges or not min(ridges) > 0:
        raise DataError(f"{layer.name}: ridges {tuple(ridges)}, expected one or more, all > 0")
    shape = (layer.out_features, layer.in_features)
    for found in {part.cross.shape for part in parts} | {(kept.A.shape[0], kept.B.shape[1])}:
        if found != shape:
            raise DataError(f"{layer.name}: outputs and inputs to refit on are {found}, the layer is {shape}")
