"""Weights on the lattice come out of every quantizer as they went in, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, INT8_STATIC, NBITS4, NBITS8
from edgepack.backends.tflite import schemes as tflite
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array
from edgepack.quantize.gptq import Rounded, round_to_nearest
from edgepack.quantize.grids import (
    WeightGrid,
    decoded,
    dequantize_blocks,
    few_bits,
    grid_of,
    lattice,
    nearest,
    quantize_blocks,
    quantize_matrix,
    quantize_weight,
)

FLOATS = st.floats(-(2.0**60), 2.0**60, width=32)
WEIGHTS = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 70)), elements=FLOATS)
CHANNELS = st.sampled_from([WeightGrid(127), WeightGrid(63), WeightGrid(7)])
SHARED = st.sampled_from([WeightGrid(127, shared=True), WeightGrid(7, shared=True)])
BLOCKS = st.sampled_from([WeightGrid(127, 32), WeightGrid(7, 32), WeightGrid(7, 16)])


def on_grid_again(one: Rounded, grid: WeightGrid) -> Array:
    """What the quantizers of the written files make of it."""
    if grid.block is None:
        codes, scales = (quantize_matrix if grid.shared else quantize_weight)(one.weight, qmax=grid.qmax)
        assert scales.ndim == 0 or not grid.shared or len(one.weight) == 1
        return (codes * scales.reshape(-1, 1)).astype(np.float32)
    return dequantize_blocks(*quantize_blocks(one.weight, grid.bits, grid.block), one.weight.shape[1])


@given(WEIGHTS, CHANNELS | SHARED | BLOCKS, st.floats(0.5, 1.1))
def test_rounding_again_changes_no_bit(weight: Array, grid: WeightGrid, shrink: float) -> None:
    on = lattice(weight, grid).shrunk(shrink)
    found = decoded(nearest(weight, on), on)
    again = on_grid_again(Rounded(found, found, found), grid)
    np.testing.assert_array_equal(again, found)


@given(WEIGHTS, CHANNELS | SHARED | BLOCKS)
def test_codes_and_scales_make_the_weight(weight: Array, grid: WeightGrid) -> None:
    one = round_to_nearest(weight, grid)
    size = grid.block or weight.shape[1]
    steps = np.repeat(one.scales, size, axis=1)[:, : weight.shape[1]]
    np.testing.assert_array_equal(one.codes * steps.astype(np.float64), one.weight)
    assert (one.codes.dtype, one.scales.dtype, one.weight.dtype) == (np.int8, np.float32, np.float32)
    assert one.scales.shape == (len(weight), -(-weight.shape[1] // size))


@given(WEIGHTS, CHANNELS)
def test_the_largest_code_is_reached(weight: Array, grid: WeightGrid) -> None:
    codes = np.abs(round_to_nearest(weight, grid).codes.astype(int)).max(axis=1)
    zeros = np.abs(weight).max(axis=1) <= 1e-35
    assert (codes[~zeros] == grid.qmax).all()
    assert not codes[zeros].any()


@given(WEIGHTS, SHARED)
def test_one_scale_is_that_of_the_largest_weight(weight: Array, grid: WeightGrid) -> None:
    one = round_to_nearest(weight, grid)
    known = np.abs(weight).max(axis=1) > 1e-35
    assert len(np.unique(one.scales[known])) <= 1
    assert np.abs(one.codes.astype(int)).max() == (grid.qmax if known.any() else 0)


@given(WEIGHTS, CHANNELS)
def test_nearest_is_nearest(weight: Array, grid: WeightGrid) -> None:
    found = round_to_nearest(weight, grid)
    peak = np.abs(weight).max(axis=1, keepdims=True).astype(np.float64)
    step = peak / grid.qmax
    assert (np.abs(found.weight - weight.astype(np.float64)) <= step * (0.5 + 2e-3) + 1e-35).all()


@given(st.floats(2.0**-100, 2.0**100, width=32))
def test_few_bits(step: float) -> None:
    found = float(few_bits(np.float32(step)))
    assert abs(found - step) <= 2.0**-16 * step
    assert all(float(np.float32(code * found)) == code * found for code in range(-128, 128))


@pytest.mark.parametrize(
    ("scheme", "columns", "grid"),
    [
        (FP32, 64, None),
        (INT8_DYNAMIC, 64, WeightGrid(63)),
        (INT8_STATIC, 64, WeightGrid(63)),
        (NBITS8, 64, WeightGrid(127, 32)),
        (NBITS4, 8, WeightGrid(7, 16)),
        (tflite.INT4_DYNAMIC, 64, WeightGrid(7)),
    ],
)
def test_grids_of_schemes(scheme: Scheme, columns: int, grid: WeightGrid | None) -> None:
    assert grid_of(scheme, columns, qmax=63) == grid


@pytest.mark.parametrize(("scheme", "qmax"), [(tflite.INT8_DYNAMIC, 127), (tflite.INT4_DYNAMIC, 7)], ids=str)
def test_tflite_quantizer_gives_the_codes_back(scheme: Scheme, qmax: int) -> None:
    """The min-max quantizer of TFLite files itself, through the function that it rounds with."""
    from litert_quantizer import qtyping
    from litert_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor as uniform

    weight = np.random.default_rng(0).standard_normal((20, 50)).astype(np.float32)
    grid = grid_of(scheme, weight.shape[1])
    assert grid == WeightGrid(qmax)
    one = round_to_nearest(weight, grid)
    bits = scheme.bits
    low, high = (f(one.weight, axis=1, keepdims=True) for f in (np.min, np.max))
    zero, scale = uniform.tensor_zp_scale_from_min_max(low, high, bits, True, qtyping.QuantGranularity.CHANNELWISE)
    params = qtyping.UniformQuantParams(bits, 0, scale, zero)
    np.testing.assert_array_equal(uniform.uniform_quantize(one.weight, params), one.codes)
    np.testing.assert_array_equal(scale[:, 0], one.scales[:, 0])
