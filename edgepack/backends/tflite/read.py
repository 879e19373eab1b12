"""What a .tflite file holds: its tables, opened and checked; its constants; its operators with a constant matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgepack.backends.tflite.kinds import OPERATORS, matrix
from edgepack.backends.tflite.sparse import densified
from edgepack.errors import ModelError
from edgepack.model.types import Array

T = TypeVar("T")

# schema.fbs, TensorType; 4-bit integers are stored two in a byte.
DTYPES: Mapping[int, str] = {
    0: "<f4",
    1: "<f2",
    2: "<i4",
    3: "u1",
    4: "<i8",
    6: "?",
    7: "<i2",
    9: "i1",
    10: "<f8",
    12: "<u8",
    15: "<u4",
    16: "<u2",
    17: "i1",
}
INT4 = 17
DECODING = ("DEQUANTIZE", "DENSIFY")
"""Operators that make float32 and dense constants of others, when a model is loaded."""
MOST_ELEMENTS = 2**31 - 1
MOST_AXES = 32
"""Of one tensor: what the runtime counts in an int32."""
_AGAIN = "fetch or convert the file again; a .tflite file comes from a converter as it is"


def read_file(path: Path | str, read: Callable[[Any], T]) -> T:
    """What `read` makes of the model in a file.

    Raises:
        ModelError: missing, empty, truncated or foreign file.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such file", hint="give the path of a .tflite file")
    return read_content(path.read_bytes(), str(path), read)


def read_content(content: bytes, name: str, read: Callable[[Any], T]) -> T:
    """What `read` makes of the model in the bytes of a file.

    Args:
        name: of the file, for messages.

    Raises:
        ModelError: empty, truncated or foreign file.
    """
    import struct

    from ai_edge_litert import schema_py_generated as schema

    if len(content) < 32 or content[4:8] != b"TFL3":
        raise ModelError(
            f"{name}: not a TFLite file ({len(content)} bytes, identifier {content[4:8]!r}, expected b'TFL3')",
            hint=_AGAIN,
        )
    try:
        model = schema.Model.GetRootAs(content, 0)
        check(model)
        return read(model)
    except (
        struct.error,
        IndexError,
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        UnicodeDecodeError,
        AttributeError,
    ) as err:
        raise ModelError(
            f"{name}: a damaged or truncated TFLite file ({type(err).__name__}: {err})", hint=_AGAIN
        ) from err


def check(model: Any) -> None:
    """Touch every table and constant once: what lies outside the file raises here, not in a runtime that trusts it.

    Raises:
        ValueError, IndexError: what is wrong; flatbuffers raises others where the bytes end.
    """
    if not (found := graphs(model)):
        raise ValueError("it has no graph")
    _check_entries(model, found)
    calls: dict[int, set[int]] = {}
    for number, graph in found:
        for index in range(graph.TensorsLength()):
            _check_tensor(model, graph.Tensors(index))
        _check_named(graph, [graph.Inputs(i) for i in range(graph.InputsLength())], "the graph")
        _check_named(graph, [graph.Outputs(i) for i in range(graph.OutputsLength())], "the graph")
        _check_order(model, graph)
        calls[number] = {other for i in range(graph.OperatorsLength()) for other in called(graph.Operators(i))}
    _check_calls(calls)
    for index in range(model.SignatureDefsLength()):
        signature = model.SignatureDefs(index)
        if not signature.SubgraphIndex() < len(found):
            raise IndexError(f"a signature is of graph {signature.SubgraphIndex()} of {len(found)}")
        graph = found[signature.SubgraphIndex()][1]
        named = [signature.Inputs(i).TensorIndex() for i in range(signature.InputsLength())]
        named += [signature.Outputs(i).TensorIndex() for i in range(signature.OutputsLength())]
        _check_named(graph, named, "a signature")


def _check_entries(model: Any, found: Sequence[tuple[int, Any]]) -> None:
    """Tables may be named many times over: a small file could have more entries than anybody can read."""
    most = len(model._tab.Bytes)
    entries = 0
    for _, graph in found:
        entries += graph.TensorsLength() + graph.OperatorsLength() + graph.InputsLength() + graph.OutputsLength()
        if entries <= most:
            entries += sum(graph.Tensors(i).ShapeLength() for i in range(graph.TensorsLength()))
            operators = (graph.Operators(i) for i in range(graph.OperatorsLength()))
            entries += sum(each.InputsLength() + each.OutputsLength() for each in operators)
        if entries > most:
            raise ValueError(f"its graphs have {entries} entries or more in {most} bytes")


def _check_tensor(model: Any, tensor: Any) -> None:
    if tensor.ShapeLength() > MOST_AXES:
        raise ValueError(f"a tensor has {tensor.ShapeLength()} axes, at most {MOST_AXES} are read")
    shape = shape_of(tensor)
    if any(size < 0 for size in shape) or prod(shape) > MOST_ELEMENTS:
        raise ValueError(f"a tensor has the shape {shape}, at most {MOST_ELEMENTS} numbers are read")
    if not tensor.Buffer() < model.BuffersLength():
        raise IndexError(f"a tensor is in buffer {tensor.Buffer()} of {model.BuffersLength()}")
    raw = raw_bytes(model, tensor)
    if raw is not None and tensor.Sparsity() is not None:
        _dense(raw, tensor)
    elif tensor.Type() in DTYPES and raw is not None:
        bits = 4 if tensor.Type() == INT4 else np.dtype(DTYPES[tensor.Type()]).itemsize * 8
        expected = (prod(shape) * bits + 7) // 8
        if raw.size != expected:
            raise ValueError(f"a constant holds {raw.size} bytes where its shape needs {expected}")


def _check_named(graph: Any, tensors: Sequence[int], who: str, least: int = 0) -> None:
    if any(not least <= tensor < graph.TensorsLength() for tensor in tensors):
        raise IndexError(f"{who} names a tensor that is not there")


def _check_order(model: Any, graph: Any) -> None:
    """Operators stand in the order in which they run: none reads what is written behind it."""
    written_by: dict[int, int] = {}
    reads = []
    for position in range(graph.OperatorsLength()):
        operator = graph.Operators(position)
        op_name(model, operator)
        inputs = [operator.Inputs(i) for i in range(operator.InputsLength())]
        outputs = [operator.Outputs(i) for i in range(operator.OutputsLength())]
        _check_named(graph, [*inputs, *outputs], "an operator", -1)
        reads.append(inputs)
        written_by |= {tensor: position for tensor in outputs if tensor not in written_by}
    late = (tensor for at, inputs in enumerate(reads) for tensor in inputs if written_by.get(tensor, -1) >= at)
    if (tensor := next(late, None)) is not None:
        raise ValueError(f"its operators go round in a circle: tensor {tensor} is read before it is written")


def called(operator: Any) -> tuple[int, ...]:
    """The subgraphs that an operator runs."""
    from ai_edge_litert import schema_py_generated as schema

    if operator.BuiltinOptions2Type() == schema.BuiltinOptions2.StableHLOCompositeOptions:
        table, composite = operator.BuiltinOptions2(), schema.StableHLOCompositeOptions()
        composite.Init(table.Bytes, table.Pos)
        return (int(composite.DecompositionSubgraphIndex()),)
    kinds = {
        schema.BuiltinOptions.IfOptions: ("IfOptions", ("ThenSubgraphIndex", "ElseSubgraphIndex")),
        schema.BuiltinOptions.WhileOptions: ("WhileOptions", ("CondSubgraphIndex", "BodySubgraphIndex")),
        schema.BuiltinOptions.CallOptions: ("CallOptions", ("Subgraph",)),
        schema.BuiltinOptions.CallOnceOptions: ("CallOnceOptions", ("InitSubgraphIndex",)),
    }
    kind, fields = kinds.get(operator.BuiltinOptionsType(), ("", ()))
    options = options_of(operator, kind) if kind else None
    return () if options is None else tuple(int(getattr(options, field)()) for field in fields)


def _check_calls(calls: Mapping[int, set[int]]) -> None:
    """A graph that runs itself, by way of others too, would never end."""
    left = {number: set(others) for number, others in calls.items()}
    if any(other not in left for others in left.values() for other in others):
        raise IndexError(f"an operator runs a graph that is not among the {len(left)} of the file")
    while left:
        ends = {number for number, others in left.items() if not others}
        if not ends:
            raise ValueError("its graphs run each other in a circle")
        left = {number: others - ends for number, others in left.items() if number not in ends}


def graphs(model: Any) -> list[tuple[int, Any]]:
    """(index, table) of each subgraph."""
    return [(index, model.Subgraphs(index)) for index in range(model.SubgraphsLength())]


def op_name(model: Any, operator: Any) -> str:
    """As the schema calls the operator; a custom one by its own name."""
    from ai_edge_litert import schema_py_generated as schema

    if not operator.OpcodeIndex() < model.OperatorCodesLength():
        raise IndexError(f"an operator is of kind {operator.OpcodeIndex()} of {model.OperatorCodesLength()}")
    code = model.OperatorCodes(operator.OpcodeIndex())
    # Codes above 127 do not fit the old field; whichever is larger holds.
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    if number == schema.BuiltinOperator.CUSTOM:
        return str((code.CustomCode() or b"").decode())
    return builtin_names()[number]


@cache
def builtin_names() -> Mapping[int, str]:
    """The operators of the schema by their numbers."""
    from ai_edge_litert import schema_py_generated as schema

    return {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}


def options_of(operator: Any, kind: str) -> Any:
    """The operator's table of options, None if it has none."""
    from ai_edge_litert import schema_py_generated as schema

    table = operator.BuiltinOptions()
    if table is None:
        return None
    options = getattr(schema, kind)()
    options.Init(table.Bytes, table.Pos)
    return options


def scales_of(tensor: Any) -> tuple[Array, int | None]:
    """(k,) float32, empty without a grid, and the axis along which they run; None where one holds for all."""
    quantization = tensor.Quantization()
    if quantization is None or quantization.ScaleLength() == 0:
        return np.zeros(0, np.float32), None
    scales = np.array(quantization.ScaleAsNumpy(), dtype=np.float32)
    return scales, int(quantization.QuantizedDimension()) if scales.size > 1 else None


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Its dimensions; none for a scalar."""
    return tuple(int(tensor.Shape(i)) for i in range(tensor.ShapeLength()))


def constant(model: Any, tensor: Any) -> Array | None:
    """The tensor's value as a copy, None if it is computed at run time; of a sparse one the zeros as well."""
    raw = raw_bytes(model, tensor)
    if raw is None:
        return None
    if tensor.Sparsity() is not None:
        return _dense(raw, tensor)
    shape = shape_of(tensor)
    if tensor.Type() == INT4:
        return signed_nibbles(raw.view(np.uint8), shape)
    return np.array(raw.view(DTYPES[tensor.Type()]).reshape(shape))


def _dense(raw: Array, tensor: Any) -> Array | None:
    """What a sparse constant stands for; None where it is of a type that is not read.

    Raises:
        ValueError: see `densified`.
    """
    from ai_edge_litert import schema_py_generated as schema

    if tensor.Type() not in DTYPES or tensor.Type() == INT4:
        return None
    sparsity = schema.SparsityParametersT.InitFromObj(tensor.Sparsity())
    return densified(raw.view(DTYPES[tensor.Type()]), shape_of(tensor), sparsity)


def signed_nibbles(raw: Array, shape: tuple[int, ...]) -> Array:
    """Integers of 4 bits (int8), of which bytes (uint8) hold two, the lower bits first."""
    nibbles = np.stack([raw & 15, raw >> 4], axis=1).reshape(-1)[: prod(shape)].astype(np.int8)
    return np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.int8).reshape(shape)


def raw_bytes(model: Any, tensor: Any) -> Array | None:
    """The bytes of a constant: in its buffer, or behind the flatbuffer for large models."""
    buffer = model.Buffers(tensor.Buffer())
    if buffer.DataLength():
        return np.asarray(buffer.DataAsNumpy(), dtype=np.uint8)
    if buffer.Offset() > 1:
        start, size = buffer.Offset(), buffer.Size()
        content = model._tab.Bytes
        if start + size > len(content):
            raise ValueError(f"a buffer ends at byte {start + size} of {len(content)}")
        return np.frombuffer(content, dtype=np.uint8, count=size, offset=start)
    return None


def operators(path: Path | str) -> list[str]:
    """Names of all operators, in order of execution.

    Raises:
        ModelError: missing, empty, truncated or foreign file.
    """
    return read_file(
        path, lambda m: [op_name(m, g.Operators(i)) for _, g in graphs(m) for i in range(g.OperatorsLength())]
    )


def weight_bytes(path: Path | str) -> int:
    """Bytes of all constant tensors of two or more dimensions: the weights, without biases, scales and shapes.

    Raises:
        ModelError: missing, empty, truncated or foreign file.
    """
    return read_file(path, weight_bytes_of)


def weight_bytes_of(model: Any) -> int:
    """The same of the schema's model."""
    seen: dict[int, int] = {}
    for _, graph in graphs(model):
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            raw = raw_bytes(model, tensor) if len(shape_of(tensor)) >= 2 else None
            if raw is not None:
                seen[int(tensor.Buffer())] = raw.size
    return sum(seen.values())


def constant_vectors(path: Path | str) -> list[Array]:
    """Every numeric constant along one axis, all others 1, as float64 vector; quantized ones scaled back.

    Raises:
        ModelError: not a TFLite file, or a damaged one.
    """
    return list(read_file(path, _constant_vectors))


def _constant_vectors(model: Any) -> list[Array]:
    found: dict[tuple[int, int], Array] = {}
    for index, graph in graphs(model):
        for position in range(graph.TensorsLength()):
            tensor = graph.Tensors(position)
            shape = shape_of(tensor)
            if not shape or tensor.Type() not in DTYPES or int(np.prod(shape)) != max(shape):
                continue
            value = constant(model, tensor)
            if value is not None:
                scales, _ = scales_of(tensor)
                found[index, position] = value.reshape(-1).astype(np.float64) * (scales if scales.size else 1.0)
    return list(found.values())


@dataclass(frozen=True)
class TfliteLinear:
    """One operator with a constant matrix.

    Attributes:
        op: "FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D" (of which a row is what one channel is multiplied by),
            "BATCH_MATMUL" (constant right side), or a fused LSTM, of which only the products with its input are meant,
            all gates one above the other.
        output: name of the tensor it writes.
        input, output_index: indices of the tensors it reads and writes, to follow chains of operators.
        weight: (out, in), in the file's type: float32, float16 or the stored integers, behind a DEQUANTIZE too.
        bits: of one weight in the file.
        scales: of the weight: (out,) or (1,) float32; empty for floats.
        axis: of `weight` along which the scales run, None if there is one for all or none.
        bias: (out,) in the file's type, None if there is none. A bias of zeros is dropped by the converter.
        subgraph: the subgraph it is in.
        stride: of a convolution, the larger of its two.
        buffer: number of the buffer that holds the weight; operators may share one.
    """

    op: str
    output: str
    input_index: int
    output_index: int
    weight: Array
    bits: int
    scales: Array
    axis: int | None
    bias: Array | None
    subgraph: int = 0
    stride: int = 1
    buffer: int = 0

    @property
    def values(self) -> Array:
        """(out, in) float32: the weights as the kernel understands them (symmetric grids)."""
        if self.scales.size == 0:
            return self.weight.astype(np.float32)
        scales = self.scales if self.axis is None else self.scales[:, None]
        return np.asarray(self.weight.astype(np.float32) * scales, dtype=np.float32)


def linear_ops(path: Path | str) -> list[TfliteLinear]:
    """The operators with a constant matrix, in order of execution.

    Raises:
        ModelError: missing, empty, truncated or foreign file.
    """
    return read_file(path, linear_ops_of)


def linear_ops_of(model: Any) -> list[TfliteLinear]:
    """See `linear_ops`; of a file that is open."""
    found = []
    initial = _initial_graphs(model)
    for index, graph in graphs(model):
        decoded = decoded_by(model, graph)
        for position in range(graph.OperatorsLength()):
            operator = graph.Operators(position)
            name = op_name(model, operator)
            if name in OPERATORS and index not in initial:
                site = _linear_op(model, graph, operator, name, index, decoded)
                if site is not None:
                    found.append(site)
    return found


def _initial_graphs(model: Any) -> set[int]:
    """Subgraphs that run once, before the first inference: what they multiply is no layer."""
    operators = (graph.Operators(position) for _, graph in graphs(model) for position in range(graph.OperatorsLength()))
    once = (options_of(each, "CallOnceOptions") for each in operators if op_name(model, each) == "CALL_ONCE")
    return {int(options.InitSubgraphIndex()) for options in once if options is not None}


def decoded_by(model: Any, graph: Any) -> dict[int, int]:
    """The tensors that DEQUANTIZE and DENSIFY write, with those that they are made of."""
    found: dict[int, int] = {}
    for each in (graph.Operators(position) for position in range(graph.OperatorsLength())):
        if op_name(model, each) in DECODING:
            found[each.Outputs(0)] = found.get(each.Inputs(0), each.Inputs(0))
    return found


def on_other_grids(path: Path | str) -> dict[tuple[int, int], int]:
    """By subgraph and index, the tensors that are another one's values as QUANTIZE and DEQUANTIZE write them: that one.

    Raises:
        ModelError: missing, empty, truncated or foreign file.
    """
    return read_file(path, _on_other_grids)


def _on_other_grids(model: Any) -> dict[tuple[int, int], int]:
    found: dict[tuple[int, int], int] = {}
    for index, graph in graphs(model):
        for each in (graph.Operators(position) for position in range(graph.OperatorsLength())):
            if op_name(model, each) in ("QUANTIZE", "DEQUANTIZE"):
                found[index, each.Outputs(0)] = found.get((index, each.Inputs(0)), each.Inputs(0))
    return found


def _linear_op(
    model: Any, graph: Any, operator: Any, name: str, subgraph: int, decoded: Mapping[int, int]
) -> TfliteLinear | None:
    operands = OPERATORS[name]
    tensors = [graph.Tensors(decoded.get(index, index)) for index in _given(operator, operands.weights)]
    weight = _rows([None if held is None else matrix(name, held) for held in _constants(model, tensors)])
    if weight is None:
        return None
    tensor = tensors[0]
    scales, axis = scales_of(tensor)
    if len(tensors) > 1 and scales.size:  # each has one of its own
        scales, axis = np.concatenate([np.repeat(scales_of(each)[0], each.Shape(0)) for each in tensors]), 0
    if name == "BATCH_MATMUL" and not _adjoint_y(operator):
        weight, axis = weight.T, None if axis is None else 1 - axis
    biases = [graph.Tensors(index) for index in _given(operator, operands.biases)]
    output = operator.Outputs(0)
    return TfliteLinear(
        op=name,
        output=graph.Tensors(output).Name().decode(),
        input_index=operator.Inputs(operands.x),
        output_index=output,
        weight=weight,
        bits=4 if tensor.Type() == INT4 else weight.dtype.itemsize * 8,
        scales=scales,
        axis=axis if scales.size > 1 else None,
        bias=_rows(_constants(model, biases)),
        subgraph=subgraph,
        stride=_stride(operator) if name == "CONV_2D" else 1,
        buffer=int(tensor.Buffer()),
    )


def _given(operator: Any, places: Sequence[int]) -> list[int]:
    """Tensors that an operator takes there; none where one of them is left out."""
    found = [operator.Inputs(place) for place in places if place < operator.InputsLength()]
    return found if len(found) == len(places) and all(index >= 0 for index in found) else []


def _constants(model: Any, tensors: Sequence[Any]) -> list[Array | None]:
    return [constant(model, tensor) for tensor in tensors]


def _rows(parts: Sequence[Array | None]) -> Array | None:
    """One above the other; None where one of them is not known, or there is none."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    return known[0] if len(known) == 1 else np.concatenate(known)


def _stride(operator: Any) -> int:
    options = options_of(operator, "Conv2DOptions")
    return 1 if options is None else int(max(options.StrideH(), options.StrideW()))


def _adjoint_y(operator: Any) -> bool:
    options = options_of(operator, "BatchMatMulOptions")
    return options is not None and bool(options.AdjY())
