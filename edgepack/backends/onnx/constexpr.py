"""Layers that are stored in code, in ONNX: their steps as standard operators.

ONNX Runtime computes what depends on constants alone while it loads the model, so that a decoded weight costs one
decoding, memory for the matrix and no time at an inference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgepack.backends.onnx.axes import enter, leave
from edgepack.model.constexpr import PRIMES, X, at_load, is_decoded
from edgepack.model.replacement import Instruction, Replacement

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepack.backends.onnx.rewrite import Builder
    from edgepack.backends.onnx.sites import Placement, Site

MIN_OPSET = 13
"""ReduceSum takes its axes as an input, and int32 has all the operators, from this opset on."""
BUCKET_OPSET = 18
"""BitwiseXor and BitwiseOr came with this one."""
_ONNX_TYPES = {"float32": 1, "int32": 6}
_UINT32 = 12
_BY = {"div": "Div", "mod": "Mod"}
_PLAIN = {"matmul": "MatMul", "mul": "Mul", "add": "Add", "sub": "Sub"}


def least_opset(constexpr: Replacement) -> int:
    """The opset that has all operators of the steps."""
    return BUCKET_OPSET if any(step.op == "bucket" for step in constexpr.program) else MIN_OPSET


def constexpr_layer(site: Site, part: Replacement) -> Callable[[Builder, ir.Value, Placement], ir.Value]:
    """The steps of a layer with its bias; what is computed at load stands once in every graph."""
    name = site.layer.name
    bias = site.layer.bias if part.bias is None else part.bias
    loaded = at_load(part)
    known: dict[int, dict[str, ir.Value]] = {}

    def build(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
        x = enter(builder, x, placement, site.dtype, convolutions=True)
        values = known.setdefault(id(placement.graph), {})
        flat = is_decoded(part) or placement.rank == 2
        here = dict(values) | {X: x if flat else _rows(builder, x, name, site.layer.in_features)}
        for step in part.program:
            if step.output in here:
                continue
            inputs = [here[i] if i in here else builder.constant(part.tensors[i], f"{name}.{i}") for i in step.inputs]
            here[step.output] = _RENDER[step.op](_Place(builder, name), inputs, step)
            if step.output in loaded:
                values[step.output] = here[step.output]
        y = here[part.program[-1].output]
        if not flat:
            y = _unfolded(builder, y, x, name, site.layer.out_features)
        if bias is not None:
            y = builder.op("Add", [y, builder.constant(np.asarray(bias, np.float32), f"{name}.bias")])
        return leave(builder, y, placement, site.dtype, convolutions=True)

    return build


class _Place:
    """A builder with short ways to write constants."""

    def __init__(self, builder: Builder, name: str) -> None:
        self.op = builder.op
        self._builder, self._name = builder, name

    def integers(self, values: int | tuple[int, ...], dtype: type[np.generic] = np.int64) -> ir.Value:
        """A small constant."""
        return self._builder.constant(np.asarray(values, dtype), f"{self._name}.number")


_Render = Callable[[_Place, list["ir.Value"], Instruction], "ir.Value"]


def _rows(builder: Builder, x: ir.Value, name: str, in_features: int) -> ir.Value:
    shape = builder.constant(np.array([-1, in_features], np.int64), f"{name}.rows")
    return builder.op("Reshape", [x, shape])


def _unfolded(builder: Builder, y: ir.Value, x: ir.Value, name: str, out_features: int) -> ir.Value:
    """The rows of y as x has them: its leading axes, then the features."""
    place = _Place(builder, name)
    leading = builder.op("Slice", [builder.op("Shape", [x]), place.integers((0,)), place.integers((-1,))])
    return builder.op("Reshape", [y, builder.op("Concat", [leading, place.integers((out_features,))], {"axis": 0})])


def _cast(place: _Place, inputs: list[ir.Value], step: Instruction) -> ir.Value:
    return place.op("Cast", inputs, {"to": _ONNX_TYPES[str(step.attributes["to"])]})


def _gather(place: _Place, inputs: list[ir.Value], step: Instruction) -> ir.Value:
    return place.op("Gather", inputs, {"axis": step.number("axis")})


def _reshape(place: _Place, inputs: list[ir.Value], step: Instruction) -> ir.Value:
    return place.op("Reshape", [*inputs, place.integers(step.numbers("shape"))])


def _transpose(place: _Place, inputs: list[ir.Value], step: Instruction) -> ir.Value:
    return place.op("Transpose", inputs, {"perm": list(step.numbers("perm"))})


def _plain(place: _Place, inputs: list[ir.Value], step: Instruction) -> ir.Value:
    return place.op(_PLAIN[step.op], inputs)


def _by(place: _Place, inputs: list[ir.Value], step: Instruction) -> ir.Value:
    return place.op(_BY[step.op], [*inputs, place.integers(step.number("by"), np.int32)])


def _cumsum(place: _Place, inputs: list[ir.Value], step: Instruction) -> ir.Value:
    return place.op("CumSum", [*inputs, place.integers(0, np.int32)])


def _scatter(place: _Place, inputs: list[ir.Value], step: Instruction) -> ir.Value:
    zeros = place.op("ConstantOfShape", [place.integers(step.numbers("size"))])
    return place.op("ScatterElements", [zeros, *inputs])


def _head(place: _Place, inputs: list[ir.Value], step: Instruction) -> ir.Value:
    flat = place.op("Reshape", [*inputs, place.integers((-1,))])
    return place.op("Slice", [flat, place.integers((0,)), place.integers(step.numbers("count"))])


def _pad(place: _Place, inputs: list[ir.Value], step: Instruction) -> ir.Value:
    return place.op("Pad", [*inputs, place.integers((0, step.number("before"), 0, step.number("after")))])


def _conv1d(place: _Place, inputs: list[ir.Value], step: Instruction) -> ir.Value:
    rows = place.op("Unsqueeze", [inputs[0], place.integers((1,))])
    filters = place.op("Unsqueeze", [inputs[1], place.integers((1,))])
    return place.op("Transpose", [place.op("Conv", [rows, filters])], {"perm": [0, 2, 1]})


def _sum(place: _Place, inputs: list[ir.Value], step: Instruction) -> ir.Value:
    return place.op("ReduceSum", [*inputs, place.integers(step.numbers("axes"))], {"keepdims": 0})


def _range(place: _Place, inputs: list[ir.Value], step: Instruction) -> ir.Value:
    ends = (place.integers(each, np.int32) for each in (0, step.number("count"), 1))
    return place.op("Range", list(ends))


def _bucket(place: _Place, inputs: list[ir.Value], step: Instruction) -> ir.Value:
    """xxh32 in products of 32 bits without a sign, which wrap: while a model is loaded every result is kept."""

    def number(value: int) -> ir.Value:
        return place.integers(value & 0xFFFFFFFF, np.uint32)

    def moved(h: ir.Value, bits: int, direction: str) -> ir.Value:
        return place.op("BitShift", [h, number(bits)], {"direction": direction})

    def mixed(h: ir.Value, bits: int) -> ir.Value:
        return place.op("BitwiseXor", [h, moved(h, bits, "RIGHT")])

    h = place.op("Mul", [place.op("Cast", inputs, {"to": _UINT32}), number(PRIMES[2])])
    h = place.op("Add", [h, number(step.number("seed") + PRIMES[4] + 4)])
    h = place.op("BitwiseOr", [moved(h, 17, "LEFT"), moved(h, 15, "RIGHT")])
    h = place.op("Mul", [h, number(PRIMES[3])])
    h = place.op("Mul", [mixed(h, 15), number(PRIMES[1])])
    h = place.op("Mul", [mixed(h, 13), number(PRIMES[2])])
    h = place.op("Mod", [mixed(h, 16), number(step.number("buckets"))])
    return place.op("Cast", [h], {"to": _ONNX_TYPES["int32"]})


_RENDER: Mapping[str, _Render] = {
    "cast": _cast,
    "gather": _gather,
    "reshape": _reshape,
    "transpose": _transpose,
    **dict.fromkeys(_PLAIN, _plain),
    **dict.fromkeys(_BY, _by),
    "cumsum": _cumsum,
    "scatter": _scatter,
    "head": _head,
    "pad": _pad,
    "conv1d": _conv1d,
    "sum": _sum,
    "range": _range,
    "bucket": _bucket,
}
