"""Integer weights that are decoded at load: fewer bytes, float arithmetic, nothing left of it at an inference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgepack.backends.onnx.contents import read_contents
from edgepack.backends.onnx.file import save
from edgepack.backends.onnx.schemes import WEIGHTS4, WEIGHTS8
from edgepack.backends.onnx.session import session
from edgepack.model.scheme import Scheme
from edgepack.quantize.grids import quantize_weight
from tests.backends.onnx.onnx_layers import (
    IN,
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
    optimized,
    placed,
    run,
)


def saved(source: ir.Model, path: Path) -> Path:
    save(source, path)
    return path


DTYPES = [np.float32, np.float16]
SCHEMES = [WEIGHTS8, WEIGHTS4]


@pytest.mark.parametrize("opset", [11, 13, 17])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_answer_is_that_of_the_rounded_weights(
    scheme: Scheme, place: str, bias: bool, opset: int, tmp_path: Path
) -> None:
    source, x = placed(place, opset=opset, bias=bias)
    path = emitted(source, scheme, tmp_path / "q.onnx")
    wanted = expected(place, x, scheme, bias=bias, dtype=np.float32, qmax=scheme.qmax)
    assert_close(run(path, x=x)[0], wanted, 1e-5)
    assert_close(run(path, x=x)[0], fp32(source, x=x)[0], 2.5 / scheme.qmax)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_nothing_is_decoded_at_an_inference(scheme: Scheme, place: str, dtype: type, tmp_path: Path) -> None:
    source, x = placed(place, dtype=dtype)
    path = emitted(source, scheme, tmp_path / "q.onnx")
    assert read_contents(path).weights == ((min(OUT, IN), max(OUT, IN), scheme.bits),)
    assert not {"Mul", "Gather"} & set(optimized(path))
    assert kernels(path) == kernels(saved(source, tmp_path / "fp32.onnx"))
    assert run(path, x=x)[0].dtype == dtype


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_weight_in_several_places_is_stored_and_decoded_once(scheme: Scheme, tmp_path: Path) -> None:
    source = model(
        [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["b"]), node("MatMul", ["b", "w"], ["y"])],
        [info("x", ["N", 32])],
        [info("y", ["N", 32])],
        {"w": normal(32, 32) / 6},
    )
    path = emitted(source, scheme, tmp_path / "q.onnx")
    written = ir.load(path)
    assert len([name for name in written.graph.initializers if name.endswith(f".int{scheme.bits}")]) == 1
    assert [each.op_type for each in written.graph].count("Mul") == 1
    x = normal(4, 32, seed=8)
    assert_close(run(path, x=x)[0], fp32(source, x=x)[0], 4 / scheme.qmax)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_branches_and_functions(scheme: Scheme, tmp_path: Path) -> None:
    source = in_a_branch_and_in_a_function()
    path = emitted(source, scheme, tmp_path / "q.onnx")
    assert not {"Mul", "Cast"} & set(optimized(path))
    for flag in (True, False):
        feed = {"x": normal(3, IN, seed=1), "flag": np.array(flag)}
        for one, other in zip(run(path, **feed), fp32(source, **feed), strict=True):
            assert_close(one, other, 4 / scheme.qmax)


@pytest.mark.parametrize("sides", [(5, 7), (4, 7), (5, 8)])
def test_odd_sides_in_four_bits(sides: tuple[int, int], tmp_path: Path) -> None:
    outputs, inputs = sides
    source = model(
        [node("MatMul", ["x", "w"], ["y"])], [info("x", [1, inputs])], [info("y", [1, outputs])],
        {"w": normal(inputs, outputs)},
    )  # fmt: skip
    path = emitted(source, WEIGHTS4, tmp_path / "q.onnx")
    assert read_contents(path).weights == ((*sorted(sides), 4),)
    codes, scales = quantize_weight(normal(inputs, outputs).T, qmax=7)
    x = normal(1, inputs, seed=1)
    assert_close(run(path, x=x)[0], x @ (codes * scales[:, None]).T, 1e-5)
    assert "Slice" not in optimized(path)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_bytes(scheme: Scheme, tmp_path: Path) -> None:
    """Of the weight, a scale per channel, and less than a kilobyte of operators and names."""
    source, _ = placed("gemm")
    path = emitted(source, scheme, tmp_path / "q.onnx")
    less = saved(source, tmp_path / "fp32.onnx").stat().st_size - path.stat().st_size
    table = 512 if scheme == WEIGHTS4 else 0
    assert less > OUT * IN * (32 - scheme.bits) / 8 - 4 * OUT - table - 1000


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_contents_of_branches_and_functions(scheme: Scheme, tmp_path: Path) -> None:
    """The codes that are stored, wherever they stand, and what the runtime holds of them under the same name."""
    path = emitted(in_a_branch_and_in_a_function(), scheme, tmp_path / "q.onnx")
    found = read_contents(path)
    assert {bits for *_, bits in found.weights} == {scheme.bits}
    session(path, optimized_path=tmp_path / "optimized.onnx")
    held = {product.content for product in read_contents(tmp_path / "optimized.onnx").products}
    assert held & {product.content for product in found.products}
