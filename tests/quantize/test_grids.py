"""Integer grids: errors within half a step, codes that survive a second rounding, and an exact zero."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgepack.model.types import Array
from edgepack.quantize.grids import activation_grid, quantize_weight, weight_scales

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
WEIGHTS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=6), elements=FLOATS)
RANGES = st.tuples(st.floats(-(2.0**100), 2.0**100, width=32), st.floats(-(2.0**100), 2.0**100, width=32)).map(sorted)
TINY = float(np.finfo(np.float32).tiny)


def dequantized(codes: Array, scales: Array, axis: int) -> Array:
    shape = [1] * codes.ndim
    shape[axis] = -1
    return codes.astype(np.float64) * scales.reshape(shape)


@given(WEIGHTS, st.data(), st.sampled_from([127, 63]))
def test_error_is_at_most_half_a_step(weight: Array, data: st.DataObject, qmax: int) -> None:
    axis = data.draw(st.integers(0, weight.ndim - 1))
    codes, scales = quantize_weight(weight, axis=axis, qmax=qmax)
    assert (codes.dtype, scales.dtype) == (np.int8, np.float32)
    assert (codes.shape, scales.shape) == (weight.shape, (weight.shape[axis],))
    assert int(np.abs(codes.astype(int)).max()) <= qmax
    assert (scales > 0).all()
    step = dequantized(np.ones_like(codes), scales, axis)
    # The scale is rounded to float32, so 127 steps may end a relative 1e-7 short of the largest weight.
    assert (np.abs(dequantized(codes, scales, axis) - weight) <= step * (0.5 + 2e-5)).all()


@given(WEIGHTS, st.sampled_from([127, 63]))
def test_quantizing_again_changes_nothing(weight: Array, qmax: int) -> None:
    """So a min-max quantizer that reads the dequantized weight gives the same integers back."""
    codes, scales = quantize_weight(weight, qmax=qmax)
    grid = dequantized(codes, scales, 0).astype(np.float32)
    again, same = quantize_weight(grid, qmax=qmax)
    full = np.abs(codes.astype(int)).reshape(len(codes), -1).max(axis=1) == qmax
    np.testing.assert_array_equal(again[full], codes[full])
    np.testing.assert_allclose(same[full], scales[full], rtol=3e-7)


@given(WEIGHTS)
def test_the_largest_weight_of_a_channel_has_the_largest_code(weight: Array) -> None:
    codes, _ = quantize_weight(weight)
    peak = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    peak_code = np.abs(codes.astype(int)).reshape(len(codes), -1).max(axis=1)
    assert (peak_code[peak > 127 * TINY] == 127).all()


def test_channels_of_zeros_and_of_denormals() -> None:
    codes, scales = quantize_weight(np.array([[0, 0], [1e-45, -1e-45], [254, -127]], np.float32))
    assert scales.tolist() == [1.0, pytest.approx(TINY), 2.0]
    assert codes.tolist() == [[0, 0], [0, 0], [127, -64]]


def test_one_channel_does_not_coarsen_another() -> None:
    scales = weight_scales(np.array([[1e-3, 0], [1e3, 0]], np.float32))
    assert scales[1] / scales[0] == pytest.approx(1e6, rel=1e-5)


def test_axis_of_the_channels() -> None:
    weight = np.array([[1, 200], [2, 100]], np.float32)
    np.testing.assert_allclose(weight_scales(weight, axis=1), np.array([2, 200]) / 127, rtol=1e-6)
    np.testing.assert_allclose(weight_scales(weight, axis=0), np.array([200, 100]) / 127, rtol=1e-6)


@given(RANGES)
def test_zero_is_exact_and_the_range_is_covered(low_high: list[float]) -> None:
    low, high = low_high
    scale, zero = activation_grid(low, high)
    assert scale > 0
    assert scale == float(np.float32(scale))
    assert isinstance(zero, int)
    assert -128 <= zero <= 127
    assert (zero - zero) * scale == 0.0
    for value in (min(low, 0.0), max(high, 0.0)):
        code = np.clip(np.rint(value / scale) + zero, -128, 127)
        assert abs((code - zero) * scale - value) <= scale * (1 + 1e-4)


@pytest.mark.parametrize(
    ("low", "high", "zero"),
    [(0.0, 2.55, -128), (-2.55, 0.0, 127), (1.0, 2.55, -128), (-2.55, -1.0, 127), (-1.28, 1.27, 0), (0.0, 0.0, 0)],
)
def test_activation_grids_by_hand(low: float, high: float, zero: int) -> None:
    scale, found = activation_grid(low, high)
    assert found == zero
    assert scale == pytest.approx(1.0 if low == high else 0.01, rel=1e-6)


@pytest.mark.parametrize("tiny", [1e-45, 1e-40])
def test_a_range_too_small_for_a_float_still_has_a_grid(tiny: float) -> None:
    scale, zero = activation_grid(0.0, tiny)
    assert scale == pytest.approx(TINY)
    assert zero == -128
