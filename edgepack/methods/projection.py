"""Layers with one factor that is drawn at random and stays, and the other fitted to it.

A random subspace of dimension k keeps distances roughly (Johnson and Lindenstrauss, 1984; Halko, Martinsson and Tropp,
"Finding Structure with Randomness", 2011). These are the random and output projections of Google's matrix compression
operator. At equal rank `whitened`, which chooses its subspace, never loses more: what a fixed factor buys is
that it need not be stored or trained.
"""

from __future__ import annotations

import numpy as np

from edgepack.factorize.leastsquares import corrected_bias, left_factor, metric
from edgepack.methods.budget import pair_rank, too_small
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array

DAMPING = 0.01
"""Share of the mean gradient energy that every output counts at least."""


def random_projection(layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement | str:
    """B (k, in) random with orthonormal rows, A = W C Bᵀ (B C Bᵀ)⁻¹ (out, k): least squares for that B.

    Args:
        layer: whose W becomes A B; without data C is the identity.
        share: of out · in numbers that the two factors may take.
        seed: of B.
        gradient: not used: the best A is the same for every weighing of the outputs.
    """
    rank = pair_rank(share, *layer.weight.shape)
    if rank < 1:
        return too_small(share, sum(layer.weight.shape) / layer.weight.size)
    right = orthonormal(layer.in_features, rank, seed).T
    return _pair(layer, left_factor(layer.weight, right, metric(layer)), right)


def output_projection(layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement | str:
    """A (out, k) random with orthonormal columns, B = (Aᵀ G A)⁻¹ Aᵀ G W (k, in): least squares for that A.

    The covariance of the inputs cancels out of B; it only corrects the bias.

    Args:
        layer: whose W becomes A B.
        share: of out · in numbers that the two factors may take.
        seed: of A.
        gradient: G, (out, out), the second moment of the loss gradient at the output; None for the identity.
    """
    rank = pair_rank(share, *layer.weight.shape)
    if rank < 1:
        return too_small(share, sum(layer.weight.shape) / layer.weight.size)
    left = orthonormal(layer.out_features, rank, seed)
    return _pair(layer, left, left_factor(layer.weight.T, left.T, damped(gradient)).T)


def orthonormal(size: int, count: int, seed: int) -> Array:
    """(size, count) float64 with orthonormal columns, uniform over subspaces."""
    return np.asarray(np.linalg.qr(np.random.default_rng(seed).standard_normal((size, count)))[0])


def damped(gradient: Array | None) -> Array | None:
    """G plus 1 % of its mean diagonal: a direction without gradient would leave B undetermined."""
    if gradient is None or np.trace(gradient) <= 0:
        return None
    return np.asarray(gradient + DAMPING * np.trace(gradient) / len(gradient) * np.eye(len(gradient)))


def _pair(layer: View, left: Array, right: Array) -> Replacement:
    a = np.ascontiguousarray(left, np.float32)
    b = np.ascontiguousarray(right, np.float32)
    return low_rank(a, b, corrected_bias(layer, a @ b))
