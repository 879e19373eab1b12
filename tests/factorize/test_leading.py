"""The leading part of a decomposition captures what the whole one does, without the products of a whole one."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack.factorize import whitened
from edgepack.factorize.leading import MOST, leading, pays
from edgepack.model.types import Array
from tests.factorize.layers import inputs, layer, product, rng, seen, weight

SIDE, RANK = 800, 24
K = np.arange(1, SIDE + 1)
SPECTRA = {
    "fast": np.exp(-K / 10.0),
    "decaying": K**-2.0,
    "slow": K**-0.5,
    "flat": np.ones(SIDE),
    "clustered": np.where(K <= RANK - 8, 10.0 / K, np.where(K <= RANK + 100, 0.1, 1e-3)),
    "of low rank": (K <= 10).astype(float),
    "nothing": np.zeros(SIDE),
}


def rotated(energies: Array) -> Array:
    """A symmetric matrix with these eigenvalues."""
    q, _ = np.linalg.qr(rng(1).standard_normal((SIDE, SIDE)))
    return (q * energies) @ q.T


@pytest.mark.parametrize("name", SPECTRA)
def test_every_rank_leaves_what_the_best_would_but_for_a_ten_thousandth(name: str) -> None:
    energies = SPECTRA[name]
    matrix = rotated(energies)
    found = leading(lambda block: matrix @ block, SIDE, RANK, float(energies.sum()))
    assert found is not None
    values, vectors = found
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(RANK), atol=1e-12)
    captured = np.cumsum(((matrix @ vectors) * vectors).sum(axis=0))
    np.testing.assert_allclose(np.cumsum(values), captured, atol=1e-12 * energies.sum())
    tail = energies.sum() - np.cumsum(energies)[:RANK]
    assert (np.cumsum(energies)[:RANK] - captured <= 1e-4 * tail + 1e-12 * energies.sum()).all()


def test_same_bits_again_and_no_more_products_than_it_may_take() -> None:
    matrix, columns = rotated(SPECTRA["decaying"]), []

    def product(block: Array) -> Array:
        columns.append(block.shape[1])
        return matrix @ block

    first, second = (leading(product, SIDE, RANK, float(np.trace(matrix))) for _ in range(2))
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first[1], second[1])
    assert sum(columns) / 2 <= MOST * SIDE


def test_gives_up_where_a_spectrum_hardly_falls() -> None:
    energies: Array = 1 - K / (SIDE + 1)
    matrix = rotated(energies)
    assert leading(lambda block: matrix @ block, SIDE, 100, float(energies.sum())) is None


@pytest.mark.parametrize(("side", "rank", "paid"), [(4096, 256, True), (4096, 1536, False), (512, 8, False)])
def test_pays_for_few_vectors_of_a_large_matrix_alone(side: int, rank: int, paid: bool) -> None:
    assert pays(side, rank) is paid


@pytest.mark.parametrize("out", [640, 760])
def test_a_layer_by_its_leading_part_has_the_energies_and_factors_of_the_whole(out: int) -> None:
    x = inputs(4000, 700, seed=2) / np.arange(1, 701, dtype=np.float32)
    one = layer(weight(out, 700, seed=3), None, seen(x))
    whole, part = whitened.spectrum(one), whitened.spectrum(one, 8)
    assert part.basis.shape == (out, 8)
    np.testing.assert_allclose(part.lost_share(), whole.lost_share()[:9], rtol=1e-4)
    assert float(part.energies.sum()) + part.rest == pytest.approx(float(whole.energies.sum()), rel=1e-10)
    best, found = (whitened.factors(one, spectrum, 8) for spectrum in (whole, part))
    np.testing.assert_allclose(product(found), product(best), atol=1e-2 * float(np.abs(product(best)).max()))
