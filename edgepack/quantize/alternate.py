"""Rounding of a pair: each factor is fitted anew to the rounded other one, then rounded itself, and so on.

    B̂ = GPTQ((Âᵀ G Â)⁻¹ Âᵀ G W, C),    Â = GPTQ(W C B̂ᵀ H⁻¹, H) with H = B̂ C B̂ᵀ

The fits are exact least squares under tr(G ΔW C ΔWᵀ), so what one factor lost in rounding the other takes up as far as
it lies in its span. An error in a row of B matters through Âᵀ G Â, which couples the rows: GPTQ is told of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array
from edgepack.quantize.gptq import Rounded, gptq, planes, round_to_nearest
from edgepack.quantize.grids import WeightGrid

ROUNDS = 6
GAIN = 0.01
"""A round counts if the error that rounding adds falls by this share."""

PATIENCE = 2
"""Rounds that do not count before it ends: a round may be worse than the one before it, and the next one better."""

RIDGE = 1e-9


@dataclass(frozen=True)
class RoundedPair:
    """A pair on its grids.

    Attributes:
        A, B: the factors.
        added: what rounding adds to tr(G ΔW C ΔWᵀ) of W − A B; below 0 where the pair was not the best of its rank.
        rounds: that were gone through.
    """

    A: Rounded
    B: Rounded
    added: float
    rounds: int

    def factors(self, bias: Array | None) -> Replacement:
        """The pair with a bias, for the places that take factors."""
        return low_rank(self.A.weight, self.B.weight, bias)


def alternate(
    weight: Array,
    pair: Replacement,
    covariance: Array,
    grids: tuple[WeightGrid, WeightGrid],
    *,
    gradient: Array | None = None,
    latent_noise: float = 0.0,
    rounds: int = ROUNDS,
) -> RoundedPair:
    """The best pair on its grids that was met; never worse than round to nearest, or than GPTQ of each factor.

    Args:
        weight: (out, in) float32, W.
        pair: in the basis it shall have, roughly kept: from `edgepack.quantize.rotation`.
        covariance: (in, in) C, shrunk where samples are few.
        grids: of A and of B.
        gradient: (out, out) G; None for the identity.
        latent_noise: variance per component that the latent's own grid will add. A ridge that keeps A small.
        rounds: at most; 0 for GPTQ of each factor alone.
    """
    view = _View(np.asarray(weight, np.float64), np.asarray(covariance, np.float64), gradient, latent_noise)
    exact = _loss(view, pair.A, _seen(view, pair.B))

    def candidate(A: Rounded, B: Rounded, seen: _Seen, index: int) -> RoundedPair:
        return RoundedPair(A, B, _loss(view, A.weight, seen) - exact, index)

    A, B = round_to_nearest(pair.A, grids[0]), round_to_nearest(pair.B, grids[1])
    best = candidate(A, B, _seen(view, B.weight), 0)
    ready = planes(view.covariance)
    B = gptq(pair.B, ready, grids[1], outputs=_cost(view, pair.A))
    seen = _seen(view, B.weight)
    A = gptq(pair.A, seen.latent, grids[0], outputs=gradient)
    best = min(best, candidate(A, B, seen, 0), key=lambda one: one.added)
    idle = 0
    for index in range(1, rounds + 1):
        B = gptq(_fit_first(view, A.weight), ready, grids[1], outputs=_cost(view, A.weight))
        seen = _seen(view, B.weight)
        A = gptq(_solve(seen.latent, seen.output).T.astype(np.float32), seen.latent, grids[0], outputs=gradient)
        one = candidate(A, B, seen, index)
        idle = 0 if best.added - one.added > GAIN * max(best.added, 0.0) else idle + 1
        best = min(best, one, key=lambda each: each.added)
        if idle == PATIENCE:
            break
    return best


@dataclass(frozen=True)
class _View:
    """Float64 throughout: errors are small differences of large sums.

    Attributes:
        weight: (out, in) W.
        covariance: (in, in) C.
        gradient: (out, out) G or None.
        latent_noise: see `alternate`.
    """

    weight: Array
    covariance: Array
    gradient: Array | None
    latent_noise: float


@dataclass(frozen=True)
class _Seen:
    """What flows through one B, from products no larger than the factors.

    Attributes:
        latent: (r, r) B C Bᵀ, and the noise of the latent's grid.
        output: (r, out) B C Wᵀ.
    """

    latent: Array
    output: Array


def _seen(view: _View, B: Array) -> _Seen:
    B = np.asarray(B, np.float64)
    seen = B @ view.covariance
    latent = seen @ B.T
    latent[np.diag_indices(len(latent))] += view.latent_noise
    return _Seen(latent, seen @ view.weight.T)


def _loss(view: _View, A: Array, seen: _Seen) -> float:
    """tr(G E C Eᵀ) + noise · tr(Âᵀ G Â) with E = W − A B, less tr(G W C Wᵀ), which is the same for every pair."""
    A = np.asarray(A, np.float64)
    GA = A if view.gradient is None else view.gradient @ A
    return float(((A.T @ GA) * seen.latent).sum()) - 2 * float((GA.T * seen.output).sum())


def _cost(view: _View, A: Array) -> Array:
    """(r, r) Âᵀ G Â: what errors of the latent cost."""
    A = np.asarray(A, np.float64)
    return np.asarray(A.T @ (A if view.gradient is None else view.gradient @ A))


def _fit_first(view: _View, A: Array) -> Array:
    A = np.asarray(A, np.float64)
    GA = A if view.gradient is None else view.gradient @ A
    return _solve(A.T @ GA, GA.T @ view.weight).astype(np.float32)


def _solve(gram: Array, right: Array) -> Array:
    """gram⁻¹ right for a symmetric gram, ridged: columns that vanished in rounding get zeros."""
    ridge = RIDGE * float(np.trace(gram)) / len(gram)
    ridged = gram + np.eye(len(gram)) * (ridge or 1.0)
    return np.asarray(np.linalg.solve(ridged, right))
