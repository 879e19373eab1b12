"""What a pair on its grids loses of a layer's output, and to what: truncation, rounding of weights, the latent's grid.

With y = W x + b and ŷ = Â (B̂ x + η) + b̂ the error falls into (W − A B)(x − μ), (A B − Â B̂)(x − μ), −Â η and a constant.
Their energies add up, with twice the product of the first two. For a pair that is optimal under the same covariance,
where Aᵀ (W − A B) and (W − A B) C Bᵀ vanish, that product is of second order: tr((W − A B) C δBᵀ δAᵀ).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Activations
from edgepack.model.types import Array
from edgepack.quantize.gptq import output_energy
from edgepack.quantize.rotation import grid_noise, latent_span


@dataclass(frozen=True)
class Split:
    """Shares of the layer's output energy tr(W C Wᵀ).

    Attributes:
        truncation: of W − A B.
        rounding: of A B − Â B̂.
        latent: of the latent's own grid, as predicted from its range.
        offset: of the mean output; 0 where the bias was corrected.
        cross: twice the product of truncation and rounding, of either sign.
    """

    truncation: float
    rounding: float
    latent: float
    offset: float
    cross: float

    @property
    def total(self) -> float:
        """Of all of it."""
        return self.truncation + self.rounding + self.latent + self.offset + self.cross


def split_error(
    layer: View,
    exact: Replacement,
    rounded: Replacement,
    covariance: Array,
    mean: Array,
    latent: Activations | float,
    *,
    energy: float | None = None,
) -> Split:
    """Split the error of a rounded pair, by products no larger than the factors.

    Args:
        layer: with its weight W and its bias b.
        exact: the pair before rounding.
        rounded: the pair after it.
        covariance: (in, in) C of the inputs.
        mean: (in,) μ.
        latent: how the latent is rounded, its range then predicted for normal inputs; or the range that its int8 grid
            covers.
        energy: tr(W C Wᵀ) where it is known: the one product of wide matrices.
    """
    C = np.asarray(covariance, np.float64)
    W = np.asarray(layer.weight, np.float64)
    A, B, A2, B2 = (np.asarray(factor, np.float64) for factor in (exact.A, exact.B, rounded.A, rounded.B))
    seen, seen2 = B @ C, B2 @ C
    kept = float((A * (W @ seen.T)).sum())  # tr(W C (A B)ᵀ)
    kept2 = float((A2 * (W @ seen2.T)).sum())
    whole, both, whole2 = _overlap(A, A, seen @ B.T), _overlap(A, A2, seen @ B2.T), _overlap(A2, A2, seen2 @ B2.T)
    energy = output_energy(W, C) if energy is None else energy
    unit = 1 / energy if energy > 0 else 0.0
    shift = W @ mean - A2 @ (B2 @ mean) + _or_zeros(layer.bias) - _or_zeros(rounded.bias)
    return Split(
        truncation=max(energy - 2 * kept + whole, 0.0) * unit,
        rounding=max(whole - 2 * both + whole2, 0.0) * unit,
        latent=_latent_energy(rounded, C, mean, latent) * unit,
        offset=float(np.square(shift).sum()) * unit,
        cross=2 * ((kept - kept2) - (whole - both)) * unit,
    )


def dense_share(weight: Array, rounded: Array, covariance: Array, *, energy: float | None = None) -> float:
    """Share of the output energy that a dense layer loses to the rounding of its weight, its bias corrected."""
    energy = output_energy(weight, covariance) if energy is None else energy
    return output_energy(np.asarray(weight, np.float64) - rounded, covariance) / energy if energy > 0 else 0.0


def _overlap(A: Array, other: Array, between: Array) -> float:
    """tr(A B C B'ᵀ A'ᵀ), where B C B'ᵀ stands between."""
    return float(((A.T @ other) * between).sum())


def latent_noise(rounded: Replacement, covariance: Array, mean: Array, latent: Activations | float) -> Array:
    """(r,) variance of the error that the latent's int8 grid adds to each component.

    0 is on every grid, so rounding never moves a component by more than itself.
    """
    B = rounded.B.astype(np.float64)
    variance, middle = ((B @ covariance) * B).sum(axis=1).clip(min=0.0), B @ mean
    span = latent if isinstance(latent, (int, float)) else latent_span(middle, variance, latent)
    return np.asarray(np.minimum(grid_noise(span), variance + np.square(middle)))


def _latent_energy(rounded: Replacement, covariance: Array, mean: Array, latent: Activations | float) -> float:
    cost = np.square(rounded.A.astype(np.float64)).sum(axis=0)
    return float(cost @ latent_noise(rounded, covariance, mean, latent))


def _or_zeros(bias: Array | None) -> Array | float:
    return 0.0 if bias is None else bias.astype(np.float64)
