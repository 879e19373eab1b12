"""TFLite files of one layer, written through the schema: milliseconds a file, and no converter is needed.

Operators, versions, types and attributes are those that litert-torch and litert-quantizer give the same layer, and a
test holds them to it; so the runtime takes the same kernels. Constants are aligned as LiteRT's own writers align them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.backends.tflite.facts import TOOLS
from edgepack.backends.tflite.file import KEEPS_AXES
from edgepack.errors import ModelError, install_hint
from edgepack.model.kinds.conv import ConvGeometry, Patches
from edgepack.model.point import Point, image_of, layer_of
from edgepack.model.random_layer import random_inputs, random_pair, random_weight
from edgepack.model.scheme import INT8_BITS, Scheme
from edgepack.model.types import Array
from edgepack.workspace import FileStep

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as schema


@dataclass(frozen=True)
class Part:
    """One operator of a file.

    Attributes:
        weight: (out, in), or (out, *sizes, in) of a convolution's kernel.
        bias: (out,) float32 or None.
    """

    weight: Array
    bias: Array | None

    @property
    def operator(self) -> str:
        """FULLY_CONNECTED or CONV_2D."""
        return "FULLY_CONNECTED" if self.weight.ndim == 2 else "CONV_2D"

    def __call__(self, x: Array) -> Array:
        """What it gives for inputs (samples, …, in): of an image, some of its places."""
        matrix, rows = self.weight.reshape(len(self.weight), -1), x
        if self.weight.ndim > 2:
            _, *kernel, _ = self.weight.shape
            ones = (1,) * len(kernel)
            geometry = ConvGeometry("Conv", tuple(kernel), ones, ones, (), "SAME_UPPER")
            rows = Patches(geometry)(x)  # channel by channel, where the kernel goes place by place
            matrix = np.moveaxis(self.weight, -1, 1).reshape(len(matrix), -1)
        return np.asarray(rows @ matrix.T + (0 if self.bias is None else self.bias))


@dataclass(frozen=True)
class TfliteLayer:
    """A way to write one layer: its products in their order, and inputs to take ranges from."""

    point: Point
    parts: list[Part]
    inputs: Array


def tflite_layers(points: Sequence[Point]) -> Iterator[TfliteLayer]:
    """See `Backend.one_ops`."""
    if find_spec("ai_edge_litert") is None or find_spec("flatbuffers") is None:
        raise ModelError("the TFLite schema is not installed", hint=install_hint("tflite"))
    for (rows, columns, _, kernel), alike in groupby(points, key=layer_of):
        group = list(alike)
        weight, bias = random_weight(rows, columns * prod(kernel))
        image: tuple[int, ...] = ()
        if kernel:  # of one axis as of two
            image = (*image_of(group[0]), 1)[:2]
            weight = weight.reshape(rows, *(*kernel, 1)[:2], columns)
        inputs = random_inputs(*image, columns)
        for point in group:
            parts = [Part(weight, bias)]
            if point.rank is not None:
                left, right = random_pair(rows, columns, point.rank)
                parts = [Part(right, None), Part(left, bias)]
            yield TfliteLayer(point, parts, inputs)


def _write(task: TfliteLayer, out: Path) -> None:
    write_layer(out, task.parts, task.point.scheme, 1 if task.point.kernel else task.point.batch, task.inputs)


TFLITE_LAYER: FileStep[TfliteLayer] = FileStep("layers", 5, _write, ".tflite", TOOLS)

ALIGNMENT = 16


def write_layer(path: Path, parts: Sequence[Part], scheme: Scheme, batch: int, inputs: Array) -> None:
    """Writes a chain of operators: one for a dense layer, two for low-rank factors.

    Args:
        path: where to write.
        parts: in the order in which they are multiplied.
        scheme: of TFLite.
        batch: rows of the input, or images.
        inputs: (samples, in) float32, or (samples, height, width, in), from which a static scheme takes its ranges.
    """
    graph = _Graph()
    static = scheme.is_static
    values, image = inputs, inputs.shape[1:-1]
    shape = (batch, *inputs.shape[1:])
    value = graph.tensor("x", shape, "FLOAT32")
    graph.inputs = [value]
    if static:
        scale, zero = _range(values)
        value = graph.append("QUANTIZE", [value], "x_quantized", shape, "INT8", scale, zero)
    for index, part in enumerate(parts):
        weight, weight_scale = graph.weight(f"w{index}", part.weight, scheme)
        values = part(values)
        bias = -1
        if part.bias is not None:
            bias = graph.bias(f"b{index}", part.bias, scale * weight_scale if static else None)
        shape, operands = (batch, *image, len(part.weight)), [value, weight, bias]
        if static:
            scale, zero = _range(values)
            value = graph.append(part.operator, operands, f"y{index}", shape, "INT8", scale, zero)
        else:
            value = graph.append(part.operator, operands, f"y{index}", shape, "FLOAT32")
    if static:
        value = graph.append("DEQUANTIZE", [value], "y", shape, "FLOAT32")
    graph.outputs = [value]
    path.write_bytes(graph.packed())


def _range(rows: Array) -> tuple[Array, int]:
    """Scale (1,) and zero point of an int8 activation that covers these rows and 0."""
    low, high = min(0.0, float(rows.min())), max(0.0, float(rows.max()))
    scale = max(high - low, 1e-6) / 255
    return np.array([scale], np.float32), round(-128 - low / scale)


class _Graph:
    """One subgraph while it is put together."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema = schema
        self._codes: list[str] = []
        self._tensors: list[schema.TensorT] = []
        self._operators: list[schema.OperatorT] = []
        self._buffers: list[schema.BufferT] = [schema.BufferT()]
        self.inputs: list[int] = []
        self.outputs: list[int] = []

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        kind: str,
        scale: Array | None = None,
        zero: int = 0,
        content: Array | None = None,
    ) -> int:
        """Adds a tensor and gives its index; `scale` is per row where it has more than one element."""
        made = self._schema.TensorT()
        made.shape, made.name = list(shape), name.encode()
        made.type = getattr(self._schema.TensorType, kind)
        made.buffer = 0
        if content is not None:
            buffer = self._schema.BufferT()
            buffer.data = np.frombuffer(content.tobytes(), np.uint8)
            made.buffer = len(self._buffers)
            self._buffers.append(buffer)
        if scale is not None:
            made.quantization = self._schema.QuantizationParametersT()
            made.quantization.scale = scale
            made.quantization.zeroPoint = np.full(len(scale), zero, np.int64)
        self._tensors.append(made)
        return len(self._tensors) - 1

    def weight(self, name: str, weight: Array, scheme: Scheme) -> tuple[int, Array]:
        """Adds a weight in a scheme; its index and its scale per output."""
        if scheme.is_float:
            return self.tensor(name, weight.shape, "FLOAT32", content=weight), np.ones(len(weight), np.float32)
        rows = weight.reshape(len(weight), -1)
        scale = (np.maximum(np.abs(rows).max(axis=1), 1e-9) / scheme.qmax).astype(np.float32)
        codes = np.clip(np.rint(rows / scale[:, None]), -scheme.qmax, scheme.qmax).astype(np.int8)
        if scheme.computes_in_float:
            stored = self.tensor(f"{name}_stored", weight.shape, "INT8", scale, content=codes)
            return self.append("DEQUANTIZE", [stored], name, weight.shape, "FLOAT32"), scale
        if scheme.bits == INT8_BITS:
            return self.tensor(name, weight.shape, "INT8", scale, content=codes), scale
        return self.tensor(name, weight.shape, "INT4", scale, content=_nibbles(codes)), scale

    def bias(self, name: str, bias: Array, scale: Array | None) -> int:
        """Adds a bias: float32, or int32 on the grid of its products."""
        if scale is None:
            return self.tensor(name, bias.shape, "FLOAT32", content=bias.astype(np.float32))
        codes = np.clip(np.rint(bias / scale), -(2**31) + 1, 2**31 - 1).astype(np.int32)
        return self.tensor(name, bias.shape, "INT32", scale.astype(np.float32), content=codes)

    def append(
        self,
        operator: str,
        inputs: list[int],
        name: str,
        shape: tuple[int, ...],
        kind: str,
        scale: Array | None = None,
        zero: int = 0,
    ) -> int:
        """Adds an operator and the one tensor it writes, whose index it gives."""
        if operator not in self._codes:
            self._codes.append(operator)
        made = self._schema.OperatorT()
        made.opcodeIndex = self._codes.index(operator)
        written = self.tensor(name, shape, kind, scale, zero)
        made.inputs, made.outputs = inputs, [written]
        if operator == "FULLY_CONNECTED":
            made.builtinOptionsType = self._schema.BuiltinOptions.FullyConnectedOptions
            made.builtinOptions = self._schema.FullyConnectedOptionsT()
            made.builtinOptions.keepNumDims = True
        if operator == "CONV_2D":
            made.builtinOptionsType = self._schema.BuiltinOptions.Conv2DOptions
            made.builtinOptions = self._schema.Conv2DOptionsT()
            is_point = prod(self._tensors[inputs[1]].shape[1:-1]) == 1
            made.builtinOptions.padding = self._schema.Padding.VALID if is_point else self._schema.Padding.SAME
            made.builtinOptions.strideH = made.builtinOptions.strideW = 1
        self._operators.append(made)
        return written

    def packed(self) -> bytes:
        """The file."""
        schema = self._schema
        subgraph = schema.SubGraphT()
        subgraph.tensors, subgraph.operators = self._tensors, self._operators
        subgraph.inputs, subgraph.outputs = self.inputs, self.outputs
        model = schema.ModelT()
        model.version, model.subgraphs, model.buffers = 3, [subgraph], self._buffers
        model.operatorCodes = [self._code(name) for name in self._codes]
        size = sum(0 if buffer.data is None else len(buffer.data) for buffer in self._buffers)
        builder = _aligned_builder(size + (64 << 10))
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def _code(self, name: str) -> schema.OperatorCodeT:
        made = self._schema.OperatorCodeT()
        made.builtinCode = getattr(self._schema.BuiltinOperator, name)
        made.deprecatedBuiltinCode = made.builtinCode
        made.version = KEEPS_AXES if name == "FULLY_CONNECTED" else 1
        return made


def _nibbles(codes: Array) -> Array:
    """Two 4-bit codes a byte, the first in the low half."""
    flat = codes.reshape(-1).view(np.uint8) & 0xF
    if len(flat) % 2:
        flat = np.append(flat, np.uint8(0))
    return np.asarray(flat[::2] | (flat[1::2] << 4), np.uint8)


def _aligned_builder(size: int) -> Any:
    """A flatbuffers builder that aligns large vectors."""
    import flatbuffers

    class Aligned(flatbuffers.Builder):  # type: ignore[misc]
        def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:
            return super().StartVector(elemSize, numElems, max(alignment, ALIGNMENT) if numElems > 64 else alignment)

    return Aligned(size)
