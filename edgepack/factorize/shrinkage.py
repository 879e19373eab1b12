"""How far to shrink a covariance of few rows, chosen on held-out calibration data by moments alone.

C_λ = (1 − λ) C + λ (tr C / n) I. The error that counts is not that of C but that of the layer truncated by it, on rows
that C was not made from. For centred whitening with basis U it is E‖(I − U_r U_rᵀ) W (x − μ)‖², and with E = W S Wᵀ, S
the second moment of the held-out rows about μ, it is tr E − Σ_{i<r} u_iᵀ E u_i: one product gives it for all ranks, one
decomposition of the smaller side of W gives it for one λ, and no row is looked at twice.

Candidates are a grid and three estimates: n/(n + 4N); the oracle approximating shrinkage (Chen, Wiesel, Eldar and Hero,
"Shrinkage Algorithms for MMSE Covariance Estimation", IEEE Transactions on Signal Processing 58, 2010); and Ledoit and
Wolf's ("A Well-Conditioned Estimator for Large-Dimensional Covariance Matrices", Journal of Multivariate Analysis 88,
2004) with the variance of C taken from how the parts differ, which rows that depend on each other do not deceive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgepack.errors import DataError
from edgepack.factorize.refit import pooled_inputs
from edgepack.model.layer import View
from edgepack.model.types import Array, Moments

GRID = (0.003, 0.01, 0.03, 0.1, 0.2, 0.4)
FORMULAS = ("n/(n+4N)", "oas", "ledoit-wolf")


@dataclass(frozen=True)
class Shrinkage:
    """The chosen λ and what it was chosen from.

    Attributes:
        value: λ for the moments of all parts together.
        name: the winning candidate: one of `FORMULAS`, or the λ of the grid as text.
        errors: by candidate, (ranks,) held-out output energy lost as a share of the held-out output energy.
        ranks: that were looked at.
    """

    value: float
    name: str
    errors: dict[str, Array]
    ranks: tuple[int, ...]

    def score(self, name: str) -> float:
        """Geometric mean over the ranks of the lost share: a per cent less counts the same at every rank."""
        return float(np.exp(np.log(np.maximum(self.errors[name], 1e-12)).mean()))


def fixed(moments: Moments) -> float:
    """n / (n + 4 N)."""
    features = len(moments.mean)
    return features / (features + 4 * moments.count)


def oas(moments: Moments) -> float:
    """Oracle approximating shrinkage (Chen et al., 2010, eq. 23): exact for independent normal rows."""
    features, rows = len(moments.mean), moments.count
    covariance = moments.covariance
    squares, trace = float(np.square(covariance).sum()), float(np.trace(covariance))
    above = (1 - 2 / features) * squares + trace**2
    below = (rows + 1 - 2 / features) * (squares - trace**2 / features)
    return float(np.clip(above / below, 0.0, 1.0)) if below > 0 else 1.0


def ledoit_wolf(parts: Sequence[Moments]) -> float:
    """b² / d²: the variance of C over its distance from tr C / n · I, the variance from the spread of the parts.

    Σ_k s_k² ‖C_k − C‖² over 1 − Σ s_k² estimates E‖C − E C‖² Σ s_k² for parts of shares s_k; equal parts give
    Σ ‖C_k − C‖² / (K (K − 1)).
    """
    seen = pooled_inputs(parts)
    covariance = seen.covariance
    shares = np.array([part.count for part in parts]) / seen.count
    away = [float(np.square(about(part, seen.mean) - covariance).sum()) for part in parts]
    concentration = float(np.square(shares).sum())
    variance = float(shares @ away) * concentration / (1 - concentration)
    features = len(seen.mean)
    distance = float(np.square(covariance).sum()) - float(np.trace(covariance)) ** 2 / features
    return float(np.clip(variance / distance, 0.0, 1.0)) if distance > 0 else 1.0


def about(moments: Moments, centre: Array) -> Array:
    """(in, in) float64: E[(x − c)(x − c)ᵀ]."""
    mean = moments.mean
    return np.asarray(moments.second - np.outer(mean, centre) - np.outer(centre, mean) + np.outer(centre, centre))


def chosen(layer: View, parts: Sequence[Moments], ranks: Sequence[int], grid: Sequence[float] = GRID) -> Shrinkage:
    """λ under which the truncated layer does best on parts of the data that its covariance was not made from.

    Args:
        layer: only its weight is looked at.
        parts: three or more, of disjoint samples: each is held out once, and the estimates need two of the others.
        ranks: to look at, 1 … min(out, in) − 1.
        grid: λ in 0 … 1, beside the estimates.

    Raises:
        DataError: fewer than three parts, ranks that the layer does not have, or an input that does not vary.
    """
    _check(layer, parts, ranks)
    side = _smaller_side(layer.weight.astype(np.float64))
    names = [*FORMULAS, *(f"{value:g}" for value in grid)]
    lost = {name: np.zeros(len(ranks)) for name in names}
    energy = 0.0
    for index, held_out in enumerate(parts):
        rest = [part for other, part in enumerate(parts) if other != index]
        seen = pooled_inputs(rest)
        wanted = side @ about(held_out, seen.mean) @ side.T
        energy += held_out.count * float(np.trace(wanted))
        curves = _Curves(side, seen, wanted)
        for name, value in zip(names, [*_estimates(rest), *grid], strict=True):
            lost[name] += held_out.count * curves.at(value)[list(ranks)]
    if not energy > 0:
        raise DataError(f"{layer.name}: its output is constant over the calibration data")
    found = Shrinkage(0.0, "", {name: one / energy for name, one in lost.items()}, tuple(ranks))
    best = min(names, key=found.score)
    value = dict(zip(names, [*_estimates(parts), *grid], strict=True))[best]
    return Shrinkage(value, best, found.errors, found.ranks)


def _estimates(parts: Sequence[Moments]) -> tuple[float, float, float]:
    seen = pooled_inputs(parts)
    return fixed(seen), oas(seen), ledoit_wolf(parts)


def _smaller_side(weight: Array) -> Array:
    """(k, in), k = min(out, in), with the same WᵀW: for a tall W = Q R the directions Q U_r lose what U_r lose of R."""
    return weight if len(weight) <= weight.shape[1] else np.asarray(np.linalg.qr(weight, mode="r"))


class _Curves:
    """Held-out error at all ranks as a function of λ: the matrices that do not depend on it are made once."""

    def __init__(self, side: Array, seen: Moments, wanted: Array) -> None:
        covariance = seen.covariance
        self.sampled = side @ covariance @ side.T
        self.white = side @ side.T * (float(np.trace(covariance)) / len(covariance))
        self.wanted = wanted

    def at(self, value: float) -> Array:
        """(k + 1,) energy lost at rank 0 … k."""
        from scipy.linalg import eigh

        gram = (1 - value) * self.sampled + value * self.white
        _, basis = eigh(gram, overwrite_a=True, check_finite=False, driver="evd")
        basis = basis[:, ::-1]
        kept = ((self.wanted @ basis) * basis).sum(axis=0)
        return np.asarray(np.clip(np.trace(self.wanted) - np.concatenate([[0.0], np.cumsum(kept)]), 0.0, None))


def _check(layer: View, parts: Sequence[Moments], ranks: Sequence[int]) -> None:
    if len(parts) < 3:
        raise DataError(
            f"{layer.name}: {len(parts)} parts of the data to choose a shrinkage on, expected three or more"
        )
    most = min(layer.weight.shape) - 1
    if not ranks or min(ranks) < 1 or max(ranks) > most:
        raise DataError(f"{layer.name}: ranks {tuple(ranks)} to choose a shrinkage at, expected 1 … {most}")
    if any(part.second.shape != (layer.in_features,) * 2 for part in parts):
        raise DataError(f"{layer.name}: moments do not fit its {layer.in_features} inputs")
