"""Least squares in the metric of a layer's inputs: what fits the free numbers of a structured weight.

With inputs of mean μ and covariance C, replacing W by M (and b by b + (W − M) μ) loses E‖(W − M)(x − μ)‖² =
tr((W − M) C (W − M)ᵀ). Without data C is the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from edgepack.factorize.whitened import shrunk_covariance
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array

_NEGLIGIBLE = 1e-12
"""Eigenvalues below this share of the largest are rounding, not directions."""


def metric(layer: View) -> Array | None:
    """C, (in, in) float64, shrunk; None, for the identity, without data or where the input never varied."""
    if layer.moments is None:
        return None
    covariance = shrunk_covariance(layer.moments)
    return covariance if np.trace(covariance) > 0 else None


def input_variances(layer: View) -> Array:
    """(in,) float64: the diagonal of C_λ; ones where nothing is known of the input."""
    covariance = metric(layer)
    return np.ones(layer.in_features) if covariance is None else np.diag(covariance).copy()


def through(matrix: Array, covariance: Array | None) -> Array:
    """`matrix` C in float64; the matrix itself where C is the identity."""
    wide = matrix.astype(np.float64, copy=False)
    return wide if covariance is None else wide @ covariance


def left_factor(target: Array, right: Array, covariance: Array | None) -> Array:
    """A (out, k) float64 with the least tr((T − A B) C (T − A B)ᵀ): A = T C Bᵀ (B C Bᵀ)⁺.

    Args:
        target: T, (out, in).
        right: B, (k, in).
        covariance: C, (in, in), or None for the identity.
    """
    weighed = through(right, covariance)
    return solved(weighed @ right.T, target.astype(np.float64, copy=False) @ weighed.T)


def solved(gram: Array, right_hand: Array) -> Array:
    """Y G⁺ for a symmetric positive semidefinite G (k, k) and Y (m, k)."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > _NEGLIGIBLE * max(float(values[-1]), 0.0)
    vectors = vectors[:, kept]
    found: Array = ((right_hand @ vectors) / values[kept]) @ vectors.T
    return found


def conjugate_gradients(curvature: Callable[[Array], Array], right_hand: Array, start: Array, steps: int) -> Array:
    """A few steps from `start` towards H v = `right_hand`; each lowers ½⟨v, H v⟩ − ⟨right_hand, v⟩.

    Args:
        curvature: v ↦ H v, symmetric positive semidefinite, of the shape of `start`.
        right_hand: of the same shape.
        start: where to begin.
        steps: each takes one product with H; there is one more.

    Source: Hestenes and Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952.
    """
    residual = right_hand - curvature(start)
    direction, point = residual, start
    energy = float(np.vdot(residual, residual))
    enough = _NEGLIGIBLE**2 * float(np.vdot(right_hand, right_hand))
    for _ in range(steps):
        bent = curvature(direction)
        along = float(np.vdot(direction, bent))
        if energy <= enough or along <= 0.0:
            break
        point = point + (energy / along) * direction
        residual = residual - (energy / along) * bent
        energy, before = float(np.vdot(residual, residual)), energy
        direction = residual + (energy / before) * direction
    return point


def corrected_bias(layer: View, effective: Array) -> Array | None:
    """b + (W − M) μ, (out,) float32: the mean output stays what it was; b itself without data.

    Args:
        layer: with W and b.
        effective: M, (out, in), or the two factors' product applied in float32.
    """
    if layer.moments is None:
        return layer.bias
    correction = (layer.weight - effective) @ layer.moments.mean
    return np.asarray(correction if layer.bias is None else layer.bias + correction, np.float32)


def with_corrected_bias(layer: View, part: Replacement) -> Replacement:
    """The same code, and the bias that makes its mean output that of the layer."""
    return replace(part, bias=corrected_bias(layer, part.weight))
