"""Fisher-weighted rows: FWSVD as published without moments, the diagonal of the two-sided method with them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import DataError
from edgepack.factorize import fisher, svd, two_sided, whitened
from edgepack.model.types import Array
from tests.factorize.layers import SEEDS, SIDES, inputs, layer, product, rng, seen, weight


def row_sums(out: int, seed: int) -> Array:
    return np.asarray(rng(seed).uniform(0.1, 10.0, out) * 1e-6)


@settings(max_examples=80)
@given(SIDES, SIDES, SEEDS)
def test_without_moments_it_is_the_svd_of_the_weighted_rows(out: int, inn: int, seed: int) -> None:
    w, sums = weight(out, inn, seed), row_sums(out, seed)
    given_layer = layer(w)
    spectrum = fisher.by_rows(given_layer, sums)
    scale = np.sqrt(sums / sums.mean())[:, None]
    u, sigma, v = np.linalg.svd(scale * w.astype(np.float64), full_matrices=False)
    for rank in range(1, min(out, inn) + 1):
        pair = fisher.factors(given_layer, spectrum, rank)
        expected = (u[:, :rank] * sigma[:rank]) @ v[:rank] / scale
        lost = float(np.square(scale * (w - product(pair))).sum())
        assert lost == pytest.approx(float(np.square(sigma[rank:]).sum()), abs=1e-5 * float(np.square(sigma).sum()))
        if rank == len(sigma) or sigma[rank] < 0.9 * sigma[rank - 1]:  # else the directions are open
            np.testing.assert_allclose(product(pair), expected, rtol=0, atol=1e-3 * np.abs(w).max())
        assert pair.bias is None


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(2, 12), SEEDS)
def test_with_moments_it_is_two_sided_with_the_diagonal(out: int, inn: int, seed: int) -> None:
    given_layer = layer(weight(out, inn, seed), None, seen(inputs(60, inn, seed)))
    draws = rng(seed).standard_normal((40, out)) * rng(seed + 1).uniform(0.5, 3.0, out)
    G = draws.T @ draws
    own = fisher.spectrum(given_layer, G)
    theirs = two_sided.spectrum(given_layer, np.diag(np.diag(G)), damping=0.0)
    np.testing.assert_allclose(own.energies, theirs.energies, rtol=0, atol=1e-9 * theirs.energies.sum())
    np.testing.assert_array_equal(own.mean, theirs.mean)


@pytest.mark.parametrize("with_moments", [True, False])
def test_equal_rows_are_the_unweighted_method(with_moments: bool) -> None:
    given_layer = layer(weight(9, 14, 3), None, seen(inputs(80, 14, 3)) if with_moments else None)
    method = whitened if with_moments else svd
    own = fisher.factors(given_layer, fisher.by_rows(given_layer, np.full(9, 3e-7)), 4)
    theirs = method.factors(given_layer, method.spectrum(given_layer), 4)
    np.testing.assert_allclose(product(own), product(theirs), atol=1e-5)


def test_full_rank_is_the_weight_itself_though_rows_have_no_gradient() -> None:
    given_layer = layer(weight(8, 12, 0), None, seen(inputs(80, 12, 0)))
    pair = fisher.factors(given_layer, fisher.by_rows(given_layer, np.eye(8)[0]), 8)
    np.testing.assert_allclose(product(pair), given_layer.weight, atol=1e-4)


@pytest.mark.parametrize("sums", [np.ones(3), np.zeros(4), -np.ones(4), np.array([1, 2, np.nan, 4.0])])
def test_bad_row_sums_are_refused(sums: Array) -> None:
    with pytest.raises(DataError, match="row sums of the Fisher must be 4 finite numbers"):
        fisher.by_rows(layer(weight(4, 6, 0)), sums)


def test_no_gradients_are_refused() -> None:
    given_layer = layer(weight(4, 6, 0))
    with pytest.raises(DataError, match="needs output gradients"):
        fisher.spectrum(given_layer)
    with pytest.raises(DataError, match="no gradient reaches"):
        fisher.spectrum(given_layer, np.zeros((4, 4)))
