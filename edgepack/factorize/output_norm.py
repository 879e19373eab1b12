"""What an error of the weight costs at the layer's output, and the bias that makes up for its mean.

With a bias of its own, W ≈ M loses E‖(W − M)(x − μ)‖² = tr((W − M) C (W − M)ᵀ) over inputs of mean μ and covariance C.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgepack.factorize.whitened import shrunk_covariance
from edgepack.types import Array, Coded, LinearLayer


def input_covariance(layer: LinearLayer) -> Array | None:
    """C_λ, (in, in) float64; None if nothing is known of the input, or it never varies: the bias says it all."""
    if layer.moments is None:
        return None
    covariance = shrunk_covariance(layer.moments)
    return covariance if np.trace(covariance) > 0 else None


def input_variances(layer: LinearLayer) -> Array:
    """(in,) float64: the diagonal of C_λ; ones where nothing is known of the input."""
    covariance = input_covariance(layer)
    return np.ones(layer.in_features) if covariance is None else np.diag(covariance).copy()


def output_loss(layer: LinearLayer, weight: Array) -> float:
    """tr((W − M) C_λ (W − M)ᵀ) of M (out, in); the squared difference itself where nothing is known of the input."""
    error = layer.weight.astype(np.float64) - weight
    covariance = input_covariance(layer)
    return float(np.square(error).sum() if covariance is None else ((error @ covariance) * error).sum())


def corrected_bias(layer: LinearLayer, weight: Array) -> Array | None:
    """b + (W − M) μ, (out,) float32: the mean output is exact. The layer's own bias where no mean is known."""
    if layer.moments is None:
        return layer.bias
    correction = (layer.weight.astype(np.float64) - weight) @ layer.moments.mean
    return np.asarray(correction if layer.bias is None else layer.bias + correction, np.float32)


def with_corrected_bias(layer: LinearLayer, coded: Coded) -> Coded:
    """The same code, and the bias that makes its mean output that of the layer."""
    return replace(coded, bias=corrected_bias(layer, coded.weight))
