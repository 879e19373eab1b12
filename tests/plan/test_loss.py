"""Predicted losses against the exact trace: weights really on their grids, inputs and latents really quantized."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, INT8_STATIC, NBITS4, NBITS8
from edgepack.backends.schemes import SCHEMES
from edgepack.backends.tflite import schemes as tflite
from edgepack.factorize import svd, two_sided, whitened
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.scheme import Scheme
from edgepack.model.statistics import moments
from edgepack.model.structure import DENSE, Structure, low_rank_correction
from edgepack.model.types import Array, Curvature, InputSpread, Spectrum
from edgepack.plan import loss as module
from edgepack.plan.loss import Wanted
from edgepack.quantize.alternate import alternate
from edgepack.quantize.bias import corrected_bias, corrected_pair
from edgepack.quantize.gptq import gptq, innovation, row_errors
from edgepack.quantize.grids import WeightGrid, activation_grid, grid_of, quantize_weight
from edgepack.quantize.low_rank_correction import fit_rounded_correction
from edgepack.quantize.rotation import balanced
from tests.linear_plans import structure_at

ALL_SCHEMES = tuple(scheme for schemes in SCHEMES.values() for scheme in schemes)
DISTINCT = (INT8_DYNAMIC, INT8_STATIC, NBITS8, NBITS4, tflite.INT4_DYNAMIC)
"""The schemes of TFLite that are not here have the same grids as one that is."""

ROWS = 1500
SEEDS = st.integers(0, 2**32 - 1)
KINDS = ("plain", "relu", "still", "singular")


def layer_losses(
    layer: View,
    spectrum: Spectrum,
    gradient: Array | None,
    wanted: Wanted,
    factors_at: Callable[[int], Replacement],
    *,
    qmax: int = 127,
    truncation: Array | None = None,
) -> dict[tuple[Scheme, Structure], float]:
    curvature = None if gradient is None else Curvature(gradient, truncation)
    return module.layer_losses(layer, spectrum, curvature, wanted, factors_at, qmax=qmax)


def make_inputs(features: int, kind: str, rng: np.random.Generator) -> Array:
    directions = max(features // 4, 1) if kind == "singular" else features
    mixed = rng.standard_normal((ROWS, directions)) * np.exp(-2 * np.arange(directions) / directions)
    x = mixed @ rng.standard_normal((directions, features)) / directions**0.5 + 0.3 * rng.standard_normal(features)
    if kind == "relu":
        x = np.maximum(x, 0)
    if kind == "still":
        x[:, : features // 4], x[:, features - features // 4 :] = 0.0, 0.7
    return x.astype(np.float32)


def row_ranges(x: Array) -> Array:
    return np.maximum(x.max(axis=1), 0) - np.minimum(x.min(axis=1), 0)


def spread(x: Array) -> InputSpread:
    return InputSpread(
        x.var(axis=0, dtype=np.float64), float(x.min()), float(x.max()), float(np.sqrt(np.mean(row_ranges(x) ** 2)))
    )


def observed(weight: Array, x: Array) -> tuple[View, Spectrum]:
    """The layer, and its spectrum on the covariance as it is: shrinking it is another question."""
    seen = replace(moments([{"x": x}])["x"], count=10**9)
    layer = View("layer", weight, np.ones(len(weight), np.float32), seen)
    inputs = replace(spread(x), innovation=innovation(seen.covariance))
    return layer, replace(whitened.spectrum(layer), inputs=inputs)


def gradients(out: int, rng: np.random.Generator) -> Array:
    """A second moment of low effective rank, as they are, at the scale they have."""
    g = rng.standard_normal((3 * out, out)) * np.exp(-3 * np.arange(out) / out)
    g = g @ np.linalg.qr(rng.standard_normal((out, out)))[0] * 1e-4
    return g.T @ g / len(g)


def pair_at(layer: View, spectrum: Spectrum, method: object = whitened) -> Callable[[int], Replacement]:
    return lambda rank: balanced(method.factors(layer, spectrum, rank), spectrum, seed=0)  # type: ignore[attr-defined]


def rounded(layer: View, pair: Replacement | None, scheme: Scheme, qmax: int = 127) -> View | Replacement:
    """As a file holds it: one weight after the other, the bias corrected."""
    grids = [grid_of(scheme, size, qmax=qmax) for size in (layer.in_features, pair.rank if pair else 1)]
    if grids[0] is None or grids[1] is None:
        return pair or layer
    seen = layer.moments
    if pair is not None:
        on_grid = alternate(layer.weight, pair, seen.covariance, (grids[1], grids[0]), rounds=0)
        return corrected_pair(pair, on_grid.factors(None), seen.mean)
    weight = gptq(layer.weight, seen.covariance, grids[0]).weight
    return replace(layer, weight=weight, bias=corrected_bias(layer.bias, layer.weight, weight, seen.mean))


def quantized_input(x: Array, scheme: Scheme) -> Array:
    if scheme.activations == "float":
        return x
    if scheme.activations == "static":
        scale, zero = activation_grid(float(x.min()), float(x.max()))
        return (np.clip(np.rint(x / scale) + zero, -128, 127) - zero) * scale
    scale = np.maximum(row_ranges(x)[:, None] / 255, 1e-30)
    zero = np.rint(-128 - np.minimum(x.min(axis=1, keepdims=True), 0) / scale)
    return (np.clip(np.rint(x / scale) + zero, -128, 127) - zero) * scale


def exact(layer: View, pair: Replacement | None, scheme: Scheme, x: Array, metric: Array, qmax: int = 127) -> float:
    """E Δyᵀ G Δy over the rows."""
    part = rounded(layer, pair, scheme, qmax)
    if isinstance(part, Replacement):
        found = quantized_input(quantized_input(x, scheme) @ part.B.T, scheme) @ part.A.T + part.bias
    else:
        found = quantized_input(x, scheme) @ part.weight.T + part.bias
    error = (found - x @ layer.weight.T - layer.bias).astype(np.float64)
    return float(((error @ metric) * error).sum(axis=1).mean())


def metric_of(gradient: Array | None, spectrum: Spectrum) -> Array:
    return np.eye(len(spectrum.basis)) / spectrum.energies.sum() if gradient is None else gradient


@pytest.mark.parametrize("with_gradient", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sides", [(64, 160), (160, 64)])
def test_predicted_losses_are_those_of_really_quantized_layers(
    sides: tuple[int, int], kind: str, with_gradient: bool
) -> None:
    rng = np.random.default_rng([*sides, with_gradient])
    out, features = sides
    x = make_inputs(features, kind, rng)
    layer, spectrum = observed(rng.standard_normal(sides).astype(np.float32), x)
    gradient = gradients(out, rng) if with_gradient else None
    metric, pair = metric_of(gradient, spectrum), pair_at(layer, spectrum)
    # At full rank the truncation is gone and only the noise is left.
    losses = layer_losses(layer, spectrum, gradient, Wanted(DISTINCT, (16, 64)), pair, qmax=127)
    # Zeros, of which ReLU leaves half, are exact on every grid, and a mean and a variance do not tell of them. And few
    # rows in few directions do not reach as far as the latent's grid is taken to, nor need the damping of rounding.
    highest = {"relu": 1.9, "singular": 2.8}.get(kind, 1.8)
    wrong = {}
    for (scheme, structure), predicted in losses.items():
        true = exact(layer, None if structure.rank is None else pair(structure.rank), scheme, x, metric)
        if not 0.55 <= predicted / true <= highest:
            wrong[scheme, structure] = predicted / true
    assert not wrong


@settings(max_examples=30)
@given(seed=SEEDS, out=st.integers(1, 40), features=st.integers(1, 40), kind=st.sampled_from(KINDS))
def test_fp32_losses_are_exact_fall_with_the_rank_and_vanish_for_the_dense_layer(
    seed: int, out: int, features: int, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    x = make_inputs(features, kind, rng)
    assume(np.ptp(x) > 0)  # a layer whose input never varies has no spectrum
    layer, spectrum = observed(rng.standard_normal((out, features)).astype(np.float32), x)
    ranks = range(1, min(out, features) + 1)
    for gradient in (None, gradients(out, rng)):
        metric = metric_of(gradient, spectrum)
        losses = layer_losses(layer, spectrum, gradient, Wanted((FP32,), ranks), no_factors, qmax=127)
        assert losses[FP32, DENSE] == 0.0
        curve = [losses[FP32, structure_at(rank)] for rank in ranks]
        assert all(a >= b >= 0 for a, b in itertools.pairwise(curve))
        whole = exact(layer, zero_factors(layer, spectrum), FP32, x, metric)
        for rank in {1, len(curve) // 2 + 1, len(curve)}:
            true = exact(layer, whitened.factors(layer, spectrum, rank), FP32, x, metric)
            assert losses[FP32, structure_at(rank)] == pytest.approx(true, rel=1e-2, abs=1e-5 * whole)


def oblique(seed: int, sides: tuple[int, int]) -> tuple[View, Spectrum, Array, Array]:
    """A layer with a two-sided spectrum, its inputs, and the G that the spectrum was made by."""
    rng = np.random.default_rng(seed)
    x = make_inputs(sides[1], "plain", rng)
    layer, _ = observed(rng.standard_normal(sides).astype(np.float32), x)
    gradient = gradients(sides[0], rng)
    inputs = replace(spread(x), innovation=innovation(layer.moments.covariance))
    return layer, replace(two_sided.spectrum(layer, gradient), inputs=inputs), x, gradient


@settings(max_examples=20)
@given(seed=SEEDS, sides=st.sampled_from([(12, 20), (20, 12), (7, 7)]))
def test_a_truncation_that_is_no_orthogonal_projection_loses_what_it_does(seed: int, sides: tuple[int, int]) -> None:
    layer, spectrum, x, gradient = oblique(seed, sides)
    ranks = range(1, min(sides) + 1)
    for given_gradient in (gradient, None):
        losses = layer_losses(layer, spectrum, given_gradient, Wanted((FP32,), ranks), no_factors, qmax=127)
        metric = np.eye(sides[0]) if given_gradient is None else given_gradient
        whole = exact(layer, zero_factors(layer, spectrum), FP32, x, metric)
        unit = whole if given_gradient is None else 1.0  # then a loss is a share of what rank 0 loses
        for rank in ranks:
            true = exact(layer, two_sided.factors(layer, spectrum, rank), FP32, x, metric)
            assert losses[FP32, structure_at(rank)] * unit == pytest.approx(true, rel=1e-2, abs=1e-4 * whole)


@pytest.mark.parametrize("with_gradient", [True, False])
@pytest.mark.parametrize("sides", [(64, 160), (160, 64)])
def test_its_noise_is_that_of_really_quantized_layers(sides: tuple[int, int], with_gradient: bool) -> None:
    layer, spectrum, x, gradient = oblique(8, sides)
    pair = pair_at(layer, spectrum, two_sided)
    metric = gradient if with_gradient else np.eye(sides[0])
    whole = exact(layer, zero_factors(layer, spectrum), FP32, x, metric)
    weights = gradient if with_gradient else None
    losses = layer_losses(layer, spectrum, weights, Wanted(DISTINCT, (16, 64)), pair, qmax=127)
    for (scheme, structure), predicted in losses.items():
        true = exact(layer, None if structure.rank is None else pair(structure.rank), scheme, x, metric)
        assert 0.7 <= predicted * (1.0 if with_gradient else whole) / true <= 1.6, (scheme, structure)


def no_factors(rank: int) -> Replacement:
    raise AssertionError("fp32 needs no factors")


def zero_factors(layer: View, spectrum: Spectrum) -> Replacement:
    """Rank 0: the mean output."""
    out, features = layer.weight.shape
    mean = (layer.weight @ spectrum.mean + layer.bias).astype(np.float32)
    return low_rank(np.zeros((out, 1), np.float32), np.zeros((1, features), np.float32), mean)


@settings(max_examples=20)
@given(seed=SEEDS, sides=st.sampled_from([(12, 20), (20, 12), (7, 7)]))
def test_without_gradients_an_fp32_pair_loses_the_share_of_output_energy(seed: int, sides: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    layer, spectrum = observed(rng.standard_normal(sides).astype(np.float32), make_inputs(sides[1], "plain", rng))
    ranks = range(1, min(sides) + 1)
    losses = layer_losses(layer, spectrum, None, Wanted((FP32,), ranks), no_factors, qmax=127)
    np.testing.assert_allclose(
        [losses[FP32, structure_at(r)] for r in ranks], spectrum.lost_share()[1:], rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("weighed", [False, True])
def test_the_leading_part_of_a_spectrum_loses_what_the_whole_one_does(weighed: bool) -> None:
    rng = np.random.default_rng(5)
    layer, whole = observed(rng.standard_normal((24, 40)).astype(np.float32), make_inputs(40, "plain", rng))
    part = replace(whole, basis=whole.basis[:, :8], energies=whole.energies[:8], rest=float(whole.energies[8:].sum()))
    gradient = 3.0 * np.eye(24) if weighed else None  # what lies beyond counts by the mean
    wanted = Wanted(DISTINCT, (4, 8))
    one, other = (layer_losses(layer, each, gradient, wanted, pair_at(layer, each)) for each in (whole, part))
    assert other == pytest.approx(one, rel=1e-5)


@settings(max_examples=20)
@given(seed=SEEDS, sides=st.sampled_from([(24, 40), (40, 24)]), scale=st.sampled_from([1e-8, 1.0, 1e8]))
def test_losses_scale_with_the_gradients_and_not_with_the_turn_of_the_basis(
    seed: int, sides: tuple[int, int], scale: float
) -> None:
    rng = np.random.default_rng(seed)
    layer, spectrum = observed(rng.standard_normal(sides).astype(np.float32), make_inputs(sides[1], "relu", rng))
    gradient, pair = gradients(sides[0], rng), pair_at(layer, spectrum)
    one = layer_losses(layer, spectrum, gradient, Wanted(DISTINCT, (8, 24)), pair, qmax=127)
    other = layer_losses(layer, spectrum, gradient * scale, Wanted(DISTINCT, (8, 24)), pair, qmax=127)
    flipped = replace(spectrum, basis=spectrum.basis * np.float32(-1))
    again = layer_losses(layer, flipped, gradient, Wanted(DISTINCT, (8, 24)), pair, qmax=127)
    for candidate, loss in one.items():
        assert other[candidate] == pytest.approx(loss * scale, rel=1e-4)
        assert again[candidate] == pytest.approx(loss, rel=1e-4)
        assert loss > 0


def test_a_better_curve_replaces_that_of_the_gradients_and_keeps_the_noise() -> None:
    rng = np.random.default_rng(6)
    layer, spectrum = observed(rng.standard_normal((24, 40)).astype(np.float32), make_inputs(40, "plain", rng))
    gradient, pair, curve = gradients(24, rng), pair_at(layer, spectrum), np.linspace(1e-6, 0, 25)
    schemes = (FP32, NBITS4)
    plain = layer_losses(layer, spectrum, gradient, Wanted(schemes, (8,)), pair, qmax=127)
    given = layer_losses(layer, spectrum, gradient, Wanted(schemes, (8,)), pair, truncation=curve)
    at_8 = structure_at(8)
    assert given[FP32, at_8] == curve[8]
    assert given[NBITS4, at_8] - given[FP32, at_8] == pytest.approx(plain[NBITS4, at_8] - plain[FP32, at_8])
    assert given[NBITS4, DENSE] == plain[NBITS4, DENSE]


@pytest.mark.parametrize("curve", [None, np.linspace(1e-6, 0, 25)])
@pytest.mark.parametrize("weighed", [True, False])
def test_a_rank_loses_the_same_whatever_others_are_looked_at(curve: Array | None, weighed: bool) -> None:
    rng = np.random.default_rng(8)
    layer, spectrum = observed(rng.standard_normal((24, 40)).astype(np.float32), make_inputs(40, "relu", rng))
    gradient, pair = gradients(24, rng) if weighed else None, pair_at(layer, spectrum)
    many, few = (
        layer_losses(layer, spectrum, gradient, Wanted(DISTINCT, ranks), pair, truncation=curve)
        for ranks in ((4, 8, 24), (8,))
    )
    assert few.keys() < many.keys()
    for candidate, loss in few.items():
        assert loss == pytest.approx(many[candidate], rel=1e-5)


def test_any_basis_will_do() -> None:
    """The latent's covariance and mean, which the noise of A and of the latent's grid depend on."""
    rng = np.random.default_rng(5)
    x = make_inputs(96, "plain", rng)
    layer, spectrum = observed(rng.standard_normal((64, 96)).astype(np.float32), x)
    plain = whitened.factors(layer, spectrum, 32)
    skew = (np.eye(32) + 0.1 * np.triu(rng.standard_normal((32, 32)), 1)).astype(np.float32)
    pair = low_rank(plain.A @ skew, np.linalg.solve(skew, plain.B), plain.bias)
    losses = layer_losses(layer, spectrum, None, Wanted(DISTINCT, (32,)), lambda rank: pair, qmax=127)
    lost = spectrum.lost_share()[32]
    for scheme in DISTINCT:
        true = exact(layer, pair, scheme, x, metric_of(None, spectrum))
        assert 0.7 < (losses[scheme, structure_at(32)] - lost) / (true - lost) < 1.7


def test_coarser_grids_lose_more() -> None:
    rng = np.random.default_rng(0)
    layer, spectrum = observed(rng.standard_normal((64, 96)).astype(np.float32), make_inputs(96, "plain", rng))
    pair = pair_at(layer, spectrum)
    full = layer_losses(layer, spectrum, None, Wanted(ALL_SCHEMES, (32,)), pair, qmax=127)
    reduced = layer_losses(layer, spectrum, None, Wanted(ALL_SCHEMES, (32,)), pair, qmax=63)
    for rank in (None, 32):
        order = [FP32, NBITS8, INT8_DYNAMIC, NBITS4, tflite.INT4_DYNAMIC]
        losses = [full[scheme, structure_at(rank)] for scheme in order]
        assert losses == sorted(losses)
        assert len(set(losses)) == len(losses)
        assert reduced[INT8_DYNAMIC, structure_at(rank)] > full[INT8_DYNAMIC, structure_at(rank)]
        assert reduced[INT8_STATIC, structure_at(rank)] > full[INT8_STATIC, structure_at(rank)]
        for scheme in (FP32, NBITS8, NBITS4, tflite.INT8_DYNAMIC, tflite.INT8_STATIC, tflite.INT4_DYNAMIC):
            assert reduced[scheme, structure_at(rank)] == full[scheme, structure_at(rank)]
        assert full[tflite.INT8_STATIC, structure_at(rank)] == full[INT8_STATIC, structure_at(rank)]


def test_one_outlier_does_not_cost_more_than_all_other_weights_are_worth() -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((64, 256)).astype(np.float32)
    weight[:, 0] = 1000.0
    x = rng.standard_normal((ROWS, 256)).astype(np.float32)
    x[:, 0] *= 1e-3
    layer, spectrum = observed(weight, x)
    losses = layer_losses(layer, spectrum, None, Wanted((tflite.INT4_DYNAMIC, NBITS4), ()), no_factors, qmax=127)
    metric = metric_of(None, spectrum)
    for scheme in (tflite.INT4_DYNAMIC, NBITS4):
        assert losses[scheme, DENSE] == pytest.approx(exact(layer, None, scheme, x, metric), rel=0.4)


def test_without_data_inputs_count_as_white_and_only_weights_are_rounded() -> None:
    rng = np.random.default_rng(2)
    layer = View("layer", rng.standard_normal((48, 64)).astype(np.float32), None)
    spectrum = svd.spectrum(layer)
    losses = layer_losses(layer, spectrum, None, Wanted(ALL_SCHEMES, (16,)), pair_at(layer, spectrum, svd), qmax=127)
    codes, scales = quantize_weight(layer.weight, qmax=127)
    error = layer.weight - codes * scales[:, None]
    share = float(np.square(error).sum() / np.square(layer.weight).sum())
    assert losses[INT8_DYNAMIC, DENSE] == pytest.approx(share, rel=0.1)
    assert losses[INT8_DYNAMIC, DENSE] == losses[INT8_STATIC, DENSE]
    assert losses[FP32, structure_at(16)] == pytest.approx(float(spectrum.lost_share()[16]))
    assert (
        losses[FP32, structure_at(16)]
        < losses[INT8_DYNAMIC, structure_at(16)]
        < losses[FP32, structure_at(16)] + 20 * share
    )


def test_layers_that_give_nothing_and_outputs_that_matter_to_nobody_lose_nothing() -> None:
    rng = np.random.default_rng(3)
    zero = View("zero", np.zeros((16, 24), np.float32), None)
    spectrum = svd.spectrum(zero)
    losses = layer_losses(zero, spectrum, None, Wanted(ALL_SCHEMES, (8,)), pair_at(zero, spectrum, svd), qmax=127)
    assert set(losses.values()) == {0.0}
    layer, spectrum = observed(rng.standard_normal((16, 24)).astype(np.float32), make_inputs(24, "plain", rng))
    losses = layer_losses(
        layer, spectrum, np.zeros((16, 16)), Wanted(ALL_SCHEMES, (8,)), pair_at(layer, spectrum), qmax=127
    )
    assert set(losses.values()) == {0.0}


@pytest.mark.parametrize("sides", [(96, 160), (160, 96)])
@pytest.mark.parametrize("strong", [0.0, 300.0])
def test_a_pair_beside_a_dense_matrix_loses_no_more_than_predicted(sides: tuple[int, int], strong: float) -> None:
    """Against what rounding finds, which knows the inputs' covariance and makes use of it."""
    rng = np.random.default_rng(sides)
    x = make_inputs(sides[1], "plain", rng)
    u, v = (np.linalg.qr(rng.standard_normal((side, 3)))[0] for side in sides)
    layer, spectrum = observed((rng.standard_normal(sides) + strong * u @ v.T).astype(np.float32), x)
    grids = WeightGrid(7, 32), WeightGrid(127, 32), WeightGrid(127, 32)
    covariance = np.cov(x.T.astype(np.float64), bias=True)
    energy = float(row_errors(layer.weight.astype(np.float64), covariance).sum())
    wanted = Wanted((NBITS4,), (), corrections=(8, 16), corrected=(NBITS4,))
    losses = layer_losses(layer, spectrum, None, wanted, pair_at(layer, spectrum))
    for rank in (8, 16):
        found = fit_rounded_correction(layer.weight, covariance, grids, rank, seed=0).error / energy
        assert 0.6 <= losses[NBITS4, low_rank_correction(rank)] / found <= 8
    assert losses[NBITS4, low_rank_correction(16)] < losses[NBITS4, low_rank_correction(8)]
    assert losses[NBITS4, low_rank_correction(8)] < (0.5 if strong else 1.0) * losses[NBITS4, DENSE]
    assert losses.keys() == {(NBITS4, DENSE), *((NBITS4, low_rank_correction(rank)) for rank in (8, 16))}


def test_gradients_weigh_a_pair_beside_a_dense_matrix_as_all_else() -> None:
    rng = np.random.default_rng(3)
    layer, spectrum = observed(rng.standard_normal((96, 160)).astype(np.float32), make_inputs(160, "plain", rng))
    alike = np.eye(96) / float(spectrum.energies.sum())
    pair = pair_at(layer, spectrum)
    one, other = (
        layer_losses(layer, spectrum, gradient, Wanted((NBITS4,), (), (8,), (NBITS4,)), pair)
        for gradient in (None, alike)
    )
    assert other[NBITS4, low_rank_correction(8)] == pytest.approx(one[NBITS4, low_rank_correction(8)], rel=1e-3)
