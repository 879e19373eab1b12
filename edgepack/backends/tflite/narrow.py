"""Weights that float16 holds exactly, stored so: those of a file that came in float16 and were left as they are."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from edgepack.backends.tflite.decoded import operator_name, readers_of
from edgepack.backends.tflite.file import File, text
from edgepack.model.types import Array

FLOAT, FLOAT16 = 0, 1  # schema.fbs, TensorType
_VERSION = 3
"""Of DEQUANTIZE, that reads float16."""
_WEIGHTED = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
"""Operators that runtimes give weights behind DEQUANTIZE, as their second input; they are decoded at load."""
LEAST = 128
"""Numbers of a weight, for which two bytes less each are more than the operator that decodes it."""


def has_halves(model: Any) -> bool:
    """Whether a model, the schema's ModelT, decodes float16 constants."""
    return any(
        operator_name(model, each) == "DEQUANTIZE" and graph.tensors[each.inputs[0]].type == FLOAT16
        for graph in model.subgraphs
        for each in graph.operators
    )


def narrow(model: Any) -> None:
    """Put weights in float16 behind DEQUANTIZE in the place of those that are exactly the same so, in place.

    Args:
        model: the schema's ModelT.
    """
    file = File(model)
    for graph in model.subgraphs:
        made = [each for index in range(len(graph.tensors)) if (each := _narrowed(file, graph, index)) is not None]
        graph.operators = [*made, *graph.operators]


def _narrowed(file: File, graph: Any, index: int) -> Any:
    """What decodes a weight from now on; None where it stays as it is."""
    from ai_edge_litert import schema_py_generated as schema

    tensor = graph.tensors[index]
    half = _half(file.model, tensor)
    if half is None or not _is_weight_alone(file.model, graph, index):
        return None
    stored = schema.TensorT()
    stored.shape, stored.type, stored.name = tensor.shape, FLOAT16, tensor.name
    stored.buffer = file.buffer(half.tobytes())
    tensor.buffer, tensor.name = 0, f"{text(tensor.name)}.float32".encode()
    decoding = schema.OperatorT()
    decoding.opcodeIndex = file.operator_code("DEQUANTIZE", _VERSION)
    decoding.inputs, decoding.outputs = [len(graph.tensors)], [index]
    graph.tensors.append(stored)
    return decoding


def _half(model: Any, tensor: Any) -> Array | None:
    """A float32 constant as float16; None where that is another, or too small to gain by it."""
    data = model.buffers[tensor.buffer].data
    if tensor.type != FLOAT or tensor.isVariable or data is None or not len(data) or tensor.sparsity is not None:
        return None
    values = np.asarray(bytearray(data), np.uint8).view(np.float32)
    if len(values) != prod(int(side) for side in tensor.shape) or not is_half(values):
        return None
    return values.astype(np.float16)


def is_half(values: Array) -> bool:
    """Whether float32 values are the same in float16, and enough of them to gain by it."""
    with np.errstate(over="ignore"):
        return values.size >= LEAST and bool((values.astype(np.float16) == values).all())


def _is_weight_alone(model: Any, graph: Any, index: int) -> bool:
    """Whether nothing reads a tensor but operators whose weight it is, beside activations in floats."""
    readers = list(readers_of(graph, index))
    return (
        bool(readers)
        and index not in graph.outputs
        and all(
            place == 1 and operator_name(model, each) in _WEIGHTED and graph.tensors[each.outputs[0]].type == FLOAT
            for each, place in readers
        )
    )
