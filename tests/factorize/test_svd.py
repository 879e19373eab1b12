"""Plain SVD: optimal (Eckart and Young), orthonormal, and sound where singular values repeat or vanish."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.factorize import svd
from edgepack.model.types import Spectrum
from tests.factorize.layers import SEEDS, SIDES, layer, product, rng, weight

KINDS = st.sampled_from(["full", "deficient", "duplicate", "zero"])


@settings(max_examples=60)
@given(SIDES, SIDES, SEEDS, KINDS)
def test_best_possible_error_at_every_rank(out: int, inn: int, seed: int, kind: str) -> None:
    w = weight(out, inn, seed, kind)
    given_layer = layer(w)
    spectrum = svd.spectrum(given_layer)
    sigma2 = np.linalg.svd(w.astype(np.float64), compute_uv=False) ** 2
    assert len(spectrum.energies) == min(out, inn)
    scale = max(float(sigma2.sum()), 1e-12)
    np.testing.assert_allclose(spectrum.energies, sigma2, rtol=0, atol=1e-10 * scale)
    for rank in range(1, min(out, inn) + 1):
        pair = svd.factors(given_layer, spectrum, rank)
        assert (pair.A.shape, pair.B.shape, pair.rank) == ((out, rank), (rank, inn), rank)
        assert pair.A.dtype == pair.B.dtype == np.float32
        error = float(np.square(w - product(pair)).sum())
        assert error == pytest.approx(float(sigma2[rank:].sum()), abs=2e-6 * scale)


@settings(max_examples=60)
@given(SIDES, SIDES, SEEDS, KINDS)
def test_basis_is_orthonormal(out: int, inn: int, seed: int, kind: str) -> None:
    spectrum = svd.spectrum(layer(weight(out, inn, seed, kind)))
    k = min(out, inn)
    assert spectrum.basis.shape == (out, k)
    assert spectrum.basis.dtype == np.float32
    assert spectrum.energies.dtype == np.float64
    np.testing.assert_allclose(spectrum.basis.T @ spectrum.basis, np.eye(k), atol=2e-6)
    assert (np.diff(spectrum.energies) <= 1e-9 * max(spectrum.energies[0], 1e-300)).all()
    assert (spectrum.energies >= 0).all()


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (16, 16), (1, 40), (40, 1)])
def test_full_rank_is_the_weight_itself(shape: tuple[int, int]) -> None:
    w = weight(*shape, seed=1)
    bias = rng(2).standard_normal(shape[0]).astype(np.float32)
    given_layer = layer(w, bias)
    pair = svd.factors(given_layer, svd.spectrum(given_layer), min(shape))
    np.testing.assert_allclose(product(pair), w, atol=1e-5)
    assert pair.bias is bias


def test_small_singular_values_beside_large_ones() -> None:
    """Six decades of singular values: the tail is still found, though it comes from a Gram matrix."""
    u, v = (np.linalg.qr(rng(s).standard_normal((n, 12)))[0] for s, n in ((0, 40), (1, 25)))
    sigma = np.logspace(0, -5, 12)
    for w in ((u * sigma) @ v.T, (v * sigma) @ u.T):
        energies = svd.decompose(w).energies
        np.testing.assert_allclose(np.sqrt(energies[:12]), sigma, rtol=1e-3)


def test_no_bias_stays_no_bias_and_the_mean_is_unknown() -> None:
    given_layer = layer(weight(8, 9, 0))
    spectrum = svd.spectrum(given_layer)
    assert spectrum.mean is None
    assert svd.factors(given_layer, spectrum, 2).bias is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_lost_share_is_a_share(energies: list[float]) -> None:
    lost = Spectrum(np.eye(len(energies), dtype=np.float32), np.sort(energies)[::-1].copy()).lost_share()
    assert len(lost) == len(energies) + 1
    assert lost[-1] == 0.0
    assert lost[0] == (pytest.approx(1.0) if sum(energies) > 0 else 0.0)
    assert (np.diff(lost) <= 1e-15).all()


def test_lost_share_by_hand() -> None:
    lost = Spectrum(np.eye(3, dtype=np.float32), np.array([6.0, 3.0, 1.0])).lost_share()
    np.testing.assert_allclose(lost, [1.0, 0.4, 0.1, 0.0])
