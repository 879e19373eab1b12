"""Block-wise weights in the real runtime, in every place of a layer, alone and beside layers of other schemes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgepack.backends.onnx.contents import read_contents
from edgepack.backends.onnx.emit import supports, to_schemes
from edgepack.backends.onnx.file import save, to_bytes
from edgepack.backends.onnx.rewrite import with_factors
from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, INT8_STATIC, NBITS4, NBITS8
from edgepack.backends.onnx.sites import find_sites
from edgepack.backends.tflite import schemes as tflite
from edgepack.errors import ModelError, UsageError
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array
from edgepack.quantize.grids import block_for, dequantize_blocks, quantize_blocks, unpack
from tests.backends.onnx.onnx_layers import (
    FUSED,
    IN,
    LOW_HIGH,
    OUT,
    PLACES,
    assert_close,
    emitted,
    fp32,
    in_a_branch_and_in_a_function,
    info,
    kernels,
    model,
    node,
    normal,
    optimized,
    placed,
    run,
)

NBITS = [NBITS8, NBITS4]
ROUNDED = 0.012
"""Relative to the largest output: inputs are rounded to int8, block by block."""
RANK = 8


def on_grid(weight: Array, scheme: Scheme) -> Array:
    """The weight that the file stands for."""
    block = block_for(weight.shape[1])
    return dequantize_blocks(*quantize_blocks(weight, scheme.bits, block), weight.shape[1])


def in_place(place: str, x: Array, weight: Array, *, bias: bool) -> Array:
    """The layer's output with this weight, in float64."""
    p = PLACES[place]
    y = np.moveaxis(x.astype(np.float64), p.axis, -1) @ weight.T.astype(np.float64)
    if bias:
        y = y + 3 * normal(OUT, seed=2)
    return y if place.startswith("gemm-transposed") else np.moveaxis(y, -1, p.axis)


def thin(source: ir.Model, rank: int = RANK) -> tuple[ir.Model, Replacement]:
    (site,) = find_sites(source.clone())
    q = np.linalg.qr(normal(OUT, rank, seed=9))[0].astype(np.float32)
    pair = low_rank(q, q.T @ site.layer.weight, site.layer.bias)
    return with_factors(source, {site.layer.name: pair}), pair


def products(path: Path) -> list[ir.Node]:
    return [n for n in ir.load(path).graph.all_nodes() if n.op_type == "MatMulNBits"]


def decoded(product: ir.Node) -> tuple[Array, Array]:
    """(codes, weight) of a MatMulNBits as they stand in the file."""
    b, s = (product.inputs[i].const_value.numpy() for i in (1, 2))  # type: ignore[union-attr]
    codes = unpack(b, product.attributes["bits"].as_int())
    return codes, dequantize_blocks(codes, s, product.attributes["K"].as_int())


@pytest.mark.parametrize("scheme", NBITS, ids=str)
@pytest.mark.parametrize("opset", [7, 13, 26])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("place", PLACES)
def test_a_dense_layer(place: str, bias: bool, opset: int, scheme: Scheme, tmp_path: Path) -> None:
    source, x = placed(place, opset=max(opset, 11) if place.startswith("gemm") else opset, bias=bias)
    before = to_bytes(source)
    path = emitted(source, scheme, tmp_path / "q.onnx")
    assert to_bytes(source) == before
    (found,) = run(path, x=x)
    assert_close(found, in_place(place, x, on_grid(normal(OUT, IN), scheme), bias=bias), ROUNDED)
    assert_close(found, fp32(source, x=x)[0], 0.02 if scheme == NBITS8 else 0.15)
    assert kernels(path) == ["MatMulNBits"]
    written = ir.load(path)
    assert written.opset_imports["com.microsoft"] == 1
    assert [v.name for v in (*written.graph.inputs, *written.graph.outputs)] == ["x", "y"]
    assert read_contents(path).weights == ((OUT, IN, scheme.bits),)


@pytest.mark.parametrize("scheme", NBITS, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("place", PLACES)
def test_a_pair(place: str, bias: bool, scheme: Scheme, tmp_path: Path) -> None:
    """Two thin products, also in the runtime's own graph."""
    source, x = placed(place, bias=bias)
    pair, factors = thin(source)
    path = emitted(pair, scheme, tmp_path / "q.onnx")
    assert kernels(path) == kernels(path, exact=True) == ["MatMulNBits"] * 2
    bits = scheme.bits
    for file in (path, path.with_suffix(".opt.onnx")):
        contents = read_contents(file)
        assert contents.weights == ((RANK, OUT, bits), (RANK, IN, bits))
        assert any(np.array_equal(v, 3 * normal(OUT, seed=2)) for v in contents.vectors) is bias
    (found,) = run(path, x=x)
    latent = on_grid(factors.A, scheme) @ on_grid(factors.B, scheme)
    assert_close(found, in_place(place, x, latent, bias=bias), 2 * ROUNDED)
    assert_close(found, fp32(pair, x=x)[0], 0.03 if scheme == NBITS8 else 0.3)


@pytest.mark.parametrize("scheme", NBITS, ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_float16_weights(place: str, scheme: Scheme, tmp_path: Path) -> None:
    source, x = placed(place, dtype=np.float16)
    path = emitted(source, scheme, tmp_path / "q.onnx")
    (found,) = run(path, x=x)
    assert found.dtype == np.float16
    weight = normal(OUT, IN).astype(np.float16).astype(np.float32)
    assert_close(found, in_place(place, x, on_grid(weight, scheme), bias=True), ROUNDED)
    assert read_contents(path).weights == ((OUT, IN, scheme.bits),)


@pytest.mark.parametrize("scheme", NBITS, ids=str)
@pytest.mark.parametrize("place", ["gemm", "columns-3d", "conv-2d"])
def test_integers_in_the_file_lie_on_the_grid(place: str, scheme: Scheme, tmp_path: Path) -> None:
    source, _ = placed(place)
    (product,) = products(emitted(source, scheme, tmp_path / "q.onnx"))
    codes, weight = decoded(product)
    wanted, _ = quantize_blocks(normal(OUT, IN), scheme.bits)
    np.testing.assert_array_equal(codes, wanted)
    np.testing.assert_array_equal(weight, on_grid(normal(OUT, IN), scheme))
    np.testing.assert_allclose(on_grid(weight, scheme), weight, rtol=1e-6)
    assert int(np.abs(codes.astype(int)).max()) == 2 ** (scheme.bits - 1)
    assert product.attributes["accuracy_level"].as_int() == 4
    assert len(product.inputs) == 6


def test_four_bits_are_half_of_eight(tmp_path: Path) -> None:
    source, _ = placed("gemm")
    held = {}
    for scheme in NBITS:
        (product,) = products(emitted(source, scheme, tmp_path / "q.onnx"))
        held[scheme] = product.inputs[1].const_value.nbytes  # type: ignore[union-attr]
    assert held == {NBITS8: OUT * IN, NBITS4: OUT * IN // 2}


@pytest.mark.parametrize("scheme", NBITS, ids=str)
@pytest.mark.parametrize(
    ("inputs", "block", "blocks"), [(1, 16, 1), (8, 16, 1), (17, 32, 1), (33, 32, 2), (100, 32, 4)]
)
def test_sides_that_fill_no_block(scheme: Scheme, inputs: int, block: int, blocks: int, tmp_path: Path) -> None:
    """Padded in the file, and read back without the padding; scales of one block are no bias."""
    source = model(
        [node("MatMul", ["x", "w"], ["y"])],
        [info("x", ["N", inputs])],
        [info("y", ["N", 5])],
        {"w": normal(inputs, 5)},
    )
    path = emitted(source, scheme, tmp_path / "q.onnx")
    (product,) = products(path)
    assert product.inputs[1].const_value.shape == (5, blocks, block * scheme.bits // 8)  # type: ignore[union-attr]
    contents = read_contents(path)
    assert contents.weights == ((min(inputs, 5), max(inputs, 5), scheme.bits),)
    assert contents.vectors == ()
    x = normal(3, inputs, seed=5)
    assert_close(run(path, x=x)[0], x @ on_grid(normal(inputs, 5).T, scheme).T, ROUNDED)


@pytest.mark.parametrize("scheme", NBITS, ids=str)
def test_layers_in_a_branch_and_in_a_function(scheme: Scheme, tmp_path: Path) -> None:
    source = in_a_branch_and_in_a_function()
    path = emitted(source, scheme, tmp_path / "q.onnx")
    assert [bits for *_, bits in read_contents(path).weights] == [scheme.bits] * 3
    for flag in (True, False):
        feed = {"x": normal(3, IN, seed=4), "flag": np.array(flag)}
        assert_close(run(path, **feed)[0], fp32(source, **feed)[0], 0.03 if scheme == NBITS8 else 0.3)


def test_a_weight_in_two_places_is_stored_once(tmp_path: Path) -> None:
    source = model(
        [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["y"]),
         node("MatMul", ["z", "w"], ["n"]), node("Add", ["n", "c"], ["u"])],
        [info("x", ["N", IN]), info("z", ["N", IN])],
        [info("y", ["N", OUT]), info("u", ["N", OUT])],
        {"w": normal(IN, OUT), "b": normal(OUT, seed=1), "c": normal(OUT, seed=2)},
    )  # fmt: skip
    path = emitted(source, NBITS8, tmp_path / "q.onnx")
    assert read_contents(path).weights == ((OUT, IN, 8),)
    feed = {"x": normal(2, IN, seed=3), "z": normal(2, IN, seed=4)}
    for one, other in zip(run(path, **feed), fp32(source, **feed), strict=True):
        assert_close(one, other, 0.02)


def chain(axes: int = 2) -> ir.Model:
    """Four layers a, b, c, d of one size."""
    lead = ["N", 3][: axes - 1]
    values = ["x", "p", "q", "r", "y"]
    return model(
        [node("MatMul", [values[i], name], [values[i + 1]]) for i, name in enumerate("abcd")],
        [info("x", [*lead, OUT])],
        [info("y", [*lead, OUT])],
        {name: normal(OUT, OUT, seed=i) / 7 for i, name in enumerate("abcd")},
    )


@pytest.mark.parametrize("axes", [2, 3])
def test_every_layer_in_its_own_scheme(axes: int, tmp_path: Path) -> None:
    source = chain(axes)
    own = {"a": NBITS4, "b": INT8_STATIC, "c": FP32}
    path = tmp_path / "m.onnx"
    save(to_schemes(source, INT8_DYNAMIC, ranges={"b": LOW_HIGH}, schemes=own), path)
    onnx.checker.check_model(str(path), full_check=True)
    assert sorted(bits for *_, bits in read_contents(path).weights) == [4, 8, 8, 32]
    found = kernels(path)
    assert len(found) == 4
    assert set(found) & FUSED
    assert {"MatMulNBits", "MatMul"} <= set(found)
    assert "DequantizeLinear" not in optimized(path)
    x = normal(*[2, 3, OUT][-axes:], seed=8).clip(*LOW_HIGH)
    assert_close(run(path, x=x)[0], fp32(source, x=x)[0], 0.25)


@pytest.mark.parametrize("scheme", [FP32, INT8_DYNAMIC, INT8_STATIC, *NBITS], ids=str)
def test_naming_every_layer_is_the_scheme_itself(scheme: Scheme) -> None:
    source, ranges = chain(), dict.fromkeys("abcd", LOW_HIGH)
    other = FP32 if scheme != FP32 else NBITS4
    named = to_schemes(source, other, ranges=ranges, schemes=dict.fromkeys("abcd", scheme))
    assert to_bytes(named) == to_bytes(to_schemes(source, scheme, ranges=ranges))
    assert to_bytes(to_schemes(source, scheme, ranges=ranges, schemes={"a": scheme})) == to_bytes(
        to_schemes(source, scheme, ranges=ranges)
    )


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(ModelError, match="a scheme was given for 'aa', the model has no such linear layer") as caught:
        to_schemes(chain(), FP32, schemes={"aa": NBITS8})
    assert caught.value.hint == "did you mean 'a'?"
    with pytest.raises(UsageError, match="no single matrix of an ONNX file is in tflite:int8-dynamic-range"):
        to_schemes(chain(), FP32, schemes={"a": tflite.INT8_DYNAMIC})
    with pytest.raises(UsageError, match="needs calibration data"):
        to_schemes(chain(), NBITS8, schemes={"a": INT8_STATIC})
    old, _ = placed("matmul-2d", opset=6)
    with pytest.raises(UsageError, match="the model has opset 6, the scheme nbits4 needs 7"):
        to_schemes(old, FP32, schemes={"w": NBITS4})
    assert supports(NBITS8, 7)
    assert not supports(NBITS4, 6)


@pytest.mark.parametrize("scheme", NBITS, ids=str)
def test_columns_of_unknown_rank_stay_as_they_are(scheme: Scheme, tmp_path: Path) -> None:
    source = model(
        [node("Reshape", ["x", "s"], ["r"]), node("MatMul", ["w", "r"], ["y"]), node("MatMul", ["v", "x"], ["z"])],
        [info("x", [IN, 6]), info("s", ["k"], np.int64)],
        [info("y", [None] * 3), info("z", [OUT, 6])],
        {"w": normal(OUT, IN), "v": normal(OUT, IN, seed=1)},
    )
    source.graph.outputs[0].shape = None
    path = tmp_path / "q.onnx"
    save(to_schemes(source, scheme), path)
    assert sorted(bits for *_, bits in read_contents(path).weights) == [scheme.bits, 32]
    feed = {"x": normal(IN, 6), "s": np.array([2, IN, 3])}
    np.testing.assert_allclose(run(path, **feed)[0], fp32(source, **feed)[0], atol=1e-4)


@pytest.mark.parametrize("scheme", NBITS, ids=str)
def test_the_same_model_gives_the_same_bytes(scheme: Scheme) -> None:
    source, _ = placed("matmul-3d")
    assert to_bytes(to_schemes(source, scheme)) == to_bytes(to_schemes(source, scheme))
