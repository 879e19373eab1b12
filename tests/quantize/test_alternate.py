"""Alternation: on the grids, never worse than its parts, and half of what round to nearest loses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.model.replacement import low_rank
from edgepack.model.types import Array
from edgepack.quantize.alternate import alternate
from edgepack.quantize.gptq import round_to_nearest
from edgepack.quantize.grids import WeightGrid, dequantize_blocks, quantize_blocks, quantize_weight
from edgepack.quantize.rotation import balanced, search_latent_rotation, turned
from tests.quantize.quantize_cases import case


def rewritten(weight: Array, grid: WeightGrid) -> Array:
    """As the quantizers of the written files round it."""
    if grid.block is None:
        codes, scales = quantize_weight(weight, qmax=grid.qmax)
        return (codes * scales[:, None]).astype(np.float32)
    return dequantize_blocks(*quantize_blocks(weight, grid.bits, grid.block), weight.shape[1])


@settings(max_examples=15, deadline=None)
@given(st.integers(3, 30), st.integers(3, 30), st.integers(0, 50), st.sampled_from([127, 63, 7]), st.data())
def test_on_the_grids_and_never_worse(out: int, columns: int, seed: int, qmax: int, data: st.DataObject) -> None:
    one = case(out, columns, seed, rows=200)
    rank = data.draw(st.integers(1, min(out, columns)))
    block = data.draw(st.sampled_from([None, 16])) if qmax != 63 else None
    grids = (WeightGrid(qmax, block), WeightGrid(qmax, block))
    pair = balanced(one.factors(rank), one.spectrum, seed=0)
    found = alternate(one.layer.weight, pair, one.covariance, grids)
    gptq_alone = alternate(one.layer.weight, pair, one.covariance, grids, rounds=0)
    for part, grid in zip((found.A, found.B), grids, strict=True):
        np.testing.assert_array_equal(rewritten(part.weight, grid), part.weight)
    nearest = one.error(*(round_to_nearest(f, g).weight for f, g in zip((pair.A, pair.B), grids, strict=True)))
    unit = one.error(np.zeros_like(pair.A), pair.B)
    assert unit == pytest.approx(1.0)
    assert one.error(found.A.weight, found.B.weight) <= nearest + 1e-9
    assert found.added <= gptq_alone.added


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("grid", [WeightGrid(127), WeightGrid(7), WeightGrid(7, 32)])
def test_halves_the_rounding_error(grid: WeightGrid, seed: int) -> None:
    one = case(96, 128, seed)
    pair, grids = one.factors(32), (grid, grid)
    exact = one.error(pair.A, pair.B)
    plain = balanced(pair, one.spectrum, seed=0)
    nearest = one.error(*(round_to_nearest(f, grid).weight for f in (plain.A, plain.B))) - exact
    basis = turned(pair, one.spectrum, search_latent_rotation(pair, one.spectrum, grids, seed=0), seed=0)
    found = alternate(one.layer.weight, basis, one.covariance, grids)
    assert one.error(found.A.weight, found.B.weight) - exact < 0.5 * nearest


def test_what_rounding_adds_to_the_error_of_the_pair() -> None:
    one = case(30, 40, 1)
    metric = np.diag(np.linspace(0.1, 2, 30))

    def lost(A: Array, B: Array) -> float:
        delta = one.layer.weight - A.astype(np.float64) @ B
        return float(((delta @ one.covariance) * (metric @ delta)).sum())

    pair = balanced(one.factors(8), one.spectrum, seed=0)
    found = alternate(one.layer.weight, pair, one.covariance, (WeightGrid(127), WeightGrid(127)), gradient=metric)
    assert found.added == pytest.approx(lost(found.A.weight, found.B.weight) - lost(pair.A, pair.B))


def test_gradients_move_the_error_to_where_it_costs_less() -> None:
    one = case(60, 80, 2)
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((60, 60)))[0]
    metric = (basis * np.geomspace(300, 1, 60)) @ basis.T
    pair = balanced(one.factors(60), one.spectrum, seed=0)
    grids = (WeightGrid(7), WeightGrid(7))
    errors = []
    for gradient in (metric, None):
        found = alternate(one.layer.weight, pair, one.covariance, grids, gradient=gradient)
        delta = one.layer.weight - found.A.weight.astype(np.float64) @ found.B.weight
        errors.append(float(((delta @ one.covariance) * (metric @ delta)).sum()))
    assert errors[0] < errors[1]


def test_noise_of_the_latent_is_counted() -> None:
    one = case(30, 40, 3)
    pair, grids = balanced(one.factors(8), one.spectrum, seed=0), (WeightGrid(127), WeightGrid(127))
    quiet, noisy = (alternate(one.layer.weight, pair, one.covariance, grids, latent_noise=n) for n in (0.0, 0.05))

    def lost(A: Array, B: Array) -> float:
        delta = one.layer.weight - A.astype(np.float64) @ B
        return float(((delta @ one.covariance) * delta).sum()) + 0.05 * float(np.square(A.astype(np.float64)).sum())

    assert noisy.added == pytest.approx(lost(noisy.A.weight, noisy.B.weight) - lost(pair.A, pair.B), rel=1e-6)
    assert np.linalg.norm(noisy.A.weight @ noisy.B.weight) < np.linalg.norm(quiet.A.weight @ quiet.B.weight)


def test_ranks_that_the_weight_does_not_have() -> None:
    one = case(20, 24, 4)
    pair = low_rank(np.zeros((20, 5), np.float32), np.zeros((5, 24), np.float32), None)
    found = alternate(one.layer.weight, pair, one.covariance, (WeightGrid(127), WeightGrid(127)))
    assert np.isfinite(found.A.weight).all()
    assert np.isfinite(found.B.weight).all()


def test_equal_bits_for_equal_inputs() -> None:
    one = case(30, 40, 5)
    pair = balanced(one.factors(8), one.spectrum, seed=0)
    first, again = (
        alternate(one.layer.weight, pair, one.covariance, (WeightGrid(7), WeightGrid(127))) for _ in range(2)
    )
    np.testing.assert_array_equal(first.A.weight, again.A.weight)
    np.testing.assert_array_equal(first.B.weight, again.B.weight)
