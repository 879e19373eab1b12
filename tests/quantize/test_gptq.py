"""Rounding by nearest planes: on the grid, never worse than round to nearest, and what the plain algorithm gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import DataError
from edgepack.model.types import Array
from edgepack.quantize.gptq import Rounded, gptq, planes, round_to_nearest, row_errors
from edgepack.quantize.grids import WeightGrid, dequantize_blocks, quantize_blocks, quantize_matrix, quantize_weight

SHARED = WeightGrid(127, shared=True), WeightGrid(7, shared=True)
GRIDS = st.sampled_from([
    WeightGrid(127), WeightGrid(63), WeightGrid(7), WeightGrid(7, 16), WeightGrid(127, 32), *SHARED
])  # fmt: skip
SIDES = st.integers(1, 48)


def inputs(rows: int, columns: int, seed: int, rank: int | None = None) -> Array:
    """Correlated inputs, in a subspace if a rank is given."""
    rng = np.random.default_rng(seed)
    rank = rank or columns
    return rng.standard_normal((rows, rank)) @ (rng.standard_normal((rank, columns)) * np.arange(1, rank + 1)[:, None])


def moment(columns: int, seed: int, rank: int | None = None) -> Array:
    x = inputs(4 * columns, columns, seed, rank)
    return x.T @ x / len(x)


def normal(out: int, columns: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((out, columns)).astype(np.float32)


def error(one: Rounded, weight: Array, hessian: Array) -> float:
    return float(row_errors((one.weight - weight).astype(np.float64), hessian).sum())


def survives(one: Rounded, grid: WeightGrid) -> None:
    if grid.shared:
        codes, scales = quantize_matrix(one.weight, qmax=grid.qmax)
        np.testing.assert_array_equal((codes * scales.reshape(-1, 1)).astype(np.float32), one.weight)
        assert len(np.unique(one.scales[np.abs(one.weight).max(axis=1) > 0])) <= 1
    elif grid.block is None:
        codes, scales = quantize_weight(one.weight, qmax=grid.qmax)
        np.testing.assert_array_equal(codes, one.codes)
        known = np.abs(one.weight).max(axis=1) > 0
        np.testing.assert_array_equal(scales[known], one.scales[known, 0])
    else:
        again = dequantize_blocks(*quantize_blocks(one.weight, grid.bits, grid.block), one.weight.shape[1])
        np.testing.assert_array_equal(again, one.weight)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, GRIDS, st.integers(0, 99), st.integers(1, 48), st.booleans())
def test_on_the_grid_and_never_worse(
    out: int, columns: int, grid: WeightGrid, seed: int, rank: int, is_coupled: bool
) -> None:
    """Also with singular hessians, rows of zeros and inputs that are always 0."""
    weight, hessian = normal(out, columns, seed), moment(columns, seed, min(rank, columns))
    weight[seed % out] = 0
    hessian[seed % columns] = hessian[:, seed % columns] = 0
    metric = moment(out, seed + 1) if is_coupled else None
    found = gptq(weight, hessian, grid, outputs=metric)
    survives(found, grid)
    assert not found.weight[seed % out].any() or is_coupled
    plain = round_to_nearest(weight, grid)
    ours, theirs = ((one.weight - weight).astype(np.float64) for one in (found, plain))
    if metric is not None:
        errors = [float(((d @ hessian) * (metric @ d)).sum()) for d in (ours, theirs)]
        assert errors[0] <= errors[1] * (1 + 1e-4) + 1e-9
        return
    least = row_errors(theirs, hessian)
    if grid.shared:
        assert row_errors(ours, hessian).sum() <= least.sum() * (1 + 1e-4) + 1e-12
        return
    assert (row_errors(ours, hessian) <= least * (1 + 1e-4) + 1e-6 * least.max(initial=0.0) + 1e-12).all()


@pytest.mark.parametrize("grid", [WeightGrid(127), WeightGrid(7), WeightGrid(7, 32), *SHARED])
def test_halves_the_error_on_correlated_inputs(grid: WeightGrid) -> None:
    weight, hessian = normal(64, 96, 1), moment(96, 2)
    plain = error(round_to_nearest(weight, grid), weight, hessian)
    assert error(gptq(weight, hessian, grid), weight, hessian) < 0.5 * plain
    assert error(gptq(weight, hessian, grid, shrinks=(1.0,)), weight, hessian) < 0.5 * plain


def test_is_the_column_by_column_algorithm() -> None:
    """Against the published form: errors fed forward through the Cholesky factor of the inverse, in natural order."""
    out, columns = 12, 140
    weight, hessian = normal(out, columns, 3), moment(columns, 4)
    hessian += 0.05 * np.diag(np.linspace(1, 2, columns))[::-1, ::-1] * np.trace(hessian) / columns
    hessian *= 1.0 / np.sqrt(np.outer(np.diag(hessian), np.diag(hessian)))  # equal energies: the order stays natural
    hessian[np.diag_indices(columns)] = 1.0
    grid = WeightGrid(127)
    ready = planes(hessian, damping=0.01)
    damped = hessian + 0.01 * np.eye(columns)
    order = ready.order[::-1]
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    left = weight[:, order].astype(np.float64)
    scale = round_to_nearest(weight, grid).scales[:, 0].astype(np.float64)
    codes = np.zeros((out, columns))
    peak = np.abs(weight[:, order]).argmax(axis=1)
    for j in range(columns):
        codes[:, j] = np.clip(np.rint(left[:, j] / scale), -127, 127)
        held = peak == j
        codes[held, j] = 127 * np.sign(weight[:, order][held, j])
        rest = (left[:, j] - codes[:, j] * scale) / upper[j, j]
        left[:, j:] -= rest[:, None] * upper[j, j:]
    found = gptq(weight, ready, grid).codes[:, order]
    assert (found != codes).mean() < 0.02  # ties that float32 decides otherwise, and what follows from them


def test_white_inputs_leave_nothing_to_gain() -> None:
    weight = normal(20, 200, 5)
    found = gptq(weight, np.eye(200), WeightGrid(127))
    np.testing.assert_array_equal(found.codes, round_to_nearest(weight, WeightGrid(127)).codes)


def test_inputs_that_never_were() -> None:
    weight = normal(4, 200, 6)
    found = gptq(weight, np.zeros((200, 200)), WeightGrid(127))
    np.testing.assert_array_equal(found.codes, round_to_nearest(weight, WeightGrid(127)).codes)


def test_short_rows_take_the_luckiest_step() -> None:
    """Of few weights: the step is moved within half a code of the largest weight."""
    weight = normal(64, 16, 17)
    errors = [
        error(one, weight, np.eye(16))
        for one in (gptq(weight, np.eye(16), WeightGrid(127)), round_to_nearest(weight, WeightGrid(127)))
    ]
    assert errors[0] < 0.95 * errors[1]


def test_an_indefinite_hessian_is_damped_until_it_is_none() -> None:
    hessian = moment(12, 7)
    hessian -= 0.2 * np.trace(hessian) / 12 * np.eye(12)
    assert np.linalg.eigvalsh(hessian).min() < -0.1 * np.trace(hessian) / 12
    survives(gptq(normal(5, 12, 8), hessian, WeightGrid(7)), WeightGrid(7))


def test_a_singular_hessian_without_damping() -> None:
    ready = planes(moment(12, 7, rank=3), damping=0.0)
    assert np.isfinite(ready.lower).all()


def test_what_is_not_finite_is_refused() -> None:
    hessian = np.eye(3)
    hessian[0, 1] = np.nan
    with pytest.raises(DataError, match="3 features is not finite"):
        planes(hessian)


def test_the_unit_of_the_hessian_does_not_matter() -> None:
    weight, hessian = normal(9, 33, 9), moment(33, 10)
    first, second = (gptq(weight, hessian * unit, WeightGrid(127)) for unit in (2.0**-80, 2.0**80))
    np.testing.assert_array_equal(first.codes, second.codes)


def test_output_weights_steer_the_error() -> None:
    """One direction of the outputs counts a thousandfold: the coupled rounding loses less there."""
    rng = np.random.default_rng(11)
    weight, hessian = normal(48, 64, 12), moment(64, 13)
    basis = np.linalg.qr(rng.standard_normal((48, 48)))[0]
    metric = (basis * np.geomspace(1000, 1, 48)) @ basis.T
    errors = []
    for outputs in (metric, None):
        delta = (gptq(weight, hessian, WeightGrid(127), outputs=outputs).weight - weight).astype(np.float64)
        errors.append(float(((delta @ hessian) * (metric @ delta)).sum()))
    assert errors[0] < 0.8 * errors[1]


def test_equal_bits_for_equal_inputs() -> None:
    weight, hessian = normal(30, 50, 14), moment(50, 15)
    first, again = (gptq(weight.copy(), hessian.copy(), WeightGrid(7), outputs=moment(30, 16)) for _ in range(2))
    np.testing.assert_array_equal(first.weight, again.weight)
