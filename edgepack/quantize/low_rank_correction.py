"""A dense matrix in few bits with a thin pair beside it: W ≈ Q + A B.

Quantizing what the pair leaves and factoring what quantizing leaves take turns (Li et al., "LoftQ", ICLR 2024), the
pair being the best one for the layer's output and not for its weight. It starts from either side: from the rounded W,
or from its leading components taken out first, so that what is left needs smaller steps (Li et al., "SVDQuant", ICLR
2025).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array
from edgepack.quantize.gptq import Planes, Rounded, gptq, output_energy, planes
from edgepack.quantize.grids import WeightGrid
from edgepack.quantize.rotation import rotation

ROUNDS = 3


@dataclass(frozen=True)
class FittedCorrection:
    """W ≈ base + A B.

    Attributes:
        base: (out, in) on its grid.
        factors: the pair, real-valued and without a bias.
        error: tr(ΔW C ΔWᵀ).
    """

    base: Rounded
    factors: Replacement
    error: float


def fit_correction(
    weight: Array, covariance: Array, grid: WeightGrid, rank: int, *, rounds: int = ROUNDS
) -> FittedCorrection:
    """The best that was met, never worse than the rounded matrix alone.

    Args:
        weight: (out, in) float32.
        covariance: (in, in) C of the inputs.
        grid: of the dense part.
        rank: of the pair, 1 … min(out, in).
        rounds: from each of the two starts.
    """
    C = np.asarray(covariance, np.float64)
    W = np.asarray(weight, np.float64)
    ready = planes(covariance)
    found: list[FittedCorrection] = []
    for product in (np.zeros_like(W), _product(leading(W, C, rank))):
        for _ in range(rounds):
            one = _round(W, C, ready, grid, rank, product)
            found.append(one)
            product = _product(one.factors)
    return min(found, key=lambda one: one.error)


@dataclass(frozen=True)
class RoundedCorrection:
    """W ≈ base + A B with all three on their grids; error: tr(ΔW C ΔWᵀ)."""

    base: Rounded
    A: Rounded
    B: Rounded
    error: float


def fit_rounded_correction(
    weight: Array,
    covariance: Array,
    grids: tuple[WeightGrid, WeightGrid, WeightGrid],
    rank: int,
    *,
    seed: int,
    rounds: int = ROUNDS,
) -> RoundedCorrection:
    """The matrix and its pair on their grids: what rounding the pair loses, the matrix makes up for where that pays.

    Args:
        weight: (out, in) float32.
        covariance: (in, in) C of the inputs.
        grids: of the dense matrix, of A and of B.
        rank: of the pair.
        seed: of the rotation that lets all components of the pair carry alike.
        rounds: see `fit_correction`.
    """
    W, C = np.asarray(weight, np.float64), np.asarray(covariance, np.float64)
    ready = planes(covariance)
    exact = fit_correction(weight, covariance, grids[0], rank, rounds=rounds)
    turn = rotation(rank, 0, seed)
    B = gptq(np.asarray(turn.T @ exact.factors.B, np.float32), ready, grids[2])
    latent = B.weight.astype(np.float64) @ C @ B.weight.T
    A = gptq(np.asarray(exact.factors.A @ turn, np.float32), latent, grids[1])
    product = A.weight.astype(np.float64) @ B.weight
    again = gptq(W - product, ready, grids[0])
    both = [RoundedCorrection(base, A, B, output_energy(W - base.weight - product, C)) for base in (exact.base, again)]
    return min(both, key=lambda one: one.error)


def leading(matrix: Array, covariance: Array, rank: int) -> Replacement:
    """The pair of a rank that keeps most of the output energy tr(M C Mᵀ): A = U_r, B = U_rᵀ M, U of M C^½.

    From the smaller of the two Gram matrices, like `edgepack.factorize.whitened`.
    """
    from scipy.linalg import eigh

    rows, columns = matrix.shape
    seen = matrix @ covariance
    if rows <= columns:
        basis = eigh(seen @ matrix.T, subset_by_index=[rows - rank, rows - 1], check_finite=False)[1]
    else:
        # With S = C^½ the right singular vectors V of M S give U from M S V by orthonormalising.
        values, vectors = eigh(covariance, check_finite=False)
        root = vectors * np.sqrt(np.clip(values, 0.0, None))
        through = matrix @ root
        right = eigh(through.T @ through, subset_by_index=[columns - rank, columns - 1], check_finite=False)[1]
        basis = np.linalg.qr(through @ right)[0]
    A = np.ascontiguousarray(basis, np.float32)
    return low_rank(A, np.asarray(A.T.astype(np.float64) @ matrix, np.float32), None)


def _round(W: Array, C: Array, ready: Planes, grid: WeightGrid, rank: int, product: Array) -> FittedCorrection:
    base = gptq(W - product, ready, grid)
    left = W - base.weight
    factors = leading(left, C, rank)
    return FittedCorrection(base, factors, output_energy(left - _product(factors), C))


def _product(factors: Replacement) -> Array:
    return factors.A.astype(np.float64) @ factors.B
