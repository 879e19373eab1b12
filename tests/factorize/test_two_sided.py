"""Two-sided factors: optimal in tr(G ΔW C ΔWᵀ), the tail of the spectrum is what they cost, and G = I is whitening."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import DataError
from edgepack.factorize import two_sided, whitened
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array
from tests.factorize.layers import SEEDS, inputs, layer, product, rng, seen, weight

CASE = st.tuples(st.integers(1, 14), st.integers(2, 14), st.integers(2, 60), SEEDS, st.integers(1, 14))


def gradients(out: int, degree: int, seed: int, scale: float = 1e-3) -> Array:
    """A second moment of rank ≤ degree with unequal directions; small, as gradients are."""
    draws = rng(seed).standard_normal((degree, out)) * np.logspace(0, 1, degree)[:, None]
    return scale * draws.T @ draws


def made(case: tuple[int, int, int, int, int]) -> tuple[View, Array]:
    out, inn, rows, seed, degree = case
    bias = rng(seed).standard_normal(out).astype(np.float32)
    return layer(weight(out, inn, seed), bias, seen(inputs(rows, inn, seed))), gradients(out, degree, seed + 1)


def damped(G: Array, damping: float = two_sided.DAMPING) -> Array:
    unit = np.trace(G) / len(G)
    return G / unit + damping * np.eye(len(G))


def cost(given_layer: View, pair: Replacement, metric: Array) -> float:
    """tr(G ΔW C ΔWᵀ) with the shrunk covariance."""
    assert given_layer.moments is not None
    delta = given_layer.weight.astype(np.float64) - product(pair)
    return float(np.trace(metric @ delta @ whitened.shrunk_covariance(given_layer.moments) @ delta.T))


@settings(max_examples=80)
@given(CASE)
def test_cost_is_the_tail_of_the_spectrum_and_nothing_of_that_rank_costs_less(
    case: tuple[int, int, int, int, int],
) -> None:
    given_layer, G = made(case)
    metric = damped(G)
    spectrum, plain = two_sided.spectrum(given_layer, G), whitened.spectrum(given_layer)
    total = float(spectrum.energies.sum())
    random = rng(case[3] + 2)
    for rank in range(1, len(spectrum.energies) + 1):
        pair = two_sided.factors(given_layer, spectrum, rank)
        assert (pair.A.shape, pair.B.shape) == ((case[0], rank), (rank, case[1]))
        assert pair.A.dtype == pair.B.dtype == np.float32
        own = cost(given_layer, pair, metric)
        assert own == pytest.approx(float(spectrum.energies[rank:].sum()), abs=1e-5 * total)
        assert own <= cost(given_layer, whitened.factors(given_layer, plain, rank), metric) + 1e-5 * total
        noise = [0.1 * random.standard_normal(side.shape).astype(np.float32) for side in (pair.A, pair.B)]
        assert own <= cost(given_layer, low_rank(pair.A + noise[0], pair.B + noise[1], None), metric) + 1e-5 * total


@settings(max_examples=60)
@given(CASE, st.floats(1e-8, 1e8))
def test_white_gradients_are_centred_whitening(case: tuple[int, int, int, int, int], scale: float) -> None:
    given_layer, _ = made(case)
    plain = whitened.spectrum(given_layer)
    spectrum = two_sided.spectrum(given_layer, scale * np.eye(case[0]), damping=0.0)
    total = float(plain.energies.sum())
    np.testing.assert_allclose(spectrum.energies, plain.energies, rtol=0, atol=1e-10 * total)
    for rank in range(1, len(plain.energies) + 1):
        # Equal energies leave the directions open: the costs are equal all the same.
        own = cost(given_layer, two_sided.factors(given_layer, spectrum, rank), np.eye(case[0]))
        theirs = cost(given_layer, whitened.factors(given_layer, plain, rank), np.eye(case[0]))
        assert own == pytest.approx(theirs, abs=1e-5 * total)


@settings(max_examples=60)
@given(CASE)
def test_basis_and_dual_are_biorthogonal_and_components_uncorrelated(case: tuple[int, int, int, int, int]) -> None:
    given_layer, G = made(case)
    spectrum = two_sided.spectrum(given_layer, G)
    assert spectrum.dual is not None
    assert given_layer.moments is not None
    basis, dual = spectrum.basis.astype(np.float64), spectrum.dual.astype(np.float64)
    loose = 1e-5 * float(np.linalg.norm(basis) * np.linalg.norm(dual))
    np.testing.assert_allclose(dual.T @ basis, np.eye(basis.shape[1]), rtol=0, atol=loose)
    latent = dual.T @ given_layer.weight
    spread = latent @ whitened.shrunk_covariance(given_layer.moments) @ latent.T
    np.testing.assert_allclose(spread, np.diag(spectrum.energies), rtol=0, atol=1e-5 * spectrum.energies.sum())


@settings(max_examples=60)
@given(CASE)
def test_cost_in_another_norm_by_the_diagonal(case: tuple[int, int, int, int, int]) -> None:
    """What a planner weighs by need not be the damped G: Σ_{i≥r} (Aᵀ G' A)_ii σ_i² holds for every G'."""
    given_layer, G = made(case)
    other = gradients(case[0], 3, case[3] + 5, 1.0)
    spectrum = two_sided.spectrum(given_layer, G)
    carried = np.einsum("ik,ij,jk->k", spectrum.basis, other, spectrum.basis, dtype=np.float64) * spectrum.energies
    for rank in range(1, len(carried) + 1):
        own = cost(given_layer, two_sided.factors(given_layer, spectrum, rank), other)
        assert own == pytest.approx(float(carried[rank:].sum()), abs=1e-5 * float(carried.sum()))


@settings(max_examples=60)
@given(CASE)
def test_mean_output_is_exact_at_every_rank(case: tuple[int, int, int, int, int]) -> None:
    given_layer, G = made(case)
    assert given_layer.moments is not None
    mean = given_layer.moments.mean
    spectrum = two_sided.spectrum(given_layer, G)
    exact = given_layer.weight.astype(np.float64) @ mean + given_layer.bias
    for rank in range(1, len(spectrum.energies) + 1):
        pair = two_sided.factors(given_layer, spectrum, rank)
        scale = float((np.abs(pair.A) @ (np.abs(pair.B) @ np.abs(mean))).max() + np.abs(exact).max()) + 1.0
        np.testing.assert_allclose(product(pair) @ mean + pair.bias, exact, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_full_rank_is_the_weight_itself(shape: tuple[int, int]) -> None:
    """Also where G is that of ten classes at most and the inputs mostly stand still."""
    given_layer = layer(weight(*shape, seed=1), None, seen(inputs(200, shape[1], 3, still=shape[1] - 4)))
    G = gradients(shape[0], 3, 4)
    pair = two_sided.factors(given_layer, two_sided.spectrum(given_layer, G), min(shape))
    np.testing.assert_allclose(product(pair), given_layer.weight, atol=1e-4)


def test_few_directions_matter_and_are_kept_first() -> None:
    """Gradients of three directions out of forty: rank 3 serves them, and whitening spends its rank elsewhere."""
    given_layer = layer(weight(40, 30, 0), None, seen(inputs(2000, 30, 1)))
    G = gradients(40, 3, 2)
    own = two_sided.factors(given_layer, two_sided.spectrum(given_layer, G, damping=1e-6), 3)
    plain = whitened.factors(given_layer, whitened.spectrum(given_layer), 3)
    assert cost(given_layer, own, G) < 1e-3 * cost(given_layer, plain, G)


def test_damping_leads_to_whitening() -> None:
    given_layer, G = made((12, 14, 60, 1, 2))
    plain = whitened.factors(given_layer, whitened.spectrum(given_layer), 4)
    damped_hard = two_sided.factors(given_layer, two_sided.spectrum(given_layer, G, damping=1e7), 4)
    np.testing.assert_allclose(product(damped_hard), product(plain), atol=1e-4)


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (None, "needs output gradients"),
        (np.eye(5), r"second moment of \(5, 5\), expected \(4, 4\)"),
        (np.zeros((4, 4)), "no gradient reaches its output"),
        (np.full((4, 4), np.nan), "NaN or Inf"),
        (np.triu(np.ones((4, 4))), "not symmetric"),
        (np.eye(4) + 9 * np.eye(4)[:, ::-1], "not positive definite"),
    ],
)
def test_refused(gradient: Array | None, message: str) -> None:
    given_layer = layer(weight(4, 6, 0), None, seen(inputs(50, 6, 0)))
    with pytest.raises(DataError, match=message):
        two_sided.spectrum(given_layer, gradient)


def test_no_moments_are_refused() -> None:
    given_layer, G = made((4, 6, 40, 0, 4))
    with pytest.raises(DataError, match="needs calibration statistics"):
        two_sided.spectrum(replace(given_layer, moments=None), G)
