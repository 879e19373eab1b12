"""A .tflite file with its weights in float32: what is stored in fewer bits and multiplied in floats is decoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from edgepack.backends.tflite.file import drop_unused, objects, text
from edgepack.backends.tflite.kinds.recurrent import FUSED
from edgepack.backends.tflite.read import DECODING, DTYPES, INT4, builtin_names, signed_nibbles
from edgepack.backends.tflite.schemes import INT8_DYNAMIC
from edgepack.backends.tflite.sparse import densified
from edgepack.errors import ModelError
from edgepack.model.types import Array

MOST_BYTES = 2**31 - 1
SIGNATURE = "serving_default"
"""What converters call the only one."""
FLOAT = 0  # schema.fbs, TensorType
_WEIGHTED = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
"""Operators that multiply float32 activations by integer weights, rounding the activations at every inference."""


def decode(model: Any) -> None:
    """Make a model one in float32, in place, as far as its operators compute in floats; all else stays as it is.

    Constants behind DEQUANTIZE (float16, int8) and integer weights of operators with float32 activations become float32
    constants. A file without a signature gets one that names the inputs and outputs of its graph, by which the
    quantizer feeds it.

    Args:
        model: the schema's ModelT.

    Raises:
        ModelError: it would be larger than a file can be.
    """
    _fill(model)
    sign(model)
    for code in model.operatorCodes:  # old files have but the field that ends at 127, which the quantizer does not read
        code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
    _check_size(model)
    for graph in model.subgraphs:
        _decode_behind(model, graph)
        _decode_weights(model, graph)
    drop_unused(model)


def _fill(model: Any) -> None:
    """What is empty may be left out of a file."""
    for graph in model.subgraphs:
        for table in (graph, *graph.operators):
            table.inputs = [] if table.inputs is None else table.inputs
            table.outputs = [] if table.outputs is None else table.outputs
        for tensor in graph.tensors:
            tensor.shape = [] if tensor.shape is None else tensor.shape


def _check_size(model: Any) -> None:
    constants = [
        tensor
        for graph in model.subgraphs
        for tensor in graph.tensors
        if tensor.type in DTYPES and tensor.type != FLOAT and model.buffers[tensor.buffer].data is not None
    ]
    size = sum(4 * prod(int(side) for side in tensor.shape) for tensor in constants)
    if size > MOST_BYTES:
        raise ModelError(
            f"the model's narrow constants have {size} bytes in float32, a TFLite file holds {MOST_BYTES}",
            hint="give the model in float32, as ONNX",
        )


def value_of(model: Any, tensor: Any) -> Array | None:
    """A constant in float32, scaled from its grid where it has one; None for what is computed or of text.

    Args:
        model: the schema's ModelT.
        tensor: its TensorT.
    """
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data) or tensor.isVariable or tensor.type not in DTYPES:
        return None
    raw = np.asarray(bytearray(data), np.uint8)
    shape = tuple(int(side) for side in tensor.shape) if tensor.shape is not None else ()
    if tensor.sparsity is not None:
        stored = None if tensor.type == INT4 else densified(raw.view(DTYPES[tensor.type]), shape, tensor.sparsity)
    else:
        stored = signed_nibbles(raw, shape) if tensor.type == INT4 else raw.view(DTYPES[tensor.type]).reshape(shape)
    if stored is None:
        return None
    grid = tensor.quantization
    if grid is None or grid.scale is None or not len(grid.scale):
        return np.asarray(stored, np.float32)
    scales, zeros = np.asarray(grid.scale, np.float32), np.asarray(grid.zeroPoint, np.float32)
    if len(scales) > 1:
        along = [-1 if axis == grid.quantizedDimension else 1 for axis in range(len(shape))]
        scales, zeros = scales.reshape(along), zeros.reshape(along)
    return np.asarray((stored.astype(np.float32) - zeros) * scales, np.float32)


def operator_name(model: Any, operator: Any) -> str:
    """As the schema calls it; "CUSTOM" for one that it does not know."""
    code = model.operatorCodes[operator.opcodeIndex]
    return builtin_names()[max(code.builtinCode, code.deprecatedBuiltinCode)]


def sign(model: Any) -> None:
    """Name the inputs and outputs of the first graph, where nothing does."""
    from ai_edge_litert import schema_py_generated as schema

    if model.signatureDefs:
        return

    def named(indices: Any) -> list[Any]:
        names = [text(model.subgraphs[0].tensors[index].name) for index in indices]
        if len(set(names)) < len(names):
            names = [f"{name}:{place}" for place, name in enumerate(names)]
        made = []
        for name, index in zip(names, indices, strict=True):
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name.encode(), int(index)
            made.append(entry)
        return made

    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = SIGNATURE.encode(), 0
    signature.inputs, signature.outputs = named(model.subgraphs[0].inputs), named(model.subgraphs[0].outputs)
    model.signatureDefs = [signature]


def _decode_behind(model: Any, graph: Any) -> None:
    """Take out every DEQUANTIZE of a constant, and every DENSIFY of floats or in front of one; what it wrote is a
    constant then, under the stored one's name."""
    kept = []
    for operator in graph.operators:
        value = None
        if _decodes(model, graph, operator) and operator.outputs[0] not in graph.outputs:
            value = value_of(model, graph.tensors[operator.inputs[0]])
        if value is None:
            kept.append(operator)
            continue
        stored, written = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
        _store(model, written, value)
        stored.name, written.name = written.name, stored.name
    graph.operators = kept


def _decodes(model: Any, graph: Any, operator: Any) -> bool:
    """Whether an operator makes a float32 constant of another, or one that nothing but DEQUANTIZE reads. What is sparse
    and smaller so than in 8 bits stays."""
    name, written = operator_name(model, operator), int(operator.outputs[0]) if len(operator.outputs) else -1
    if name != "DENSIFY":
        return name in DECODING
    given = graph.tensors[operator.inputs[0]]
    if given.sparsity is None or _sparse_bytes(model, given) <= _bytes_in_8_bits(given):
        return False
    readers = [operator_name(model, each) for each, _ in readers_of(graph, written)]
    return graph.tensors[written].type == FLOAT or set(readers) == {"DEQUANTIZE"}


def _sparse_bytes(model: Any, tensor: Any) -> int:
    """Of a sparse constant with its lists of places."""
    vectors = [
        each for level in tensor.sparsity.dimMetadata or [] for each in (level.arraySegments, level.arrayIndices)
    ]
    listed = [each for each in vectors if each is not None and each.values is not None]
    widths = {"Uint8VectorT": 1, "Uint16VectorT": 2}
    data = model.buffers[tensor.buffer].data
    return (0 if data is None else len(data)) + sum(
        widths.get(type(one).__name__, 4) * len(one.values) for one in listed
    )


def _bytes_in_8_bits(tensor: Any) -> int:
    """Of the same with a grid for each output."""
    shape = [int(side) for side in tensor.shape]
    return prod(shape) + INT8_DYNAMIC.bytes_per_channel * (shape[0] if shape else 1)


def sparse_kept(content: bytes) -> int:
    """How many constants of a decoded file stay sparse."""
    model = objects(content)
    return sum(operator_name(model, each) == "DENSIFY" for graph in model.subgraphs for each in graph.operators)


def _decode_weights(model: Any, graph: Any) -> None:
    """Integer weights that are multiplied by float32 activations, unless something else takes them as they are."""
    readers: dict[int, list[Any]] = {}
    for operator in graph.operators:
        for index in operator.inputs:
            readers.setdefault(int(index), []).append(operator)
    found = [index for index in readers if all(_is_weight(model, graph, each, index) for each in readers[index])]
    found += _of_cells(model, graph, readers)
    for index in found:
        tensor = graph.tensors[index]
        if tensor.type != FLOAT and (value := value_of(model, tensor)) is not None:
            _store(model, tensor, value)


def _of_cells(model: Any, graph: Any, readers: Mapping[int, Sequence[Any]]) -> list[int]:
    """What recurrent operators with float32 activations multiply by; kernels want all of an operator alike, so that
    nothing is among it where something else takes a part of it."""
    cells = [each for each in graph.operators if _is_cells(model, graph, each)]
    found = {int(each.inputs[place]) for each in cells for place in FUSED[operator_name(model, each)].matrices}
    alone = all(any(reader is each for each in cells) for index in found for reader in readers[index])
    return sorted(found) if alone else []


def _is_cells(model: Any, graph: Any, operator: Any) -> bool:
    fused = FUSED.get(operator_name(model, operator))
    return fused is not None and fused.is_plain(operator.inputs) and graph.tensors[operator.inputs[0]].type == FLOAT


def _is_weight(model: Any, graph: Any, operator: Any, index: int) -> bool:
    """Whether an operator with float32 activations has this tensor as its weight."""
    return (
        operator_name(model, operator) in _WEIGHTED
        and operator.inputs[1] == index
        and graph.tensors[operator.inputs[0]].type == FLOAT
    )


def _store(model: Any, tensor: Any, value: Array) -> None:
    from ai_edge_litert import schema_py_generated as schema

    tensor.type, tensor.quantization, tensor.sparsity, tensor.buffer = FLOAT, None, None, len(model.buffers)
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
    model.buffers.append(buffer)


def readers_of(graph: Any, tensor: int) -> Iterator[tuple[Any, int]]:
    """The operators that take a tensor, and as which of their inputs."""
    return ((each, place) for each in graph.operators for place, index in enumerate(each.inputs) if index == tensor)
