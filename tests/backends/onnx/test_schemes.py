"""ONNX schemes in the real runtime: the arithmetic is right to the integer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgepack.backends.onnx.contents import read_contents
from edgepack.backends.onnx.emit import supports, to_schemes
from edgepack.backends.onnx.file import save, to_bytes
from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, INT8_STATIC
from edgepack.backends.onnx.sites import find_sites
from edgepack.backends.tflite.schemes import INT4_DYNAMIC
from edgepack.errors import UsageError
from edgepack.model.scheme import Scheme
from edgepack.quantize.grids import quantize_weight
from tests.backends.onnx.onnx_layers import (
    FUSED,
    IN,
    LOW_HIGH,
    OUT,
    PLACES,
    assert_close,
    emitted,
    expected,
    fp32,
    in_a_branch_and_in_a_function,
    info,
    kernels,
    model,
    node,
    normal,
    placed,
    run,
)

INT8 = [INT8_DYNAMIC, INT8_STATIC]
NEWEST = 26
"""The newest opset that the runtime declares support for."""

EXACT = 2e-5
"""Relative to the largest output: float32 rounding of exact integer sums. One wrong code would be 4e-3."""


@pytest.mark.parametrize("scheme", INT8, ids=str)
@pytest.mark.parametrize("opset", [11, 13, 17, NEWEST])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("place", PLACES)
def test_arithmetic_is_exact(place: str, bias: bool, opset: int, scheme: Scheme, tmp_path: Path) -> None:
    source, x = placed(place, opset=opset, bias=bias)
    before = to_bytes(source)
    path = emitted(source, scheme, tmp_path / "q.onnx")
    assert to_bytes(source) == before
    (found,) = run(path, x=x)
    # The static Gemm holds its bias in int32 steps of scale·scale: half a step is within the tolerance as well.
    assert_close(found, expected(place, x, scheme, bias=bias, dtype=np.float32), EXACT)
    (reference,) = fp32(source, x=x)
    assert_close(found, reference, 0.02)
    written = ir.load(path)
    assert written.opset_imports[""] == opset
    assert [v.name for v in (*written.graph.inputs, *written.graph.outputs)] == ["x", "y"]


@pytest.mark.parametrize("scheme", INT8, ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_float16_weights(place: str, scheme: Scheme, tmp_path: Path) -> None:
    source, x = placed(place, dtype=np.float16)
    path = emitted(source, scheme, tmp_path / "q.onnx")
    (found,) = run(path, x=x)
    assert found.dtype == np.float16
    assert_close(found, expected(place, x, scheme, bias=True, dtype=np.float16), 1e-3)
    assert [bits for *_, bits in read_contents(path).weights] == [8]


@pytest.mark.parametrize("scheme", INT8, ids=str)
def test_nodes_stay_in_order_where_layers_share_inputs_across_places(scheme: Scheme, tmp_path: Path) -> None:
    """`w` is used before and after `v` is needed by another layer; the checker insists on topological order."""
    source = model(
        [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["x"], ["v"]), node("MatMul", ["v", "u"], ["c"]),
         node("Relu", ["c"], ["d"]), node("MatMul", ["d", "w"], ["e"]), node("MatMul", ["v", "w"], ["f"])],
        [info("x", ["N", 32])],
        [info(n, ["N", 32]) for n in "aef"],
        {"w": normal(32, 32) / 6, "u": normal(32, 32, seed=3) / 6},
    )  # fmt: skip
    path = emitted(source, scheme, tmp_path / "q.onnx")
    x = normal(4, 32, seed=8)
    for one, other in zip(run(path, x=x), fp32(source, x=x), strict=True):
        assert_close(one, other, 0.04)


@pytest.mark.parametrize("scheme", INT8, ids=str)
@pytest.mark.parametrize("qmax", [127, 63])
@pytest.mark.parametrize("place", PLACES)
def test_integers_in_the_file_are_the_grids(place: str, qmax: int, scheme: Scheme, tmp_path: Path) -> None:
    source, x = placed(place)
    path = emitted(source, scheme, tmp_path / "q.onnx", qmax=qmax)
    codes, scales = quantize_weight(normal(OUT, IN), qmax=qmax)
    constants = {v.name: v.const_value.numpy() for v in ir.load(path).graph.initializers.values() if v.const_value}
    (found,) = (a for a in constants.values() if a.dtype == np.int8 and a.size == codes.size)
    matrix = found.reshape(found.shape[:2])
    np.testing.assert_array_equal(matrix if matrix.shape == codes.shape else matrix.T, codes)
    assert int(np.abs(found.astype(int)).max()) == qmax
    assert (np.abs(matrix.astype(int)).max(axis=int(matrix.shape == codes.shape)) == qmax).all(), "per channel"
    assert any(np.array_equal(a.ravel(), scales) for a in constants.values() if a.dtype == np.float32)
    assert_close(run(path, x=x)[0], expected(place, x, scheme, bias=True, dtype=np.float32, qmax=qmax), 2 * EXACT)


def test_zero_channels_and_constant_inputs(tmp_path: Path) -> None:
    weight = normal(IN, OUT)
    weight[:, 3] = 0
    source = model(
        [node("MatMul", ["x", "w"], ["y"])], [info("x", ["N", IN])], [info("y", ["N", OUT])], {"w": weight}
    )  # fmt: skip
    for scheme in INT8:
        path = emitted(source, scheme, tmp_path / "q.onnx")
        for x in (np.zeros((2, IN), np.float32), np.full((2, IN), 3.0, np.float32), -np.ones((2, IN), np.float32)):
            (found,) = run(path, x=x)
            assert not found[:, 3].any()
            assert_close(found + 1, fp32(source, x=x)[0] + 1, 0.02)


def test_inputs_beyond_the_static_range_saturate(tmp_path: Path) -> None:
    source, x = placed("gemm", bias=False)
    path = emitted(source, INT8_STATIC, tmp_path / "q.onnx")
    far = np.where(x > 0, np.float32(1e6), np.float32(-1e6))
    assert_close(run(path, x=far)[0], run(path, x=np.where(x > 0, *LOW_HIGH[::-1]).astype(np.float32))[0], EXACT)


def test_a_bias_too_large_for_int32_stays_a_float(tmp_path: Path) -> None:
    source = model(
        [node("Gemm", ["x", "w", "b"], ["y"])],
        [info("x", ["N", IN])],
        [info("y", ["N", OUT])],
        {"w": normal(IN, OUT) * 1e-6, "b": normal(OUT, seed=1) * 1e6},
    )
    path = emitted(source, INT8_STATIC, tmp_path / "q.onnx")
    x = normal(3, IN)
    assert_close(run(path, x=x)[0], fp32(source, x=x)[0], 1e-5)
    assert set(kernels(path)) <= FUSED


@pytest.mark.parametrize("scheme", INT8, ids=str)
def test_columns_of_unknown_rank_stay_as_they_are(scheme: Scheme, tmp_path: Path) -> None:
    source = model(
        [node("Reshape", ["x", "s"], ["r"]), node("MatMul", ["w", "r"], ["y"]), node("MatMul", ["v", "x"], ["z"])],
        [info("x", [IN, 6]), info("s", ["k"], np.int64)],
        [info("y", [None] * 3), info("z", [OUT, 6])],
        {"w": normal(OUT, IN), "v": normal(OUT, IN, seed=1)},
    )
    source.graph.outputs[0].shape = None
    path = tmp_path / "q.onnx"
    names = [site.layer.name for site in find_sites(source.clone())]
    path.write_bytes(to_bytes(to_schemes(source, scheme, ranges=dict.fromkeys(names, LOW_HIGH))))
    feed = {"x": normal(IN, 6).clip(*LOW_HIGH), "s": np.array([2, IN, 3])}
    y, z = run(path, **feed)
    np.testing.assert_allclose(y, fp32(source, **feed)[0], atol=1e-4)
    assert_close(z, fp32(source, **feed)[1], 0.02)
    assert sorted(bits for *_, bits in read_contents(path).weights) == [8, 32]


@pytest.mark.parametrize("scheme", INT8, ids=str)
def test_layers_in_a_branch_and_in_a_function(scheme: Scheme, tmp_path: Path) -> None:
    source = in_a_branch_and_in_a_function()
    path = emitted(source, scheme, tmp_path / "q.onnx")
    assert [bits for *_, bits in read_contents(path).weights] == [8, 8, 8]
    for flag in (True, False):
        feed = {"x": normal(3, IN, seed=4).clip(*LOW_HIGH), "flag": np.array(flag)}
        assert_close(run(path, **feed)[0], fp32(source, **feed)[0], 0.04)


def test_layers_without_a_range_stay_fp32(tmp_path: Path) -> None:
    source = model(
        [node("MatMul", ["x", "w"], ["m"]), node("MatMul", ["m", "v"], ["y"])],
        [info("x", ["N", IN])],
        [info("y", ["N", 16])],
        {"w": normal(IN, OUT), "v": normal(OUT, 16)},
    )
    (tmp_path / "q.onnx").write_bytes(to_bytes(to_schemes(source, INT8_STATIC, ranges={"v": (-30.0, 30.0)})))
    assert sorted(read_contents(tmp_path / "q.onnx").weights) == [(16, OUT, 8), (OUT, IN, 32)]


def test_fp32_is_the_model_itself() -> None:
    source, _ = placed("gemm")
    assert to_bytes(to_schemes(source, FP32)) == to_bytes(source)


@pytest.mark.parametrize("scheme", INT8, ids=str)
def test_the_same_model_gives_the_same_bytes(scheme: Scheme) -> None:
    source, _ = placed("matmul-3d")
    ranges = dict.fromkeys([s.layer.name for s in find_sites(source.clone())], LOW_HIGH)
    assert to_bytes(to_schemes(source, scheme, ranges=ranges)) == to_bytes(to_schemes(source, scheme, ranges=ranges))


def test_what_cannot_be_written_is_refused() -> None:
    source, _ = placed("gemm")
    with pytest.raises(UsageError, match="in tflite:int4-dynamic-range; there are fp32, int8-weights, int4"):
        to_schemes(source, INT4_DYNAMIC)
    with pytest.raises(UsageError, match="needs calibration data") as caught:
        to_schemes(source, INT8_STATIC)
    assert "--data" in (caught.value.hint or "")
    old, _ = placed("matmul-2d", opset=10)
    with pytest.raises(UsageError, match="the model has opset 10, the scheme int8-dynamic needs 11"):
        to_schemes(old, INT8_DYNAMIC)
    assert supports(INT8_STATIC, 10)
    assert not supports(INT8_DYNAMIC, 10)
    assert supports(FP32, 7)


@pytest.mark.parametrize("after", [FP32, INT8_DYNAMIC, INT8_STATIC], ids=str)
@pytest.mark.parametrize("activation", ["Relu", "Clip", "Sigmoid"])
@pytest.mark.parametrize("view", [False, True], ids=["", "view between"])
def test_a_static_layer_keeps_its_kernel_whatever_follows(
    activation: str, view: bool, after: Scheme, tmp_path: Path
) -> None:
    """Between a Gemm and a float operator the runtime makes one float operator of a Relu and it."""
    limits = ["low", "high"] if activation == "Clip" else []
    nodes = [
        node("Gemm", ["x", "w", "b"], ["a"], transB=1),
        node(activation, ["a", *limits], ["r"]),
        node("Reshape", ["r", "shape"], ["v"]) if view else node("Identity", ["r"], ["v"]),
        node("Gemm", ["v", "u"], ["y"]),
    ]
    weights = {
        "w": normal(OUT, IN) / 8, "b": normal(OUT, seed=2), "u": normal(OUT, 16, seed=3) / 8,
        "low": np.float32(0), "high": np.float32(6), "shape": np.array([-1, OUT]),
    }  # fmt: skip
    kept = {name: one for name, one in weights.items() if any(name in each.input for each in nodes)}
    source = model(nodes, [info("x", [1, IN])], [info("y", [1, 16])], kept)
    path = tmp_path / "q.onnx"
    ranges = {"w": LOW_HIGH, "u": (0.0, 6.0)}
    save(to_schemes(source, INT8_STATIC, ranges=ranges, schemes={"u": after}), path)
    x = normal(1, IN, seed=5).clip(*LOW_HIGH)
    assert_close(run(path, x=x)[0], fp32(source, x=x)[0], 0.04)
    assert set(kernels(path)) & {"QGemm", "MatMulIntegerToFloat"}, "the static layer"
    assert sum(one in FUSED for one in kernels(path)) == 1 + (not after.is_float)
