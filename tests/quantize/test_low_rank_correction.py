"""A thin pair beside 4-bit weights: better than those alone, and the pair is the best one of its rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.quantize.gptq import gptq, round_to_nearest, row_errors
from edgepack.quantize.grids import WeightGrid, dequantize_blocks, quantize_blocks, quantize_weight
from edgepack.quantize.low_rank_correction import fit_correction, fit_rounded_correction, leading
from tests.quantize.quantize_cases import case


@pytest.mark.parametrize(("out", "columns"), [(48, 80), (80, 48)])
@pytest.mark.parametrize("grid", [WeightGrid(7), WeightGrid(7, 32)])
def test_better_than_four_bits_alone(out: int, columns: int, grid: WeightGrid) -> None:
    one = case(out, columns, 0)
    weight = one.layer.weight
    alone = gptq(weight, one.covariance, grid).weight - weight.astype(np.float64)
    found = fit_correction(weight, one.covariance, grid, 8)
    product = found.factors.A.astype(np.float64) @ found.factors.B
    off = found.base.weight + product - weight
    error = float(row_errors(off, one.covariance).sum())
    assert found.error == pytest.approx(error, rel=1e-6)
    assert error < 0.7 * float(row_errors(alone, one.covariance).sum())
    if grid.block is None:
        np.testing.assert_array_equal(quantize_weight(found.base.weight, qmax=7)[0], found.base.codes)


def test_more_rank_leaves_less() -> None:
    one = case(40, 56, 1)
    errors = [fit_correction(one.layer.weight, one.covariance, WeightGrid(7), rank).error for rank in (1, 4, 16)]
    plain = round_to_nearest(one.layer.weight, WeightGrid(7)).weight - one.layer.weight.astype(np.float64)
    assert sorted(errors, reverse=True) == errors
    assert errors[0] < float(row_errors(plain, one.covariance).sum())


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 24), st.integers(2, 24), st.integers(0, 50), st.data())
def test_leading_is_the_whitened_truncation(out: int, columns: int, seed: int, data: st.DataObject) -> None:
    one = case(out, columns, seed, rows=200)
    rank = data.draw(st.integers(1, min(out, columns)))
    found = leading(one.layer.weight.astype(np.float64), one.covariance, rank)
    exact = one.factors(rank)
    assert found.A.shape == exact.A.shape
    assert one.error(found.A, found.B) == pytest.approx(one.error(exact.A, exact.B), rel=1e-3, abs=1e-9)


GRIDS = WeightGrid(7, 32), WeightGrid(127, 32), WeightGrid(127, 32)


@settings(max_examples=10, deadline=None)
@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 50), st.integers(1, 6))
def test_rounded_together_they_are_on_their_grids_and_near_the_exact_pair(
    out: int, columns: int, seed: int, rank: int
) -> None:
    one = case(out, columns, seed, rows=200)
    exact = fit_correction(one.layer.weight, one.covariance, GRIDS[0], rank)
    found = fit_rounded_correction(one.layer.weight, one.covariance, GRIDS, rank, seed=seed)
    for part, grid in zip((found.base, found.A, found.B), GRIDS, strict=True):
        codes, scales = quantize_blocks(part.weight, grid.bits, 32)
        np.testing.assert_array_equal(dequantize_blocks(codes, scales, part.weight.shape[1]), part.weight)
    whole = found.base.weight + found.A.weight.astype(np.float64) @ found.B.weight
    error = float(row_errors(whole - one.layer.weight, one.covariance).sum())
    assert found.error == pytest.approx(error, rel=1e-6)
    energy = float(row_errors(one.layer.weight.astype(np.float64), one.covariance).sum())
    assert error <= 1.5 * exact.error + 1e-4 * energy


def test_the_matrix_makes_up_for_what_rounding_the_pair_loses() -> None:
    """With a pair in 4 bits as well, the matrix is rounded once more against what became of the pair."""
    one = case(48, 80, 3)
    coarse = WeightGrid(7, 32), WeightGrid(7, 32), WeightGrid(7, 32)
    fine = fit_rounded_correction(one.layer.weight, one.covariance, GRIDS, 8, seed=0)
    rough = fit_rounded_correction(one.layer.weight, one.covariance, coarse, 8, seed=0)
    assert fine.error < rough.error < 2.5 * fine.error
