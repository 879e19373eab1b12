"""One linear layer in every place that it can have in an ONNX graph, and what integer arithmetic makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends.onnx.emit import to_schemes
from edgepack.backends.onnx.file import save
from edgepack.backends.onnx.schemes import INT8_DYNAMIC
from edgepack.backends.onnx.session import session
from edgepack.backends.onnx.sites import find_sites
from edgepack.backends.runtime import load
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array
from edgepack.quantize.grids import activation_grid, quantize_weight

OUT, IN = 48, 64
LOW_HIGH = (-3.5, 4.0)
FUSED = frozenset({"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QGemm", "QLinearMatMul"})
INTEGER = FUSED | {"MatMulInteger", "ConvInteger", "MatMulNBits"}
FLOAT = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv"})

node = helper.make_node


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def info(name: str, shape: Sequence[int | str | None] | None, dtype: type = np.float32) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, Array],
    opset: int = 17,
    functions: Sequence[onnx.FunctionProto] = (),
    domain: str | None = None,
) -> ir.Model:
    initializers = [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    imports = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    made = helper.make_model(graph, opset_imports=imports, functions=functions)
    made.ir_version = 8
    return ir.serde.deserialize_model(made)


@dataclass(frozen=True)
class Place:
    """Where a layer stands: its nodes, the shape of its input and the axis of the features."""

    nodes: Callable[[bool], list[onnx.NodeProto]]
    x: tuple[int, ...]
    y: tuple[int, ...]
    axis: int
    weight: Callable[[Array], Array]
    bias: Callable[[Array], Array] = lambda b: b


def _matmul(left: str, right: str) -> Callable[[bool], list[onnx.NodeProto]]:
    def nodes(bias: bool) -> list[onnx.NodeProto]:
        made = [node("MatMul", [left, right], ["m" if bias else "y"])]
        return [*made, node("Add", ["m", "b"], ["y"])] if bias else made

    return nodes


def _one(op: str, inputs: list[str], **attributes: object) -> Callable[[bool], list[onnx.NodeProto]]:
    return lambda bias: [node(op, [*inputs, "b"] if bias else inputs, ["y"], **attributes)]


PLACES: dict[str, Place] = {
    "gemm": Place(_one("Gemm", ["x", "w"], transB=1), (5, IN), (5, OUT), -1, lambda w: w),
    "gemm-transposed": Place(_one("Gemm", ["x", "w"], transA=1), (IN, 5), (5, OUT), 0, lambda w: w.T),
    "gemm-columns": Place(_one("Gemm", ["w", "x"]), (IN, 5), (OUT, 5), 0, lambda w: w, lambda b: b[:, None]),
    "matmul-2d": Place(_matmul("x", "w"), (5, IN), (5, OUT), -1, lambda w: w.T),
    "matmul-3d": Place(_matmul("x", "w"), (2, 5, IN), (2, 5, OUT), -1, lambda w: w.T),
    "matmul-1d": Place(_matmul("x", "w"), (IN,), (OUT,), -1, lambda w: w.T),
    "columns-2d": Place(_matmul("w", "x"), (IN, 5), (OUT, 5), 0, lambda w: w, lambda b: b[:, None]),
    "columns-3d": Place(_matmul("w", "x"), (2, IN, 5), (2, OUT, 5), 1, lambda w: w, lambda b: b[:, None]),
    "columns-1d": Place(_matmul("w", "x"), (IN,), (OUT,), 0, lambda w: w),
    "conv-2d": Place(_one("Conv", ["x", "w"]), (2, IN, 3, 4), (2, OUT, 3, 4), 1, lambda w: w[:, :, None, None]),
    "conv-1d": Place(_one("Conv", ["x", "w"]), (2, IN, 7), (2, OUT, 7), 1, lambda w: w[:, :, None]),
}


def placed(place: str, *, opset: int = 17, bias: bool = True, dtype: type = np.float32) -> tuple[ir.Model, Array]:
    """A model of one layer, and an input for it."""
    p = PLACES[place]
    weights = {"w": p.weight(normal(OUT, IN)).astype(dtype)}
    if bias:
        weights["b"] = p.bias(3 * normal(OUT, seed=2)).astype(dtype)
    made = model(p.nodes(bias), [info("x", p.x, dtype)], [info("y", p.y, dtype)], weights, opset)
    x = normal(*p.x, seed=5).clip(*LOW_HIGH)
    x.flat[:2] = LOW_HIGH  # both ends of the static grid
    return made, x.astype(dtype)


def activation_codes(x: Array, scheme: Scheme, low_high: tuple[float, float]) -> Array:
    """What the scheme's activation grid makes of `x`, in floats."""
    x = x.astype(np.float32)
    if scheme.activations == "float":
        return x.astype(np.float64)
    if scheme == INT8_DYNAMIC:
        low, high = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
        scale = np.float32((high - low) / np.float32(255))
        zero = np.clip(np.rint(-low / scale), 0, 255)
        codes = np.clip(np.rint(x / scale) + zero, 0, 255)
    else:
        step, point = activation_grid(*low_high)
        scale, zero = np.float32(step), np.float32(point)
        codes = np.clip(np.rint(x / scale) + zero, -128, 127)
    return (codes.astype(np.float64) - zero) * scale


def expected(place: str, x: Array, scheme: Scheme, *, bias: bool, dtype: type, qmax: int = 127) -> Array:
    """The layer's output in exact integer arithmetic."""
    p = PLACES[place]
    codes, scales = quantize_weight(normal(OUT, IN).astype(dtype).astype(np.float32), qmax=qmax)
    w = codes.astype(np.float64) * scales[:, None]
    rows = np.moveaxis(activation_codes(x, scheme, LOW_HIGH), p.axis, -1)
    y = rows @ w.T
    if bias:
        y = y + (3 * normal(OUT, seed=2)).astype(dtype).astype(np.float64)
    return y if place.startswith("gemm-transposed") else np.moveaxis(y, -1, p.axis)


def emitted(
    source: ir.Model, scheme: Scheme, path: Path, *, qmax: int = 127, low_high: tuple[float, float] = LOW_HIGH
) -> Path:
    """Write `source` in a scheme; every layer's input has the same static range."""
    names = [site.layer.name for site in find_sites(source.clone())]
    save(to_schemes(source, scheme, ranges=dict.fromkeys(names, low_high), qmax=qmax), path)
    onnx.checker.check_model(str(path), full_check=True)
    return path


def run(path: Path, **feed: Array) -> list[Array]:
    return load(path, "onnx", exact=True).run(feed)


def fp32(source: ir.Model, **feed: Array) -> list[Array]:
    return list(session(source).run(None, dict(feed)))


def optimized(path: Path, *, exact: bool = False) -> list[str]:
    """Operators of the graph as the runtime has optimised it, subgraphs included."""
    out = path.with_suffix(".opt.onnx")
    session(path, optimized_path=out, exact=exact)
    return [n.op_type for n in ir.load(out).graph.all_nodes()]


def kernels(path: Path, *, exact: bool = False) -> list[str]:
    """The matrix products among them."""
    return sorted(op for op in optimized(path, exact=exact) if op in INTEGER | FLOAT)


def assert_close(found: Array, wanted: Array, tolerance: float) -> None:
    assert found.shape == wanted.shape
    assert np.isfinite(found.astype(float)).all()
    assert np.abs(found.astype(float) - wanted).max() <= tolerance * np.abs(wanted).max()


BOOL = TensorProto.BOOL


def in_a_branch_and_in_a_function() -> ir.Model:
    """Three layers of `x` (N, IN): one in each branch that `flag` chooses from, and one in a function behind them."""
    branches = {
        f"{kind}_branch": helper.make_graph(
            [node("MatMul", ["x", f"w_{kind}"], [f"y_{kind}"])], kind, [], [info(f"y_{kind}", ["N", OUT])]
        )
        for kind in ("then", "else")
    }
    block = helper.make_function(
        "local", "Block", ["i"], ["o"],
        [node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(normal(OUT, 16, seed=7))),
         node("MatMul", ["i", "c"], ["o"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    return model(
        [node("If", ["flag"], ["h"], **branches), node("Block", ["h"], ["y"], domain="local")],
        [info("x", ["N", IN]), helper.make_tensor_value_info("flag", BOOL, [])],
        [info("y", ["N", 16])],
        {"w_then": normal(IN, OUT) / 8, "w_else": normal(IN, OUT, seed=2) / 8},
        functions=[block],
        domain="local",
    )
