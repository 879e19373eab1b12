"""Random gradients at a model's output whose second moment is the curvature there.

With v a random vector at the output, chosen so that E[v vᵀ] is the wanted curvature H, the gradient g = Jᵀ v further
inside has E[g gᵀ] = Jᵀ H J, the (generalized) Gauss-Newton matrix.

Class scores: H is the Fisher matrix diag(p) − p pᵀ of the softmax. Gradients of −log p at labels drawn from p would
give it too, but the rare labels that matter in a converged model (p = 0.9999) hardly ever come up in a few hundred
samples, and labels taken at the model's own arg max give next to nothing. v = √p ∘ ε − p ⟨√p, ε⟩ with E[ε εᵀ] = I has
the same second moment without rare events. The ε of one sample are orthogonal, so as many draws as classes give its
Fisher matrix exactly.

Other outputs: H = I, the Gauss-Newton matrix of half the squared error, again with orthogonal draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgepack.model.types import Array

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["classes", "vector"]

DRAWS = 2
"""Backward passes per run. Runs differ more than draws, so more samples serve better than more draws of each."""

EXACT_CLASSES = 16
"""Up to so many classes every run takes as many draws as there are classes: its Fisher matrix without sampling."""

SMALLEST_SHARE = 1e-30


def draws(output: Array, kind: Kind, rng: np.random.Generator) -> Iterator[Array]:
    """Vectors v at the output whose mean v vᵀ is the curvature of each sample, nothing between samples.

    Args:
        output: "classes": (…, classes) logits, or probabilities; "vector": (samples, …).

    Yields:
        Arrays of the output's size.
    """
    if kind == "vector" or not output.ndim:
        count = samples_of(output)
        yield from _orthogonal(count, output.size // count, DRAWS, rng)
        return
    scores = output.reshape(-1, output.shape[-1])
    size = scores.shape[1]
    for noise in _orthogonal(len(scores), size, size if size <= EXACT_CLASSES else DRAWS, rng):
        yield _fisher_direction(scores, noise)


def _orthogonal(count: int, size: int, wanted: int, rng: np.random.Generator) -> Iterator[Array]:
    """`wanted` arrays (count, size), at most `size` of them, whose rows have the second moment I.

    The draws of one row are orthogonal: `size` of them have it exactly. Signs make rows independent of each other.
    """
    frame, _ = np.linalg.qr(rng.standard_normal((count, size, min(wanted, size))))
    signs = rng.choice([-1.0, 1.0], (count, 1, frame.shape[2]))
    yield from np.moveaxis(frame * signs * size**0.5, 2, 0)


def are_shares(scores: Array) -> bool:
    """Whether all rows, on the last axis, are probabilities."""
    return bool((scores >= 0).all()) and np.allclose(scores.sum(axis=-1), 1.0, atol=1e-3)


def shares_of(scores: Array) -> Array:
    """The softmax of every row, on the last axis."""
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=-1, keepdims=True))


def _fisher_direction(scores: Array, noise: Array) -> Array:
    """(rows, classes): what `noise` becomes as a gradient with the second moment of that of −log p."""
    if are_shares(scores):
        # Probabilities: diag(1 / p), which the model's own softmax turns into diag(p) − p pᵀ.
        return np.asarray(noise / np.sqrt(np.maximum(scores, SMALLEST_SHARE)))
    shares = shares_of(scores)
    root = np.sqrt(shares)
    return np.asarray(root * noise - shares * (root * noise).sum(axis=1, keepdims=True))


def samples_of(output: Array | Tensor) -> int:
    """The first axis is that of the samples, unless it is the only one."""
    return len(output) if output.ndim > 1 else 1
