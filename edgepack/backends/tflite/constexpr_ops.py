"""The operators of layers in code, one by one, as operators of a .tflite file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from edgepack.backends.tflite.file import Writing
from edgepack.model.constexpr import PRIMES
from edgepack.model.replacement import Instruction
from edgepack.model.types import Array

_VALID = 1  # schema.fbs, Padding
_PLAIN = {"mul": ("MUL", "Mul"), "add": ("ADD", "Add"), "sub": ("SUB", "Sub")}
_BY = {"div": ("FLOOR_DIV", "FloorDiv"), "mod": ("FLOOR_MOD", "FloorMod")}


class Scope(Protocol):
    """Where a layer's steps are written: what they are called there, and what they are made of."""

    graph: Writing

    def get(self, name: str) -> int:
        """The tensor of a constant or of a step's result, which is written first if it is not there yet."""

    def turned(self, name: str) -> int:
        """The tensor of a matrix (k, n), transposed to (n, k)."""

    def spec(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype of a constant or of a step's result."""

    def value(self, name: str) -> Array | None:
        """Of what stands in this graph as a constant; None for what is computed."""


def write_step(scope: Scope, step: Instruction) -> int:
    """Write one step, and what it needs; returns the tensor of its result.

    Raises:
        ValueError: an operator that has no scheme here, or attributes of another type than `OPERATORS` says.
    """
    if step.op not in _RENDER:
        raise ValueError(f"the operator {step.op!r} has no TFLite form; there are {', '.join(_RENDER)}")
    return _RENDER[step.op](scope, step)


def product(graph: Writing, a: int, weight: int, shape: tuple[int, ...]) -> int:
    """(rows, k) by a weight (n, k) that is computed: (rows, n).

    One row is fastest as FULLY_CONNECTED. With more, LiteRT's kernel for a weight that is no constant takes as much
    time as rows; the one of BATCH_MATMUL packs the weight and reaches what a constant weight has, within a tenth for
    64 rows of a layer of 512 × 784.
    """
    if shape[0] == 1:
        return graph.op("FULLY_CONNECTED", [a, weight, -1], shape, np.float32, options="FullyConnected")
    return graph.op("BATCH_MATMUL", [a, weight], shape, np.float32, options="BatchMatMul", adjY=True)


def _cast(scope: Scope, step: Instruction) -> int:
    shape, dtype = scope.spec(step.output)
    if scope.spec(step.inputs[0])[1] == dtype:
        return scope.get(step.inputs[0])
    return scope.graph.op("CAST", [scope.get(step.inputs[0])], shape, dtype)


def _gather(scope: Scope, step: Instruction) -> int:
    inputs = [scope.get(name) for name in step.inputs]
    return scope.graph.op(
        "GATHER", inputs, *scope.spec(step.output), options="Gather", axis=step.number("axis"), batchDims=0
    )


def _reshape(scope: Scope, step: Instruction) -> int:
    value = scope.value(step.inputs[0])
    if value is not None:  # the same bytes under another shape
        return scope.graph.constant(value.reshape(step.numbers("shape")))
    shape, dtype = scope.spec(step.output)
    return scope.graph.reshape(scope.get(step.inputs[0]), shape, dtype)


def _transpose(scope: Scope, step: Instruction) -> int:
    perm = scope.graph.constant(np.array(step.numbers("perm"), np.int32))
    inputs = [scope.get(step.inputs[0]), perm]
    return scope.graph.op("TRANSPOSE", inputs, *scope.spec(step.output), options="Transpose")


def _plain(scope: Scope, step: Instruction) -> int:
    name, options = _PLAIN[step.op]
    inputs = [scope.get(each) for each in step.inputs]
    return scope.graph.op(name, inputs, *scope.spec(step.output), options=options)


def _matmul(scope: Scope, step: Instruction) -> int:
    left, right = step.inputs
    (shape, _), (a, _), (b, _) = (scope.spec(name) for name in (step.output, left, right))
    rows = int(np.prod(a[:-1]))
    x = scope.get(left)
    if len(a) != 2:
        x = scope.graph.reshape(x, (rows, a[-1]), np.float32)
    weight = scope.turned(right)
    if scope.graph.is_constant(weight):
        y = scope.graph.op("FULLY_CONNECTED", [x, weight, -1], (rows, b[1]), np.float32, options="FullyConnected")
    else:
        y = product(scope.graph, x, weight, (rows, b[1]))
    return y if len(shape) == 2 else scope.graph.reshape(y, shape, np.float32)


def _cumsum(scope: Scope, step: Instruction) -> int:
    inputs = [scope.get(step.inputs[0]), scope.graph.constant(np.array(0, np.int32))]
    return scope.graph.op("CUMSUM", inputs, *scope.spec(step.output), options="Cumsum")


def _scatter(scope: Scope, step: Instruction) -> int:
    positions, values = step.inputs
    (count,), dtype = scope.spec(positions)
    known = scope.value(positions)
    if known is None:
        indices = scope.graph.reshape(scope.get(positions), (count, 1), dtype)
    else:
        indices = scope.graph.constant(known.reshape(count, 1))
    size = scope.graph.constant(np.array(step.numbers("size"), np.int32))
    inputs = [indices, scope.get(values), size]
    return scope.graph.op("SCATTER_ND", inputs, *scope.spec(step.output), options="ScatterNd")


def _head(scope: Scope, step: Instruction) -> int:
    shape, dtype = scope.spec(step.inputs[0])
    flat = scope.get(step.inputs[0])
    if len(shape) != 1:
        flat = scope.graph.reshape(flat, (int(np.prod(shape)),), dtype)
    ends = [scope.graph.constant(np.array(each, np.int32)) for each in ((0,), step.numbers("count"))]
    return scope.graph.op("SLICE", [flat, *ends], *scope.spec(step.output), options="Slice")


def _pad(scope: Scope, step: Instruction) -> int:
    shape, dtype = scope.spec(step.output)
    width = np.zeros((len(shape), 2), np.int32)
    width[-1] = step.number("before"), step.number("after")
    return scope.graph.op("PAD", [scope.get(step.inputs[0]), scope.graph.constant(width)], shape, dtype, options="Pad")


def _conv1d(scope: Scope, step: Instruction) -> int:
    """An image of one line per row, with one channel; the filters are of the same height."""
    rows, filters = step.inputs
    (count, length), _ = scope.spec(rows)
    (channels, taps), _ = scope.spec(filters)
    shape, dtype = scope.spec(step.output)
    image = scope.graph.reshape(scope.get(rows), (count, 1, length, 1), dtype)
    known = scope.value(filters)
    if known is None:
        kernel = scope.graph.reshape(scope.get(filters), (channels, 1, taps, 1), dtype)
    else:
        kernel = scope.graph.constant(known.reshape(channels, 1, taps, 1))
    zeros = scope.graph.constant(np.zeros(channels, np.float32))
    strides = {"strideH": 1, "strideW": 1}
    size = count, 1, *shape[1:]
    y = scope.graph.op("CONV_2D", [image, kernel, zeros], size, dtype, options="Conv2D", padding=_VALID, **strides)
    return scope.graph.reshape(y, shape, dtype)


def _sum(scope: Scope, step: Instruction) -> int:
    axes = scope.graph.constant(np.array(step.numbers("axes"), np.int32))
    inputs = [scope.get(step.inputs[0]), axes]
    return scope.graph.op("SUM", inputs, *scope.spec(step.output), options="Reducer", keepDims=False)


def _range(scope: Scope, step: Instruction) -> int:
    ends = [scope.graph.constant(np.array(each, np.int32)) for each in (0, step.number("count"), 1)]
    return scope.graph.op("RANGE", ends, *scope.spec(step.output), options="Range")


def _by(scope: Scope, step: Instruction) -> int:
    by = scope.graph.constant(np.array(step.number("by"), np.int32))
    inputs = [scope.get(step.inputs[0]), by]
    name, options = _BY[step.op]
    return scope.graph.op(name, inputs, *scope.spec(step.output), options=options)


def _bucket(scope: Scope, step: Instruction) -> int:
    """xxh32 in unsigned numbers of 32 bits, whose products wrap; sums and remainders only int64 has."""
    graph = scope.graph
    shape, dtype = scope.spec(step.output)

    def number(value: int, kind: type[np.generic] = np.uint32) -> int:
        return graph.constant(np.array(value, kind))

    def times(h: int, prime: int) -> int:
        return graph.op("MUL", [h, number(prime)], shape, np.uint32, options="Mul")

    def right(h: int, bits: int) -> int:
        return graph.op("RIGHT_SHIFT", [h, number(bits)], shape, np.uint32)

    def xor(a: int, b: int) -> int:
        return graph.op("BITWISE_XOR", [a, b], shape, np.uint32)

    start = (step.number("seed") + PRIMES[4] + 4) & 0xFFFFFFFF
    wide = graph.op("CAST", [scope.get(step.inputs[0])], shape, np.int64)
    wide = graph.op("MUL", [wide, number(PRIMES[2], np.int64)], shape, np.int64, options="Mul")
    wide = graph.op("ADD", [wide, number(start, np.int64)], shape, np.int64, options="Add")
    h = graph.op("CAST", [wide], shape, np.uint32)
    h = times(xor(times(h, 1 << 17), right(h, 15)), PRIMES[3])
    h = times(xor(h, right(h, 15)), PRIMES[1])
    h = times(xor(h, right(h, 13)), PRIMES[2])
    wide = graph.op("CAST", [xor(h, right(h, 16))], shape, np.int64)
    wide = graph.op("FLOOR_MOD", [wide, number(step.number("buckets"), np.int64)], shape, np.int64, options="FloorMod")
    return graph.op("CAST", [wide], shape, dtype)


_RENDER: Mapping[str, Callable[[Scope, Instruction], int]] = {
    "cast": _cast,
    "gather": _gather,
    "reshape": _reshape,
    "transpose": _transpose,
    "matmul": _matmul,
    **dict.fromkeys(_PLAIN, _plain),
    "cumsum": _cumsum,
    "scatter": _scatter,
    "head": _head,
    "pad": _pad,
    "conv1d": _conv1d,
    "sum": _sum,
    "range": _range,
    "bucket": _bucket,
    **dict.fromkeys(_BY, _by),
}
