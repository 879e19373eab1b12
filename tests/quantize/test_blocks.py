"""Block grids: what the codes stand for, how they are packed, and that the runtime decodes just that."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends.onnx.session import session
from edgepack.model.types import Array
from edgepack.quantize.grids import (
    BLOCK,
    PANEL_ROWS,
    block_for,
    dequantize_blocks,
    pack,
    quantize_blocks,
    stored_block_bytes,
    unpack,
)

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
WEIGHTS = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 70)), elements=FLOATS)
BITS, BLOCKS = st.sampled_from([2, 4, 8]), st.sampled_from([16, 32, 64])


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_block(weight: Array, block: int) -> Array:
    padded = np.pad(weight, ((0, 0), (0, -weight.shape[1] % block)))
    return padded.reshape(len(weight), -1, block).astype(np.float64)


def plain_error(weight: Array, bits: int, block: int) -> Array:
    """Squared error per block of the grid that is the same on both sides of zero."""
    blocks, top = by_block(weight, block), 2 ** (bits - 1) - 1
    peak = np.abs(blocks).max(axis=-1, keepdims=True)
    step = np.where(peak > 0, peak / top, 1)
    return np.square(np.rint(blocks / step) * step - blocks).sum(axis=-1)


@given(WEIGHTS, BITS, BLOCKS)
def test_codes_and_scales(weight: Array, bits: int, block: int) -> None:
    codes, scales = quantize_blocks(weight, bits, block)
    count = -(-weight.shape[1] // block)
    assert (codes.shape, codes.dtype) == ((len(weight), count, block), np.int8)
    assert (scales.shape, scales.dtype) == ((len(weight), count), np.float32)
    assert np.isfinite(scales).all()
    assert (np.abs(scales) >= np.finfo(np.float32).tiny).all()
    top = 2 ** (bits - 1)
    assert codes.min() >= -top
    assert codes.max() <= top - 1
    padding = codes.reshape(len(weight), -1)[:, weight.shape[1] :]
    assert not padding.any()


@given(WEIGHTS, BITS, BLOCKS)
def test_never_worse_than_the_even_grid(weight: Array, bits: int, block: int) -> None:
    found = dequantize_blocks(*quantize_blocks(weight, bits, block), weight.shape[1])
    error = np.square(by_block(found, block) - by_block(weight, block)).sum(axis=-1)
    peak = np.abs(by_block(weight, block)).max(axis=-1)
    assert (error <= plain_error(weight, bits, block) + 1e-5 * peak**2 + 1e-68).all()


@given(WEIGHTS, BITS, BLOCKS)
def test_every_weight_is_within_a_step(weight: Array, bits: int, block: int) -> None:
    codes, scales = quantize_blocks(weight, bits, block)
    error = np.abs(by_block(dequantize_blocks(codes, scales, weight.shape[1]), block) - by_block(weight, block))
    step = np.abs(scales)[..., None].astype(np.float64)
    cut_off = codes == 2 ** (bits - 1) - 1
    assert (error <= step * np.where(cut_off, 1 + 1e-4, 0.5 + 1e-4) + 1e-34).all()


@given(WEIGHTS, BITS, BLOCKS)
def test_weights_on_the_grid_stay_as_they_are(weight: Array, bits: int, block: int) -> None:
    once = dequantize_blocks(*quantize_blocks(weight, bits, block), weight.shape[1])
    twice = dequantize_blocks(*quantize_blocks(once, bits, block), weight.shape[1])
    np.testing.assert_allclose(twice, once, rtol=1e-6)


@given(hnp.arrays(np.int8, st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([16, 32]))), BITS)
def test_packing(codes: Array, bits: int) -> None:
    codes = (codes >> (8 - bits)).astype(np.int8)
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.nbytes * 8 == codes.size * bits
    np.testing.assert_array_equal(unpack(packed, bits), codes)


def test_packed_by_hand() -> None:
    codes = np.array([[[-8, 7, 0, 1]]], np.int8)
    assert pack(codes, 4).tolist() == [[[0xF0, 0x98]]]
    assert pack(codes, 8).tolist() == [[[120, 135, 128, 129]]]
    assert pack(np.array([[[-2, 1, 0, -1]]], np.int8), 2).tolist() == [[[0b01_10_11_00]]]


def test_grids_by_hand() -> None:
    """Alone, a weight is exact on either grid; what 8 levels fit better than 7 takes the code of which there is one."""
    even, scale = quantize_blocks(np.array([[7.0, -7.0] + [0.0] * 14], np.float32), 4, 16)
    assert even[0, 0, :2].tolist() == [7, -7]
    assert scale.tolist() == [[1.0]]
    finer, scale = quantize_blocks(np.array([[8.0, -7.0, 3.0, 5.0] + [0.0] * 12], np.float32), 4, 16)
    assert finer[0, 0, :4].tolist() == [-8, 7, -3, -5]
    assert scale.tolist() == [[-1.0]]


def test_blocks_of_zeros_and_of_denormals() -> None:
    codes, scales = quantize_blocks(np.array([[0.0] * 16 + [1e-45] * 16], np.float32), 4, 16)
    assert not codes.any()
    assert scales.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(("bits", "level"), [(4, 21.0), (8, 45.5)])
def test_noise_on_normal_weights(bits: int, level: float) -> None:
    weight = normal(256, 1024)
    error = dequantize_blocks(*quantize_blocks(weight, bits), 1024) - weight
    noise = 10 * np.log10(np.square(weight).sum() / np.square(error).sum())
    assert noise == pytest.approx(level, abs=0.6)


def test_block_sizes() -> None:
    assert [block_for(n) for n in (1, 16, 17, 32, 1000)] == [16, 16, 32, 32, 32]


@given(st.integers(1, 40), st.integers(1, 200), BITS)
def test_stored_bytes(rows: int, columns: int, bits: int) -> None:
    codes, scales = quantize_blocks(np.ones((rows, columns), np.float32), bits, block_for(columns))
    assert stored_block_bytes(rows, columns, bits) == pack(codes, bits).nbytes + scales.nbytes


def runtime_product(weight: Array, x: Array, bits: int, block: int, level: int) -> Array:
    """x Wᵀ as MatMulNBits computes it."""
    codes, scales = quantize_blocks(weight, bits, block)
    sizes = {"N": weight.shape[0], "K": weight.shape[1], "bits": bits, "block_size": block, "accuracy_level": level}
    node = helper.make_node("MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", **sizes)
    constants = [numpy_helper.from_array(pack(codes, bits), "b"), numpy_helper.from_array(scales, "s")]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["M", k])
        for n, k in zip("xy", weight.shape[::-1], strict=True)
    ]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], constants)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(graph, opset_imports=imports, ir_version=8)
    return np.asarray(session(made.SerializeToString()).run(None, {"x": x})[0])


def on_int8_blocks(x: Array, block: int) -> Array:
    """The input as the kernel rounds it: symmetric, a scale per row and block of inputs."""
    blocks = by_block(x, block)
    step = np.abs(blocks).max(axis=-1, keepdims=True) / 127
    rounded = np.rint(blocks / np.where(step > 0, step, 1)) * step
    return rounded.reshape(len(x), -1)[:, : x.shape[1]]


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 150), st.integers(1, 6), BITS, BLOCKS, st.integers(0, 99))
def test_the_runtime_computes_with_the_decoded_weights(
    rows: int, columns: int, batch: int, bits: int, block: int, seed: int
) -> None:
    weight, x = normal(rows, columns, seed=seed), normal(batch, columns, seed=seed + 1)
    decoded = dequantize_blocks(*quantize_blocks(weight, bits, block), columns).astype(np.float64)
    size = np.abs(x).astype(np.float64) @ np.abs(decoded).T
    exact = runtime_product(weight, x, bits, block, 1)
    assert (np.abs(exact - x @ decoded.T) <= 1e-5 * size).all()
    # Rounding to int8 is exact up to ties; one of them moves an input by a step.
    rounded = runtime_product(weight, x, bits, block, 4)
    assert (np.abs(rounded - x @ decoded.T) <= 0.01 * size.max()).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, BLOCK, 64])
@pytest.mark.parametrize("batch", [1, 5])
def test_the_int8_kernel_is_exact_and_does_not_saturate(bits: int, block: int, batch: int) -> None:
    """Extreme codes on both sides: products of 128 by 127 that add up beyond 16 bits."""
    top = 2 ** (bits - 1)
    row = np.where(np.arange(4 * block) % block == 0, -(top - 1) / top, 1).astype(np.float32)
    assert set(np.unique(quantize_blocks(row[None], bits, block)[0])) == {-top, top - 1}
    for sign in (1, -1):
        x = np.tile(sign * np.sign(row), (batch, 1)).astype(np.float32)
        found = runtime_product(np.tile(row, (3, 1)), x, bits, block, 4)
        np.testing.assert_allclose(found, sign * np.abs(row).sum(), rtol=1e-5)
    weight, x = normal(24, 4 * block), normal(batch, 4 * block, seed=3)
    decoded = dequantize_blocks(*quantize_blocks(weight, bits, block), 4 * block)
    found = runtime_product(weight, x, bits, block, 4)
    wanted = on_int8_blocks(x, block) @ decoded.T.astype(np.float64)
    np.testing.assert_allclose(found, wanted, atol=2e-5 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rows_are_rounded_each_by_itself_however_many_there_are(bits: int) -> None:
    weight = np.random.default_rng(bits).standard_normal((2 * PANEL_ROWS + 3, 40)).astype(np.float32)
    codes, scales = quantize_blocks(weight, bits, 32)
    for row in (0, PANEL_ROWS - 1, PANEL_ROWS, len(weight) - 1):
        one = quantize_blocks(weight[row : row + 1], bits, 32)
        np.testing.assert_array_equal(codes[row], one[0][0])
        np.testing.assert_array_equal(scales[row], one[1][0])
