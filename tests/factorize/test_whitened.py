"""Centred whitening: the error it promises is the error on the rows, and nothing of rank r does better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import DataError
from edgepack.factorize import svd, whitened
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array
from edgepack.quantize.gptq import output_energy
from tests.factorize.layers import SEEDS, inputs, layer, output_error, product, rng, seen, weight

CASE = st.tuples(st.integers(1, 16), st.integers(2, 16), st.integers(2, 60), SEEDS, st.booleans())


def made(out: int, inn: int, rows: int, seed: int, with_bias: bool) -> tuple[View, Array]:
    x = inputs(rows, inn, seed)
    bias = rng(seed).standard_normal(out).astype(np.float32) if with_bias else None
    return layer(weight(out, inn, seed), bias, seen(x)), x


def shrinkage(given_layer: View) -> float:
    n = given_layer.in_features
    assert given_layer.moments is not None
    return n / (n + 4 * given_layer.moments.count)


def in_norm(given_layer: View, pair: Replacement) -> float:
    """tr(ΔW C_λ ΔWᵀ)."""
    assert given_layer.moments is not None
    delta = given_layer.weight.astype(np.float64) - product(pair)
    return float(np.trace(delta @ whitened.shrunk_covariance(given_layer.moments) @ delta.T))


@settings(max_examples=80)
@given(CASE)
def test_error_on_the_calibration_rows_is_the_tail_of_the_spectrum(case: tuple[int, int, int, int, bool]) -> None:
    given_layer, x = made(*case)
    spectrum = whitened.spectrum(given_layer)
    share = shrinkage(given_layer)
    spread = float(np.trace(np.cov(x.T.astype(np.float64), bias=True).reshape(x.shape[1], -1))) / x.shape[1]
    for rank in range(1, len(spectrum.energies) + 1):
        pair = whitened.factors(given_layer, spectrum, rank)
        delta = given_layer.weight.astype(np.float64) - product(pair)
        added = share * spread * float(np.square(delta).sum())
        expected = (float(spectrum.energies[rank:].sum()) - added) / (1 - share)
        scale = float(spectrum.energies.sum()) / (1 - share) + 1e-9
        # The bias is float32: its rounding is an error as well, of the size of the outputs.
        slack = 1e-5 * scale + 1e-11 * float(np.square(x @ given_layer.weight.T).max())
        assert output_error(given_layer.weight, pair, given_layer.bias, x) == pytest.approx(expected, abs=slack)


@settings(max_examples=60)
@given(CASE)
def test_mean_output_is_exact_at_every_rank(case: tuple[int, int, int, int, bool]) -> None:
    given_layer, x = made(*case)
    spectrum = whitened.spectrum(given_layer)
    mean = x.astype(np.float64).mean(axis=0)
    exact = given_layer.weight.astype(np.float64) @ mean + (0 if given_layer.bias is None else given_layer.bias)
    for rank in range(1, len(spectrum.energies) + 1):
        pair = whitened.factors(given_layer, spectrum, rank)
        assert pair.bias is not None
        assert pair.bias.dtype == np.float32
        scale = float(np.abs(given_layer.weight).sum(axis=1).max() * np.abs(mean).max()) + 1.0
        np.testing.assert_allclose(product(pair) @ mean + pair.bias, exact, rtol=0, atol=1e-6 * scale)


@settings(max_examples=60)
@given(CASE)
def test_never_worse_than_plain_svd_or_a_random_projection(case: tuple[int, int, int, int, bool]) -> None:
    given_layer, _ = made(*case)
    spectrum, plain = whitened.spectrum(given_layer), svd.spectrum(given_layer)
    total = float(spectrum.energies.sum())
    for rank in range(1, len(spectrum.energies) + 1):
        own = in_norm(given_layer, whitened.factors(given_layer, spectrum, rank))
        assert own == pytest.approx(float(spectrum.energies[rank:].sum()), abs=1e-5 * total)
        assert own <= in_norm(given_layer, svd.factors(given_layer, plain, rank)) + 1e-5 * total
        q = np.linalg.qr(rng(case[3]).standard_normal((given_layer.out_features, rank)))[0].astype(np.float32)
        assert own <= in_norm(given_layer, low_rank(q, q.T @ given_layer.weight, None)) + 1e-5 * total


def test_much_better_than_plain_svd_on_correlated_inputs() -> None:
    x = (rng(0).standard_normal((500, 4)) @ rng(1).standard_normal((4, 48))).astype(np.float32)
    given_layer = layer(weight(40, 48, 2), None, seen(x))
    rank = 4
    own = whitened.factors(given_layer, whitened.spectrum(given_layer), rank)
    plain = svd.factors(given_layer, svd.spectrum(given_layer), rank)
    best = output_error(given_layer.weight, own, None, x)
    assert best < 1e-3 * output_error(given_layer.weight, plain, None, x)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_constant_features_do_no_harm(shape: tuple[int, int]) -> None:
    """Most pixels never vary: the covariance is singular, and what is constant goes into the bias."""
    x = inputs(200, shape[1], 3, still=shape[1] - 4)
    given_layer = layer(weight(*shape, seed=1), None, seen(x))
    assert given_layer.moments is not None
    assert np.linalg.matrix_rank(given_layer.moments.covariance) == 4
    spectrum = whitened.spectrum(given_layer)
    assert np.isfinite(spectrum.basis).all()
    np.testing.assert_allclose(spectrum.basis.T @ spectrum.basis, np.eye(min(shape)), atol=2e-6)
    pair = whitened.factors(given_layer, spectrum, 4)
    signal = float(np.square(x @ given_layer.weight.T).sum(axis=1).mean())
    assert output_error(given_layer.weight, pair, None, x) < 1e-3 * signal


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_full_rank_is_the_weight_itself(shape: tuple[int, int]) -> None:
    given_layer, _ = made(*shape, rows=100, seed=5, with_bias=True)
    pair = whitened.factors(given_layer, whitened.spectrum(given_layer), min(shape))
    np.testing.assert_allclose(product(pair), given_layer.weight, atol=1e-5)
    np.testing.assert_allclose(pair.bias, given_layer.bias, atol=1e-4)


def test_shrinkage_by_hand() -> None:
    moments = seen(np.array([[1, 0], [-1, 0], [0, 2], [0, -2]], np.float32))
    share = 2 / (2 + 4 * 4)
    trace = 0.5 + 2.0
    expected = (1 - share) * np.diag([0.5, 2.0]) + share * trace / 2 * np.eye(2)
    np.testing.assert_allclose(whitened.shrunk_covariance(moments), expected, rtol=1e-12)


@pytest.mark.parametrize("shrinkage", [None, 0.0, 0.4, 0.95, 1.0])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_the_spectrum_knows_the_output_energy(shape: tuple[int, int], shrinkage: float | None) -> None:
    moments = replace(seen(inputs(30, shape[1], 3)), shrinkage=shrinkage)
    given_layer = layer(weight(*shape, seed=1), None, moments)
    found = whitened.output_energy(given_layer, moments, whitened.spectrum(given_layer))
    assert found == pytest.approx(output_energy(given_layer.weight, moments.covariance), rel=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -1e3, 1e-20])
@pytest.mark.parametrize("rows", [1, 7, 5000])
def test_constant_input_is_refused(value: float, rows: int) -> None:
    """Also where rounding would have left a variance: 0.1 summed 5000 times is not 500."""
    moments = seen(np.full((rows, 6), value, np.float32))
    with pytest.raises(DataError, match="layer: its input is constant"):
        whitened.spectrum(layer(weight(4, 6, 0), None, moments))


def test_no_moments_are_refused() -> None:
    with pytest.raises(DataError, match="needs calibration statistics") as caught:
        whitened.spectrum(layer(weight(4, 6, 0)))
    assert caught.value.hint == "use --method svd"


def test_zero_weight() -> None:
    given_layer = layer(np.zeros((6, 5), np.float32), None, seen(inputs(50, 5, 0)))
    spectrum = whitened.spectrum(given_layer)
    assert not spectrum.lost_share().any()
    pair = whitened.factors(given_layer, spectrum, 2)
    assert not product(pair).any()
