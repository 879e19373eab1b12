"""What every way to write a layer is predicted to lose: tr(G ΔW C ΔWᵀ), with the noise of its integer grids.

C is the covariance of the layer's input and G the second moment of the loss gradient at its output (Martens and Grosse,
"Optimizing Neural Networks with Kronecker-factored Approximate Curvature", ICML 2015). Nothing here multiplies
matrices of the layer's size once per candidate: with the basis U of the spectrum, W C Wᵀ = U diag(σ²) Uᵀ, and
M = Uᵀ G U, made once, a rank r loses Σ_{i≥r} M_ii σ_i². A grid adds independent uniform errors of variance step²/12, of
which rounding one weight after the other leaves the share that cannot be predicted (`edgepack.quantize.gptq`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgepack.model.kinds.stages import composed
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Activations, Scheme
from edgepack.model.structure import DENSE, Structure, low_rank, low_rank_correction
from edgepack.model.types import Array, Curvature, Spectrum
from edgepack.quantize.gptq import innovation, output_energy
from edgepack.quantize.grids import decoded, grid_of, lattice, nearest
from edgepack.quantize.noise import Grid, activation_noise, grid_of_scheme, weight_noise
from edgepack.quantize.rotation import latent_span

ORTHOGONAL = 1e-3


@dataclass(frozen=True)
class Wanted:
    """What losses are wanted of.

    Attributes:
        schemes: of dense layers and pairs.
        ranks: of the pairs, 1 … len(spectrum.energies).
        corrections: ranks of pairs beside a dense matrix.
        corrected: schemes of that matrix.
    """

    schemes: Sequence[Scheme]
    ranks: Sequence[int]
    corrections: Sequence[int] = ()
    corrected: Sequence[Scheme] = ()


def layer_losses(
    layer: View,
    spectrum: Spectrum,
    curvature: Curvature | None,
    wanted: Wanted,
    factors_at: Callable[[int], Replacement],
    *,
    qmax: int,
) -> dict[tuple[Scheme, Structure], float]:
    """Predicted loss of the dense layer and of its pairs, in every scheme.

    With gradients the unit is that of twice the second-order rise of the model's loss, summed over layers as if they
    did not interact. Without them G = I / (output energy of this layer), so that the loss is the lost share of the
    layer's output energy: a rank r in fp32 loses `spectrum.lost_share()[r]`, and layers compare by that share. The two
    kinds of figures must not be mixed in one model. Biases are taken to make up for ΔW μ of the truncation, as
    centred whitening does, and for that of the rounding of weights, which later weights make up for as far as inputs
    predict each other: `InputSpread.innovation`.

    Args:
        layer: without its moments.
        spectrum: its `inputs` are what the noise is predicted from; without them inputs count as white, of mean 0 and
            variance 1, and their own quantization as free.
        curvature: of the model's loss at the layer's output; None where it is not known. Its truncation, where there is
            one, knows better than G what a rank costs in fp32.
        wanted: the ways to write it.
        factors_at: the pair of a rank as it will be quantized, any basis of U_r and U_rᵀ W.
        qmax: largest weight code of per-channel int8: 127, or 63 where the target's int8 dot products saturate.
    """
    schemes, ranks, corrections = wanted.schemes, wanted.ranks, wanted.corrections
    gradient, truncation = (None, None) if curvature is None else (curvature.moment, curvature.truncation)
    found = ((scheme, grid_of_scheme(scheme, qmax)) for scheme in schemes)
    grids = {scheme: grid for scheme, grid in found if grid is not None}
    beside = [grid for scheme in (wanted.corrected if corrections else ()) for grid in _corrected_grids(scheme)]
    activations = {grid.activations for grid in (*grids.values(), *beside)}
    most = max((*ranks, *corrections), default=0)
    view = _view(layer, spectrum, gradient, activations, most, truncated=truncation is None)
    lost = view.truncation * view.unit if truncation is None else truncation
    losses: dict[tuple[Scheme, Structure], float] = {}
    for scheme in schemes:
        losses[scheme, DENSE] = _dense_noise(view, grids[scheme]) * view.unit if scheme in grids else 0.0
    for rank in ranks:
        pair = _pair(view, factors_at(rank)) if grids else None
        for scheme in schemes:
            noise = 0.0 if pair is None or scheme not in grids else _pair_noise(view, pair, grids[scheme])
            losses[scheme, low_rank(rank)] = float(lost[rank]) + noise * view.unit
    for rank in corrections:
        pair = _pair(view, factors_at(rank))
        for scheme in wanted.corrected:
            losses[scheme, low_rank_correction(rank)] = (
                _correction_noise(view, pair, _corrected_grids(scheme)) * view.unit
            )
    return losses


@dataclass(frozen=True)
class _View:
    """One layer as all of its candidates see it; in float32 where only noise depends on it.

    Attributes:
        weight: W (out, in).
        dual: (out, r) what gives the latent, up to the largest rank that is asked for.
        energies: (r,) σ².
        mean, power, variance: (in,) E[x], E[x²] and their difference.
        innovation: see `InputSpread`.
        biased: whether a bias makes up for the mean of rounding errors.
        output: (out,) diagonal of G, divided by `unit` like all that is made from G.
        inner: (r, r) M = Uᵀ G U; None for G = I, where it is I as well.
        truncation: (k + 1,) what is lost at each rank; empty where that is known otherwise.
        through: noise of the quantized input, through the dense layer and (r + 1,) through the pair of each rank, by
            the way it is quantized; empty where that is not looked at.
        unit: factor of all losses.
    """

    weight: Array
    dual: Array
    energies: Array
    mean: Array
    power: Array
    variance: Array
    innovation: float
    biased: bool
    output: Array
    inner: Array | None
    truncation: Array
    through: Mapping[Activations, tuple[float, Array]]
    unit: float


def _view(
    layer: View,
    spectrum: Spectrum,
    gradient: Array | None,
    activations: set[Activations],
    most: int,
    *,
    truncated: bool,
) -> _View:
    weight = np.asarray(layer.weight, np.float32)
    kept = slice(None if truncated else most)  # what lies beyond the largest rank counts for the truncation alone
    basis, energies = spectrum.basis[:, kept], spectrum.energies[kept]
    mean, variance = _input(layer, spectrum)
    power = variance + np.square(mean)
    if gradient is None:
        metric, output = None, np.ones(len(weight))
        inner = None if spectrum.dual is None else basis.T @ basis
        carried, rest = energies if inner is None else np.diag(inner) * energies, spectrum.rest
        unit = _share_unit(weight, float(carried.sum()) + rest, power)
    else:
        # Scaled, so that float32 holds squares of small gradients.
        unit = float(np.diag(gradient).max(initial=0.0))
        metric = np.divide(gradient, unit or 1.0, out=np.empty_like(gradient, np.float32), casting="same_kind")
        inner, output = basis.T @ (metric @ basis), np.diag(metric).astype(np.float64)
        carried = np.clip(np.diag(inner), 0.0, None) * energies
        # What lies beyond the columns of the spectrum counts by what directions there cost on average.
        left_out = float(output.sum() - np.diag(inner).sum()) / max(len(weight) - len(energies), 1)
        rest = spectrum.rest * max(left_out, 0.0)
    truncation = np.concatenate([np.cumsum(carried[::-1])[::-1], [0.0]]) + rest if truncated else np.zeros(0)
    dual = spectrum.projection[:, :most]
    inner = None if inner is None else inner[:most, :most]
    noises = {}
    if spectrum.inputs is not None:
        spans = spectrum.inputs.spans
        noises = {kind: activation_noise(spans[kind], power) for kind in activations}
    through = _through(weight, dual, metric, inner, noises)
    left = 1.0 if spectrum.inputs is None else spectrum.inputs.innovation
    biased = layer.bias is not None and bool(layer.bias.any())
    statistics = (energies[:most], mean, power, variance, left, biased)
    return _View(weight, dual, *statistics, output, inner, truncation, through, unit)


def _input(layer: View, spectrum: Spectrum) -> tuple[Array, Array]:
    """Mean and variance per feature."""
    if spectrum.inputs is None:
        return np.zeros(layer.in_features), np.ones(layer.in_features)
    mean = np.zeros(layer.in_features) if spectrum.mean is None else spectrum.mean
    return mean, np.clip(spectrum.inputs.variance, 0.0, None)


def _share_unit(weight: Array, energy: float, power: Array) -> float:
    """1 / the layer's output energy: of what varies, or of all where nothing does; 0 for a layer that gives zeros."""
    total = energy or float((np.square(weight) @ power).sum())
    return 1.0 / total if total > 0 else 0.0


def _through(
    weight: Array, dual: Array, metric: Array | None, inner: Array | None, noises: Mapping[Activations, Array]
) -> dict[Activations, tuple[float, Array]]:
    """tr(Wᵀ G W D), and tr(Bᵀ Aᵀ G A B D) at every rank 0 … r, for input noise of covariance D = diag(noise).

    The second is tr(M_r N_r) with N = Uᵀ W D Wᵀ U, since A B = U_r U_rᵀ W in every basis of the latent.
    """
    if not noises:
        return {}
    sensitivity = np.square(weight).sum(axis=0) if metric is None else (weight * (metric @ weight)).sum(axis=0)
    projected = dual.T @ weight
    found: dict[Activations, tuple[float, Array]] = {}
    for kind, noise in noises.items():
        if inner is None:
            gained = np.square(projected) @ noise
        else:
            shared = inner * ((projected * noise.astype(np.float32)) @ projected.T)
            # What row and column r add to the sum over the leading square.
            gained = 2 * np.tril(shared).sum(axis=1, dtype=np.float64) - np.diag(shared)
        dense = max(float(sensitivity @ noise), 0.0)
        found[kind] = dense, np.concatenate([[0.0], np.clip(np.cumsum(gained), 0.0, None)])
    return found


def _dense_noise(view: _View, grid: Grid) -> float:
    spread = view.variance if view.biased else view.power
    noise = view.innovation * float(view.output @ weight_noise(view.weight, spread, grid))
    return noise + view.through[grid.activations][0] if view.through else noise


def _correction_noise(view: _View, pair: _Pair, grids: tuple[Grid, Grid]) -> float:
    """The pair takes the strongest components out of W, so that what is left is rounded with finer steps, and takes up
    what of the rounding errors lies in their own strongest directions. Nothing is cut off.
    """
    dense, thin = grids
    left = replace(view, weight=view.weight - pair.factors.A @ pair.factors.B, through={})
    rounding = _dense_noise(left, dense) * (1 - _taken(view.weight, pair.factors.rank))
    if not view.through:
        return rounding + _pair_noise(view, pair, thin)
    # The noise of the input goes through W as a whole, however it is split: it counts once.
    through, through_pair = view.through[thin.activations]
    return rounding + through + _pair_noise(view, pair, thin) - float(through_pair[pair.factors.rank])


def _corrected_grids(scheme: Scheme) -> tuple[Grid, Grid]:
    """Of the dense matrix, and of the pair beside it; block grids, which no target changes."""
    if scheme.correction is None:
        raise ValueError(f"{scheme} has no pair beside a matrix")
    dense, thin = (grid_of_scheme(one, one.qmax) for one in (scheme, scheme.correction))
    if dense is None or thin is None:
        raise ValueError(f"{scheme} has matrices that are not rounded")
    return dense, thin


def _taken(weight: Array, rank: int) -> float:
    """Share of independent errors that a pair can take up: their largest singular values come to √rows + √columns
    (Bai and Yin, "Limit of the smallest eigenvalue of a large dimensional sample covariance matrix", 1993).
    """
    rows, columns = weight.shape
    return float(min(rank * np.square(np.sqrt(rows) + np.sqrt(columns)) / (rows * columns), 1.0))


@dataclass(frozen=True)
class _Pair:
    """A pair A B of one rank: what its noise depends on.

    Attributes:
        cost: (r,) diagonal of Aᵀ G A, what noise in a component of the latent costs.
        mean, variance: (r,) of the latent.
        left: shares of the errors of A and of B that rounding leaves: of those that later weights make up for.
    """

    factors: Replacement
    cost: Array
    mean: Array
    variance: Array
    left: tuple[float, float]


def _pair(view: _View, factors: Replacement) -> _Pair:
    """A = U_r T and B = T⁻¹ U_rᵀ W, so T = U_rᵀ A and the latent B x has covariance T⁻¹ diag(σ²) T⁻ᵀ."""
    rank = factors.rank
    basis = view.dual[:, :rank].T @ factors.A
    seen = basis if view.inner is None else view.inner[:rank, :rank] @ basis
    costs = (basis.T @ seen).astype(np.float64)
    back = _inverse(basis)
    latent = (back * view.energies[:rank]) @ back.T
    left = innovation(latent), view.innovation * innovation(costs)
    cost, variance = (np.clip(np.diag(moment), 0.0, None) for moment in (costs, latent))
    return _Pair(factors, cost, factors.B @ view.mean, variance, left)


def _inverse(basis: Array) -> Array:
    """T⁻¹ (r, r) float64. A balanced pair has T = D R with R orthogonal, where Tᵀ D⁻² will do: the rows tell."""
    products = (basis @ basis.T).astype(np.float64)
    norms = np.sqrt(np.diag(products))
    if np.abs(products / np.outer(norms, norms) - np.eye(len(basis))).max() < ORTHOGONAL:
        return np.asarray(basis.T / np.square(norms))
    return np.linalg.inv(basis.astype(np.float64))


def _pair_noise(view: _View, pair: _Pair, grid: Grid) -> float:
    """Noise of the input, of B and of the latent's grid goes through A; A adds its own."""
    A, B = pair.factors.A, pair.factors.B
    power = pair.variance + np.square(pair.mean)
    latent = pair.left[1] * weight_noise(B, view.variance, grid)
    entered = 0.0
    if view.through:
        latent = latent + activation_noise(latent_span(pair.mean, pair.variance, grid.activations), power)
        entered = float(view.through[grid.activations][1][pair.factors.rank])
    last = pair.left[0] * weight_noise(A, pair.variance + latent, grid)
    return float(pair.cost @ latent + view.output @ last) + entered


def exact_loss(layer: View, weight: Array, covariance: Array | None, gradient: Array | None) -> float:
    """The loss of another weight in the layer's place, its bias corrected.

    Args:
        weight: (out, in).
        covariance: (in, in) C of the layer's input; None for I, where nothing is known of it.
        gradient: (out, out) G; None for I / (output energy of the layer).
    """
    lost = max(output_energy(layer.weight - weight, covariance, gradient), 0.0)
    if gradient is not None:
        return lost
    whole = output_energy(layer.weight, covariance)
    return lost / whole if whole > 0 else 0.0


def pair_losses(
    layer: View,
    pair: Replacement,
    covariance: Array | None,
    gradient: Array | None,
    schemes: Sequence[Scheme],
    *,
    qmax: int,
) -> dict[Scheme, float]:
    """`exact_loss` of low-rank factors in each scheme, all of them rounded to nearest on its grids; by scheme.

    What is rounded at run time, the input and what is between factors, is left out.
    """
    found = {}
    for scheme in schemes:
        rounded = {role: _rounded(factor, scheme, qmax) for role, factor in pair.tensors.items()}
        found[scheme] = exact_loss(layer, composed(replace(pair, tensors=rounded)), covariance, gradient)
    return found


def _rounded(matrix: Array, scheme: Scheme, qmax: int) -> Array:
    grid = grid_of(scheme, matrix.shape[1], qmax=qmax)
    if grid is None:
        return matrix
    on = lattice(matrix, grid)
    return decoded(nearest(matrix, on), on)
