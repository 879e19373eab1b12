"""Pairs with one factor that is given: each is least squares for it, and none beats the pair that chooses both."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.factorize import whitened
from edgepack.factorize.leastsquares import metric
from edgepack.methods.budget import pair_rank
from edgepack.methods.dct import dct, waves, zigzag
from edgepack.methods.mosaic import image_sides
from edgepack.methods.projection import damped, orthonormal, output_projection, random_projection
from edgepack.methods.simhash import simhash
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array
from edgepack.quantize.gptq import output_energy
from edgepack.quantize.grids import quantize_weight
from tests.factorize.layers import SEEDS, inputs, layer, output_error, product, rng, seen, weight

Method = Callable[..., Replacement | str]
PAIRS: list[Method] = [dct, simhash, random_projection, output_projection]
CASE = st.tuples(st.integers(4, 24), st.integers(4, 24), st.integers(3, 60), st.floats(0.3, 0.95), SEEDS)


def cases(case: tuple[int, int, int, float, int]) -> tuple[View, View, float, Array]:
    """A layer without its data and with them, and the share."""
    out, inn, rows, share, seed = case
    w, x = weight(out, inn, seed), inputs(rows, inn, seed)
    bias = rng(seed).standard_normal(out).astype(np.float32)
    return layer(w, bias), layer(w, bias, seen(x)), share, x


@pytest.mark.parametrize("method", PAIRS)
@settings(max_examples=25, deadline=None)
@given(CASE)
def test_no_fixed_factor_beats_whitening_and_data_never_hurt(
    method: Method, case: tuple[int, int, int, float, int]
) -> None:
    blind, knowing, share, _ = cases(case)
    free, aware = method(blind, share), method(knowing, share)
    rank = pair_rank(share, *blind.weight.shape)
    if rank == 0:
        assert isinstance(free, str)
        assert isinstance(aware, str)
        return
    assert isinstance(free, Replacement)
    assert free.structure.is_low_rank
    assert isinstance(aware, Replacement)
    assert aware.structure.is_low_rank
    covariance = metric(knowing)
    slack = 1e-5 * output_energy(blind.weight, covariance)
    best = whitened.factors(knowing, whitened.spectrum(knowing), rank)
    found = output_energy(blind.weight - product(aware), covariance)
    assert output_energy(blind.weight - product(best), covariance) <= found + slack
    assert found <= output_energy(blind.weight - product(free), covariance) + slack


@pytest.mark.parametrize("method", PAIRS)
@settings(max_examples=25, deadline=None)
@given(CASE)
def test_pairs_use_their_bytes_and_no_more(method: Method, case: tuple[int, int, int, float, int]) -> None:
    blind, knowing, share, _ = cases(case)
    for given_layer in (blind, knowing):
        made = method(given_layer, share)
        sides = sum(given_layer.weight.shape)
        if isinstance(made, str):
            assert share * given_layer.weight.size < sides
            continue
        assert made.A.size + made.B.size <= share * given_layer.weight.size + 1e-6
        assert made.A.size + made.B.size > share * given_layer.weight.size - sides - 1e-6
        assert made.A.dtype == made.B.dtype == np.float32


@pytest.mark.parametrize("method", PAIRS)
def test_mean_output_stays_and_the_bias_is_kept_without_data(method: Method) -> None:
    blind, knowing, share, x = cases((16, 20, 200, 0.5, 3))
    free, aware = method(blind, share), method(knowing, share)
    assert isinstance(free, Replacement)
    assert free.structure.is_low_rank
    assert isinstance(aware, Replacement)
    assert aware.structure.is_low_rank
    assert free.bias is blind.bias
    assert aware.bias is not None
    mean = x.astype(np.float64).mean(axis=0)
    assert np.allclose(product(aware) @ mean + aware.bias, blind.weight @ mean + blind.bias, atol=1e-4)
    assert output_error(blind.weight, aware, blind.bias, x) > 0
    without = method(View("l", blind.weight, None, knowing.moments), share)
    assert isinstance(without, Replacement)
    assert without.structure.is_low_rank
    assert without.bias is not None
    assert blind.bias is not None
    assert np.allclose(without.bias + blind.bias, aware.bias, atol=1e-5)


@pytest.mark.parametrize("method", PAIRS)
def test_a_seed_decides_and_nothing_else(method: Method) -> None:
    _, knowing, share, _ = cases((16, 20, 40, 0.5, 3))
    first, second, other = method(knowing, share), method(knowing, share), method(knowing, share, seed=1)
    assert isinstance(first, Replacement)
    assert first.structure.is_low_rank
    assert isinstance(second, Replacement)
    assert second.structure.is_low_rank
    assert isinstance(other, Replacement)
    assert other.structure.is_low_rank
    assert np.array_equal(first.A, second.A)
    assert np.array_equal(first.B, second.B)
    assert np.array_equal(product(first), product(other)) == (method is dct)


@pytest.mark.parametrize("method", PAIRS)
def test_zeros_and_still_inputs_are_fitted(method: Method) -> None:
    nothing = method(layer(weight(12, 16, 1, "zero"), None, seen(inputs(30, 16, 1))), 0.5)
    assert isinstance(nothing, Replacement)
    assert nothing.structure.is_low_rank
    assert not product(nothing).any()
    still = method(layer(weight(12, 16, 1), None, seen(np.full((9, 16), 0.5, np.float32))), 0.5)
    assert isinstance(still, Replacement)
    assert still.structure.is_low_rank
    assert np.isfinite(product(still)).all()


@pytest.mark.parametrize("method", [dct, random_projection])
@settings(max_examples=30, deadline=None)
@given(CASE)
def test_normal_equations_hold(method: Method, case: tuple[int, int, int, float, int]) -> None:
    """(W − A B) C Bᵀ = 0."""
    for given_layer in cases(case)[:2]:
        made = method(given_layer, case[3])
        if isinstance(made, str):
            return
        covariance = metric(given_layer)
        if covariance is None:
            covariance = np.eye(given_layer.in_features)
        b = made.B.astype(np.float64)
        assert np.allclose(b @ b.T, np.eye(len(b)), atol=1e-5)
        w = given_layer.weight.astype(np.float64)
        left_over = (w - product(made)) @ covariance @ b.T
        scale = float(np.linalg.norm(w) + np.linalg.norm(made.A)) * float(np.linalg.norm(covariance))
        assert np.abs(left_over).max() <= 1e-5 * scale


@settings(max_examples=30, deadline=None)
@given(CASE, st.booleans())
def test_output_projection_is_least_squares_for_its_outputs(
    case: tuple[int, int, int, float, int], with_gradient: bool
) -> None:
    """Aᵀ G (W − A B) = 0."""
    given_layer = cases(case)[1]
    g = inputs(2 * given_layer.out_features, given_layer.out_features, case[4]).astype(np.float64)
    gradient = g.T @ g if with_gradient else None
    made = output_projection(given_layer, case[3], gradient=gradient)
    if isinstance(made, str):
        return
    weighed = damped(gradient)
    if weighed is None:
        weighed = np.eye(given_layer.out_features)
    a, w = made.A.astype(np.float64), given_layer.weight.astype(np.float64)
    left_over = a.T @ weighed @ (w - product(made))
    scale = float(np.linalg.norm(w) + np.linalg.norm(made.B)) * float(np.linalg.norm(weighed))
    assert np.abs(left_over).max() <= 1e-5 * scale


def test_projections_are_those_of_the_seed() -> None:
    blind = layer(weight(30, 40, 2))
    right = random_projection(blind, 0.4, seed=5)
    left = output_projection(blind, 0.4, seed=5)
    assert isinstance(right, Replacement)
    assert right.structure.is_low_rank
    assert isinstance(left, Replacement)
    assert left.structure.is_low_rank
    rank = pair_rank(0.4, 30, 40)
    p, q = orthonormal(40, rank, 5), orthonormal(30, rank, 5)
    assert np.allclose(product(right), blind.weight @ p @ p.T, atol=1e-5)
    assert np.allclose(product(left), q @ q.T @ blind.weight, atol=1e-5)


def test_simhash_is_the_plain_reference_without_data() -> None:
    w = weight(30, 40, 2)
    made = simhash(layer(w), 0.4, seed=5)
    assert isinstance(made, Replacement)
    assert made.structure.is_low_rank
    rank = pair_rank(0.4, 30, 40)
    r = np.random.default_rng(5).standard_normal((rank, 40)).astype(np.float32).T
    s = np.sign(r.T.astype(np.float64) @ w.T)
    rs = r @ s
    d = (rs * w.T).sum(axis=0) / np.square(rs).sum(axis=0)
    assert np.allclose(product(made), (rs * d).T, atol=1e-5)
    norms = np.linalg.norm(w, axis=1) / np.linalg.norm(rs, axis=0)
    assert output_energy(w - product(made), None) < output_energy(w - (rs * norms).T, None)
    assert (d > 0).all()


@settings(max_examples=30, deadline=None)
@given(CASE)
def test_simhash_loses_nothing_of_its_signs_in_eight_bits(case: tuple[int, int, int, float, int]) -> None:
    for given_layer in cases(case)[:2]:
        made = simhash(given_layer, case[3], seed=case[4])
        if isinstance(made, str):
            return
        codes, scales = quantize_weight(made.A)
        assert (np.abs(codes) == 127).all()
        assert np.allclose(codes * scales[:, None], made.A, rtol=1e-6, atol=0)


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9))
def test_waves_are_the_cosine_transform(height: int, width: int) -> None:
    basis = waves(height, width, height * width)
    assert np.allclose(basis @ basis.T, np.eye(height * width), atol=1e-12)
    image = rng(height * 100 + width).standard_normal((height, width))
    expected = scipy.fft.dctn(image, norm="ortho")
    order = zigzag(height, width)
    assert np.allclose(basis @ image.ravel(), expected[order[:, 0], order[:, 1]], atol=1e-12)


def test_zigzag_is_that_of_jpeg() -> None:
    down, across = zigzag(8, 8).T
    assert (8 * down + across)[:16].tolist() == [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5]
    assert (8 * down + across)[-3:].tolist() == [55, 62, 63]
    assert zigzag(2, 3).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [1, 2]]
    assert zigzag(1, 4)[:, 1].tolist() == [0, 1, 2, 3]


def test_cosines_suit_smooth_rows() -> None:
    down, across = np.indices((12, 12)) / 12
    smooth = np.stack([np.sin(3 * down + i) * np.cos(2 * across - i) for i in range(20)]).reshape(20, 144)
    w = smooth.astype(np.float32)
    made, drawn = dct(layer(w), 0.8), random_projection(layer(w), 0.8)
    assert isinstance(made, Replacement)
    assert made.structure.is_low_rank
    assert isinstance(drawn, Replacement)
    assert drawn.structure.is_low_rank
    assert output_energy(w - product(made), None) < 0.01 * output_energy(w - product(drawn), None)


@pytest.mark.parametrize(
    ("features", "sides"), [(784, (28, 28)), (384, (16, 24)), (13, (1, 13)), (1, (1, 1)), (12, (3, 4))]
)
def test_rows_become_the_squarest_images(features: int, sides: tuple[int, int]) -> None:
    assert image_sides(features) == sides
