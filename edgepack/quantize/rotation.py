"""Latent rotation: A B = (A G)(G⁻¹ B) for every invertible G, but not every G quantizes equally well.

With orthonormal A the latent's components have standard deviations σ_k that span decades, and one int8 scale for the
whole latent leaves the small ones no levels. G = Σ^β R with a rotation R spreads the energy: over the latent, over the
rows of B and over the columns of A. Which β and which of several random rotations is best depends on the largest
weights that it leaves, so a few are tried. (Rotations before rounding: Chee et al., "QuIP: 2-Bit Quantization of Large
Language Models With Guarantees", NeurIPS 2023.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.scheme import Activations
from edgepack.model.types import Array, Spectrum
from edgepack.quantize.gptq import DAMPING
from edgepack.quantize.grids import WeightGrid

BETA = 0.5
BETAS = (0.5, 0.25, 0.75)
ROTATIONS = 8
"""Random ones that are tried for every β; the identity is tried as well."""
ACTIVATION_STEPS = 255
LATENT_DEVIATIONS = 5.0
"""A static grid is predicted to cover this many standard deviations of the widest component each way."""

Rounding = Literal["nearest", "gptq"]


@dataclass(frozen=True)
class LatentRotation:
    """One basis of the latent.

    Attributes:
        beta: of Σ^β.
        rotation: which of the seeded random rotations; None for none.
        noise: predicted output energy that the grids add, in the unit of the spectrum's energies.
    """

    beta: float
    rotation: int | None
    noise: float = float("nan")


def balanced(factors: Replacement, spectrum: Spectrum, *, seed: int) -> Replacement:
    """The latent rotation that is good without a search: β = ½ and the first rotation. All components carry alike.

    Args:
        factors: as a factorizer returned them, A = U_r or the first columns of an oblique basis.
        spectrum: the energies σ_k² behind them.
        seed: of the rotations.
    """
    return turned(factors, spectrum, LatentRotation(BETA, 0), seed=seed)


def turned(factors: Replacement, spectrum: Spectrum, latent_rotation: LatentRotation, *, seed: int) -> Replacement:
    """The same product in another basis: A G and G⁻¹ B; the bias stays.

    Args:
        factors: as a factorizer returned them, A = U_r or the first columns of an oblique basis.
        spectrum: the energies σ_k² behind them.
        latent_rotation: from `search_latent_rotation`, with the same seed.
        seed: of the rotations.
    """
    scale = _scale(spectrum, factors.rank, latent_rotation.beta)
    turn = rotation(factors.rank, latent_rotation.rotation, seed)
    A = factors.A.astype(np.float64) @ (scale[:, None] * turn)
    B = (turn.T / scale) @ factors.B.astype(np.float64)
    return low_rank(A.astype(np.float32), B.astype(np.float32), factors.bias)


def search_latent_rotation(
    factors: Replacement,
    spectrum: Spectrum,
    grids: tuple[WeightGrid, WeightGrid],
    *,
    seed: int,
    latent: Activations = "dynamic",
    rounding: Rounding = "gptq",
    gradient: Array | None = None,
) -> LatentRotation:
    """The best of some β and rotations for one pair of grids; see `search_latent_rotations`."""
    (found,) = search_latent_rotations(
        factors, spectrum, [grids], seed=seed, latent=latent, rounding=rounding, gradient=gradient
    )
    return found


def search_latent_rotations(
    factors: Replacement,
    spectrum: Spectrum,
    choices: Sequence[tuple[WeightGrid, WeightGrid]],
    *,
    seed: int,
    latent: Activations = "dynamic",
    rounding: Rounding = "gptq",
    gradient: Array | None = None,
) -> list[LatentRotation]:
    """The best of some β and rotations by predicted noise: of A and B on their grids, and of the latent on its own.

    Every weight is taken to be off by a uniform error of variance step²/12, independently, as in
    `edgepack.plan.loss`; steps are those of the candidate's own largest weights. A rank r costs r² (out + in)
    multiplications per candidate. The one of `balanced` is among the candidates and wins ties.

    Args:
        factors: as a factorizer returned them, A = U_r or the first columns of an oblique basis.
        spectrum: with `inputs`, their variance weighs the error of B; without, inputs count as white.
        choices: grids of A and of B; every candidate is made once for all of them.
        seed: of the rotations.
        latent: how it is rounded, if it is.
        rounding: of the weights, which the choice depends on: a rotation makes components alike and correlated, and
            GPTQ takes errors from where it can make up for them.
        gradient: (out, out) G, what errors of the output cost; None for the identity.

    Returns:
        One for each choice.
    """
    rank = factors.rank
    power, mean = _input(spectrum, factors.B.shape[1])
    turns = [(index, rotation(rank, index, seed).astype(np.float32)) for index in (*range(ROTATIONS), None)]
    energies = spectrum.energies[:rank].astype(np.float64)
    inner, output = _costs(factors.A, spectrum, gradient)
    found: list[list[LatentRotation]] = [[] for _ in choices]
    for beta in BETAS:
        scale = _scale(spectrum, rank, beta)
        A0 = np.asarray(factors.A * scale, np.float32)
        B0 = np.asarray(factors.B / scale[:, None], np.float32)
        middle, metric = (B0 @ mean), inner * np.outer(scale, scale)
        spread = np.diag(energies / np.square(scale))
        for index, turn in turns:
            exact = turn.astype(np.float64)
            cost, variance = exact.T @ metric @ exact, exact.T @ spread @ exact
            one = _Turned(
                A=A0 @ turn,
                B=turn.T @ B0,
                cost=np.diag(cost),
                variance=np.diag(variance),
                mean=turn.T @ middle,
                cost_left=_left(cost, rounding),
                variance_left=_left(variance, rounding),
            )
            for latent_rotations, grids in zip(found, choices, strict=True):
                latent_rotations.append(LatentRotation(beta, index, _noise(one, grids, power, latent, output)))
    return [min(latent_rotations, key=lambda latent_rotation: latent_rotation.noise) for latent_rotations in found]


def latent_span(mean: Array, variance: Array, latent: Activations) -> float:
    """The range that an int8 grid for the latent has to cover, from mean and variance (r,) of its components."""
    if latent == "float":
        return 0.0
    if latent == "static":
        reach = LATENT_DEVIATIONS * np.sqrt(variance)
        return float(max((mean + reach).max(), 0.0) - min((mean - reach).min(), 0.0))
    # The expected largest of r normal numbers (Blom, 1958); the components of a balanced latent are alike.
    rank = len(mean)
    extreme = max(NormalDist().inv_cdf((rank - 0.375) / (rank + 0.25)), 0.5)
    return 2 * extreme * float(np.sqrt(np.mean(variance + np.square(mean))))


def grid_noise(span: float) -> float:
    """Variance of rounding to 256 levels over a span."""
    return (span / ACTIVATION_STEPS) ** 2 / 12


@dataclass(frozen=True)
class _Turned:
    """A candidate.

    Attributes:
        A, B: its factors.
        cost, variance, mean: (r,) of the latent's components; what an error there costs.
        cost_left, variance_left: (r,) what of the two is left to errors of B and A after the rounding.
    """

    A: Array
    B: Array
    cost: Array
    variance: Array
    mean: Array
    cost_left: Array
    variance_left: Array


def _costs(A: Array, spectrum: Spectrum, gradient: Array | None) -> tuple[Array, Array]:
    """(r, r) Aᵀ G A, what errors of the latent cost, and (out,) the diagonal of G."""
    if gradient is not None:
        return np.asarray(A.T @ (gradient @ A), np.float64), np.diag(gradient).astype(np.float64)
    inner = np.eye(A.shape[1]) if spectrum.dual is None else np.asarray(A.T @ A, np.float64)
    return inner, np.ones(len(A))


def _noise(
    one: _Turned, grids: tuple[WeightGrid, WeightGrid], power: Array, latent: Activations, output: Array
) -> float:
    first = _weight_noise(one.B, power, grids[1])
    entered = np.zeros(len(one.mean))
    if latent != "float":
        entered = np.minimum(grid_noise(_span(one, latent)), one.variance + np.square(one.mean))
    last = _weight_noise(one.A, one.variance_left + entered, grids[0])
    return float(one.cost_left @ first + one.cost @ entered + output @ last)


def _left(moment: Array, rounding: Rounding) -> Array:
    """(r,) by what errors of B's rows, or of A's columns, cost: those of GPTQ what the Cholesky factor leaves."""
    from scipy.linalg import cholesky

    if rounding != "gptq":
        return np.diag(moment)
    added = max(DAMPING * float(np.trace(moment)) / len(moment), float(np.finfo(float).tiny))
    return np.asarray(np.square(np.diag(cholesky(moment + added * np.eye(len(moment)), check_finite=False))))


def _span(one: _Turned, latent: Activations) -> float:
    """A dynamic grid covers the widest component of a row, however narrow the others are."""
    span = latent_span(one.mean, one.variance, latent)
    if latent != "dynamic":
        return span
    widest = float(np.sqrt((one.variance + np.square(one.mean)).max(initial=0.0)))
    return max(span, 2 * widest)


def _weight_noise(weight: Array, power: Array, grid: WeightGrid) -> Array:
    """(out,) Σ_j step_j²/12 power_j: biases make up for the mean, so `power` is the variance of the inputs."""
    columns = weight.shape[1]
    starts = np.arange(0, columns, grid.block or columns)
    peaks = np.maximum.reduceat(np.abs(weight), starts, axis=1).astype(np.float64)
    peaks = np.full_like(peaks, peaks.max(initial=0)) if grid.shared else peaks
    # Of the two grids of a block the better one is as fine as one with a code more on both sides.
    qmax = grid.qmax if grid.block is None else grid.qmax + 1
    return np.asarray(np.square(peaks / qmax) @ np.add.reduceat(power, starts) / 12)


def _input(spectrum: Spectrum, features: int) -> tuple[Array, Array]:
    if spectrum.inputs is None:
        return np.ones(features), np.zeros(features)
    mean = np.zeros(features) if spectrum.mean is None else spectrum.mean
    return np.clip(spectrum.inputs.variance, 0.0, None), mean


def _scale(spectrum: Spectrum, rank: int, beta: float) -> Array:
    """(r,) σ^β with a geometric mean of 1."""
    sigma = np.sqrt(spectrum.energies[:rank])
    floor = max(float(sigma.max()) * 1e-3, float(np.finfo(np.float32).tiny))
    scale = np.maximum(sigma, floor) ** beta
    return np.asarray(scale / np.exp(np.log(scale).mean()))


def rotation(rank: int, index: int | None, seed: int) -> Array:
    """(r, r) float64, orthogonal, uniformly distributed: QR of normal numbers with the signs made unique."""
    if index is None:
        return np.eye(rank)
    entropy = [seed, rank] if index == 0 else [seed, rank, index]
    q, r = np.linalg.qr(np.random.default_rng(entropy).standard_normal((rank, rank)))
    return np.asarray(q * np.sign(r.diagonal()))
