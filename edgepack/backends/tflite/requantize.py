"""Low-rank factors of a file that computes in int8: their operators are put on grids, all else stays as it was given.

y = requantized(A requantized(B x)): what flows between two operators is int8 on a grid that covers what is met there on
samples; weights are int8, symmetric, and biases int32 on the grid of the products.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.backends.tflite.decoded import FLOAT, operator_name, readers_of, value_of
from edgepack.backends.tflite.file import File, drop_codes, drop_unused, packed, text, whole
from edgepack.backends.tflite.kinds.conv import DEPTHWISE
from edgepack.backends.tflite.runtime import interpreter, session
from edgepack.backends.tflite.schemes import INT8_STATIC
from edgepack.errors import ModelError
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array
from edgepack.quantize.grids import activation_grid, has_one_scale, quantize_weight

_PRODUCTS = ("FULLY_CONNECTED", "CONV_2D", DEPTHWISE)
_INT8, _INT32 = 9, 2  # schema.fbs, TensorType
_SCALE_A_ROW = 12
"""Version of FULLY_CONNECTED in int8 whose weight has a scale for each output."""
_LARGEST_SUM = 2**31 - 1


@dataclass(frozen=True)
class _Chain:
    """Products in float32 between DEQUANTIZE and QUANTIZE, all of the schema's objects."""

    first: Any
    products: Sequence[Any]
    last: Any

    @property
    def latents(self) -> list[int]:
        """The tensors between two products."""
        return [int(product.outputs[0]) for product in self.products[:-1]]


def requantize(
    source: Path,
    path: Path,
    scheme: Scheme,
    samples: Mapping[str, Array] | None = None,
    schemes: Mapping[str, Scheme] | None = None,
) -> None:
    """Write a file of `rewrite.Editor` in which the factors of a model in int8 compute in int8 as well.

    Args:
        source: the file, in which they are float32 between DEQUANTIZE and QUANTIZE.
        path: where to write.
        scheme: of all of them that are not in `schemes`: int8-static, or float32 for those that stay as they are.
        samples: by input name, (samples, *input shape of the file).
        schemes: of single operators, by the name of the tensor that they write.

    Raises:
        ModelError: there are no samples, or the file does not run on them.
    """
    model, single = whole(source), schemes or {}
    graph = model.subgraphs[0]
    wanted = [
        chain
        for chain in _chains(model, graph)
        if single.get(text(graph.tensors[chain.products[-1].outputs[0]].name), scheme) == INT8_STATIC
    ]
    ranges = _ranges(source, [tensor for chain in wanted for tensor in chain.latents], samples or {})
    writing = _Writing(model, graph)
    for chain in wanted:
        writing.in_int8(chain, ranges)
    drop_unused(model)
    drop_codes(model)
    path.write_bytes(packed(model))


def _chains(model: Any, graph: Any) -> Iterator[_Chain]:
    writers = {int(output): each for each in graph.operators for output in each.outputs}
    for last in graph.operators:
        if operator_name(model, last) != "QUANTIZE":
            continue
        products: list[Any] = []
        before = writers.get(int(last.inputs[0]))
        while before is not None and operator_name(model, before) in _PRODUCTS and _is_alone(graph, before):
            products.insert(0, before)
            before = writers.get(int(before.inputs[0]))
        if before is not None and products and operator_name(model, before) == "DEQUANTIZE":
            yield _Chain(before, products, last)


def _is_alone(graph: Any, operator: Any) -> bool:
    """Whether one other operator alone reads what it writes."""
    (written,) = operator.outputs
    return len(list(readers_of(graph, written))) == 1 and written not in graph.outputs


def _ranges(path: Path, tensors: Sequence[int], samples: Mapping[str, Array]) -> dict[int, tuple[float, float]]:
    """The smallest and the largest number in each tensor of the first graph on any sample."""
    if not tensors:
        return {}
    if not samples:
        raise ModelError(f"the scheme {INT8_STATIC} needs calibration samples", hint="give data")
    watched = interpreter(path, watched=True)
    opened = session(watched)
    found = dict.fromkeys(tensors, (0.0, 0.0))
    for number in range(len(next(iter(samples.values())))):
        opened.run({name: array[number] for name, array in samples.items()})
        for tensor, (low, high) in found.items():
            value = watched.get_tensor(tensor)
            found[tensor] = min(low, float(value.min())), max(high, float(value.max()))
    return found


class _Writing:
    """The objects of a file while its operators become such of integers."""

    def __init__(self, model: Any, graph: Any) -> None:
        self._model, self._graph, self._file = model, graph, File(model)
        self._made: dict[tuple[int, bytes], int] = {}

    def in_int8(self, chain: _Chain, ranges: Mapping[int, tuple[float, float]]) -> None:
        """Put the products of a chain on grids; the first and the last tensor have theirs."""
        tensors = self._graph.tensors
        given, written = int(chain.first.inputs[0]), int(chain.last.outputs[0])
        made = tensors[chain.last.inputs[0]]
        tensors[written].name, made.name = made.name, tensors[written].name
        for tensor in chain.latents:
            scale, zero = activation_grid(*ranges[tensor])
            tensors[tensor].type, tensors[tensor].quantization = _INT8, _grid(np.array([scale]), zero)
        for product, output in zip(chain.products, [*chain.latents, written], strict=True):
            self._on_grids(product, given, output)
            given = output
        if not any(other is not chain.first for other, _ in readers_of(self._graph, int(chain.first.outputs[0]))):
            self._graph.operators = [each for each in self._graph.operators if each is not chain.first]
        self._graph.operators = [each for each in self._graph.operators if each is not chain.last]

    def _on_grids(self, product: Any, given: int, output: int) -> None:
        taken = float(self._graph.tensors[given].quantization.scale[0])
        weight, name = self._value(product.inputs[1]), operator_name(self._model, product)
        axis = weight.ndim - 1 if name == DEPTHWISE else 0  # of the outputs
        rows = np.moveaxis(weight, axis, 0)
        matrix = rows.reshape(len(rows), -1)
        if has_one_scale(matrix, qmax=INT8_STATIC.qmax):
            codes, scales = quantize_weight(matrix.reshape(1, -1), qmax=INT8_STATIC.qmax)
        else:
            codes, scales = quantize_weight(matrix, qmax=INT8_STATIC.qmax)
            if name == "FULLY_CONNECTED":
                product.opcodeIndex = self._file.operator_code("FULLY_CONNECTED", _SCALE_A_ROW)
        stored = np.ascontiguousarray(np.moveaxis(codes.reshape(rows.shape), 0, axis))
        inputs = [given, self._constant(product.inputs[1], stored, scales, _INT8, axis)]
        if len(product.inputs) > 2:
            inputs.append(self._sums(int(product.inputs[2]), taken * scales.astype(np.float64)))
        product.inputs, product.outputs = inputs, [output]

    def _sums(self, bias: int, steps: Array) -> int:
        """A bias on the grid of the products."""
        if bias < 0:
            return bias
        codes = np.rint(self._value(bias) / steps)
        return self._constant(bias, np.clip(codes, -_LARGEST_SUM, _LARGEST_SUM).astype(np.int32), steps, _INT32)

    def _value(self, tensor: int) -> Array:
        value = value_of(self._model, self._graph.tensors[tensor])
        if value is None or self._graph.tensors[tensor].type != FLOAT:
            raise ModelError(f"a factor's tensor {tensor} is no float32 constant of the TFLite file")
        return value

    def _constant(self, like: int, codes: Array, scales: Array, kind: int, axis: int = 0) -> int:
        """Of the places of a layer that are on the same grids it is one."""
        steps = np.asarray(scales, np.float32)
        key = like, codes.tobytes() + steps.tobytes()
        if key not in self._made:
            made = copy.copy(self._graph.tensors[like])
            made.type, made.quantization = kind, _grid(steps, 0, axis)
            made.buffer = self._file.buffer(codes.tobytes())
            self._graph.tensors.append(made)
            self._made[key] = len(self._graph.tensors) - 1
        return self._made[key]


def _grid(scales: Array, zero: int, axis: int = 0) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    made = schema.QuantizationParametersT()
    made.scale = np.asarray(scales, np.float32)
    made.zeroPoint, made.quantizedDimension = np.full(len(scales), zero, np.int64), axis
    return made
