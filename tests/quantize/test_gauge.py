"""The gauge: the same product in a basis whose latent has no small components for one int8 scale to lose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.factorize import svd
from edgepack.quantize.gauge import balanced
from edgepack.quantize.grid import activation_grid, quantize_weight
from edgepack.types import Array, Factors, LinearLayer, Spectrum


def decaying(out: int, inn: int, seed: int, power: float = 1.0) -> LinearLayer:
    """Singular values k^-power: they span more than a decade."""
    rng = np.random.default_rng(seed)
    side = min(out, inn)
    u = np.linalg.qr(rng.standard_normal((out, side)))[0]
    v = np.linalg.qr(rng.standard_normal((inn, side)))[0]
    bias = rng.standard_normal(out).astype(np.float32)
    return LinearLayer("l", ((u * np.arange(1, side + 1) ** -power) @ v.T).astype(np.float32), bias, "Gemm")


def pair_of(layer: LinearLayer, rank: int) -> tuple[Factors, Spectrum]:
    spectrum = svd.spectrum(layer)
    return svd.factors(layer, spectrum, rank), spectrum


@settings(max_examples=50)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 99), st.floats(0, 6), st.data())
def test_the_product_stays(out: int, inn: int, seed: int, power: float, data: st.DataObject) -> None:
    layer = decaying(out, inn, seed, power)
    rank = data.draw(st.integers(1, min(out, inn)))
    pair, spectrum = pair_of(layer, rank)
    found = balanced(pair, spectrum, seed=seed)
    assert (found.A.dtype, found.B.dtype) == (np.float32, np.float32)
    assert (found.A.shape, found.B.shape) == (pair.A.shape, pair.B.shape)
    assert found.bias is pair.bias
    exact = pair.A.astype(float) @ pair.B
    error = np.linalg.norm(found.A.astype(float) @ found.B - exact)
    assert error <= 1e-5 * np.linalg.norm(exact)


def test_deterministic_per_seed_and_different_between_seeds() -> None:
    pair, spectrum = pair_of(decaying(30, 40, 0), 8)
    first, again, other = (balanced(pair, spectrum, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.A, again.A)
    np.testing.assert_array_equal(first.B, again.B)
    assert np.abs(first.A - other.A).max() > 1e-2


def test_zero_matrix() -> None:
    layer = LinearLayer("l", np.zeros((12, 10), np.float32), None, "Gemm")
    found = balanced(*pair_of(layer, 4), seed=0)
    assert np.isfinite(found.A).all()
    assert not (found.A @ found.B).any()


def test_vanishing_singular_values() -> None:
    """Rank asked for is above the rank of the matrix: no division by the zeros behind it."""
    rng = np.random.default_rng(1)
    weight = (rng.standard_normal((20, 2)) @ rng.standard_normal((2, 30))).astype(np.float32)
    found = balanced(*pair_of(LinearLayer("l", weight, None, "Gemm"), 10), seed=0)
    np.testing.assert_allclose(found.A @ found.B, weight, atol=1e-4)
    assert max(np.abs(found.A).max(), np.abs(found.B).max()) < 100


@pytest.mark.parametrize("seed", range(4))
def test_components_of_the_latent_carry_alike(seed: int) -> None:
    """White inputs give the latent the covariance B Bᵀ. Before: σ_k². After: their spread is a fraction."""
    pair, spectrum = pair_of(decaying(96, 128, seed), 32)
    before, after = (np.square(f.B).sum(axis=1) ** 0.5 for f in (pair, balanced(pair, spectrum, seed=seed)))
    assert before.max() / before.min() == pytest.approx(32, rel=1e-3)
    assert after.max() / after.min() < 5


def int8_error(pair: Factors, x: Array) -> float:
    """Relative output error with int8 weights and an int8 latent, against the same pair in floats."""
    b, a = (np.multiply(codes, s[:, None]) for codes, s in (quantize_weight(pair.B), quantize_weight(pair.A)))
    latent = x @ b.T
    scale, zero = activation_grid(float(latent.min()), float(latent.max()))
    on_grid = (np.clip(np.rint(latent / scale) + zero, -128, 127) - zero) * scale
    exact = x @ pair.B.T @ pair.A.T
    return float(np.square(on_grid @ a.T - exact).sum() / np.square(exact).sum())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("power", [0.7, 1.0, 1.5])
def test_quantizes_better_on_a_decaying_spectrum(seed: int, power: float) -> None:
    pair, spectrum = pair_of(decaying(96, 128, seed, power), 32)
    x = np.random.default_rng(seed + 10).standard_normal((400, 128)).astype(np.float32)
    assert int8_error(balanced(pair, spectrum, seed=0), x) < 0.8 * int8_error(pair, x)
