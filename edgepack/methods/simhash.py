"""Random hyperplanes: A ≈ R S D for A = Wᵀ, where S keeps only on which side of each hyperplane a column lies.

R ~ N(0, 1) (in, k) is drawn, S = sign(Rᵀ A) (k, out), D is diagonal: y = ((x R) S) D. Two columns' signs agree with a
probability that falls linearly with their angle (Charikar, "Similarity Estimation Techniques from Rounding
Algorithms", STOC 2002; Goemans and Williamson, 1995), so S is enough to tell directions. The simhash of Google's matrix
compression operator takes D = column norms of A / of R S; the scale of least squares, taken here, never loses more.
"""

from __future__ import annotations

import numpy as np

from edgepack.factorize.leastsquares import corrected_bias, metric, through
from edgepack.methods.budget import pair_rank, too_small
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array


def simhash(layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement | str:
    """A = (S D)ᵀ (out, k), B = Rᵀ (k, in): each row of A is ± one number, which 8 bits per row store exactly.

    With data, D is the scale of least squares in the metric C of the inputs, and of the two sign vectors sign(Rᵀ w) and
    sign(Rᵀ C w) each output w takes the one that loses less.

    Args:
        layer: whose W becomes A B.
        share: of out · in numbers that the two factors may take.
        seed: of R.
        gradient: not used.
    """
    rank = pair_rank(share, *layer.weight.shape)
    if rank < 1:
        return too_small(share, sum(layer.weight.shape) / layer.weight.size)
    right = np.random.default_rng(seed).standard_normal((rank, layer.in_features)).astype(np.float32)
    weight = layer.weight.astype(np.float64)
    covariance = metric(layer)
    weighed = through(right, covariance)
    projections = weight @ weighed.T
    gram = weighed @ right.T
    signs = _sign(weight @ right.T)
    scales, gained = _fit(signs, projections, gram)
    if covariance is not None:
        others = _sign(projections)
        other_scales, others_gained = _fit(others, projections, gram)
        better = others_gained > gained
        signs[better], scales[better] = others[better], other_scales[better]
    left = (signs * scales[:, None]).astype(np.float32)
    return low_rank(left, right, corrected_bias(layer, left @ right))


def _sign(values: Array) -> Array:
    """+1 or −1, float64: a zero would need a third code."""
    return np.where(values >= 0, 1.0, -1.0)


def _fit(signs: Array, projections: Array, gram: Array) -> tuple[Array, Array]:
    """Best scale of each output's R s and the energy it explains, (wᵀ C R s)² / (sᵀ Rᵀ C R s)."""
    aligned = np.einsum("ok,ok->o", projections, signs)
    energy = np.einsum("ok,ok->o", signs @ gram, signs)
    scales = np.divide(aligned, energy, out=np.zeros_like(aligned), where=energy > 0)
    return scales, aligned * scales
