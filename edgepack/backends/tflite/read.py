"""What a .tflite file holds: its tables, opened and checked; its constants; its operators with a constant matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgepack.backends.tflite.kinds import OPERATORS, matrix
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


def read_file(path: Path | str, read: Callable[[Any], T]) -> T:
    """What `read` makes of the model in a file.

    Raises:
        ModelError: missing, empty, truncated or foreign file.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    import struct

    from ai_edge_litert import schema_py_generated as schema

    content = path.read_bytes()
    if len(content) < 32 or content[4:8] != b"TFL3":
        raise ModelError(f"{path}: not a TFLite file ({len(content)} bytes, identifier {content[4:8]!r})")
    try:
        model = schema.Model.GetRootAs(content, 0)
        _walk(model)
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
        raise ModelError(f"{path}: a damaged or truncated TFLite file ({type(err).__name__}: {err})") from err


def _walk(model: Any) -> None:
    """Touch every table and constant once: what lies outside the file raises here, not in a runtime that trusts it."""
    if not (found := graphs(model)):
        raise ValueError("it has no graph")
    for _, graph in found:
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            raw = raw_bytes(model, tensor)
            if tensor.Type() in DTYPES and raw is not None:
                bits = 4 if tensor.Type() == INT4 else np.dtype(DTYPES[tensor.Type()]).itemsize * 8
                expected = (int(np.prod(shape_of(tensor), dtype=np.int64)) * bits + 7) // 8
                if raw.size != expected:
                    raise ValueError(f"a constant holds {raw.size} bytes where its shape needs {expected}")
        for index in range(graph.OperatorsLength()):
            operator = graph.Operators(index)
            op_name(model, operator)
            used = [operator.Inputs(i) for i in range(operator.InputsLength())]
            used += [operator.Outputs(i) for i in range(operator.OutputsLength())]
            if any(not -1 <= tensor < graph.TensorsLength() for tensor in used):
                raise IndexError("an operator names a tensor that is not there")


def graphs(model: Any) -> list[tuple[int, Any]]:
    """(index, table) of each subgraph."""
    return [(index, model.Subgraphs(index)) for index in range(model.SubgraphsLength())]


def op_name(model: Any, operator: Any) -> str:
    """As the schema calls the operator; a custom one by its own name."""
    from ai_edge_litert import schema_py_generated as schema

    code = model.OperatorCodes(operator.OpcodeIndex())
    # Codes above 127 do not fit the old field; whichever is larger holds.
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    if number == schema.BuiltinOperator.CUSTOM:
        return str((code.CustomCode() or b"").decode())
    return _builtin_names()[number]


@cache
def _builtin_names() -> Mapping[int, str]:
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
    """The tensor's value as a copy, None if it is computed at run time."""
    raw = raw_bytes(model, tensor)
    if raw is None:
        return None
    shape = shape_of(tensor)
    if tensor.Type() == INT4:
        low, high = raw.view(np.uint8) & 15, raw.view(np.uint8) >> 4
        nibbles = np.stack([low, high], axis=1).reshape(-1)[: int(np.prod(shape))].astype(np.int8)
        return np.asarray(np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.int8).reshape(shape))
    return np.array(raw.view(DTYPES[tensor.Type()]).reshape(shape))


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
    return read_file(path, _weight_bytes)


def _weight_bytes(model: Any) -> int:
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
        op: "FULLY_CONNECTED", "CONV_2D" (1×1 kernels only) or "BATCH_MATMUL" (constant right side).
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
    return read_file(path, _linear_ops)


def _linear_ops(model: Any) -> list[TfliteLinear]:
    found = []
    initial = _initial_graphs(model)
    for index, graph in graphs(model):
        decoded = _decoded(model, graph)
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


def _decoded(model: Any, graph: Any) -> dict[int, int]:
    """The tensors that a DEQUANTIZE writes, with those that it reads."""
    every = (graph.Operators(position) for position in range(graph.OperatorsLength()))
    return {each.Outputs(0): each.Inputs(0) for each in every if op_name(model, each) == "DEQUANTIZE"}


def _linear_op(
    model: Any, graph: Any, operator: Any, name: str, subgraph: int, decoded: Mapping[int, int]
) -> TfliteLinear | None:
    x, w, b = OPERATORS[name]
    tensor = graph.Tensors(decoded.get(operator.Inputs(w), operator.Inputs(w)))
    held = constant(model, tensor)
    weight = None if held is None else matrix(name, held)
    if weight is None:
        return None
    scales, axis = scales_of(tensor)
    if name == "BATCH_MATMUL" and not _adjoint_y(operator):
        weight, axis = weight.T, None if axis is None else 1 - axis
    bias = None
    if b is not None and operator.InputsLength() > b and operator.Inputs(b) >= 0:
        bias = constant(model, graph.Tensors(operator.Inputs(b)))
    output = operator.Outputs(0)
    return TfliteLinear(
        op=name,
        output=graph.Tensors(output).Name().decode(),
        input_index=operator.Inputs(x),
        output_index=output,
        weight=weight,
        bits=4 if tensor.Type() == INT4 else weight.dtype.itemsize * 8,
        scales=scales,
        axis=axis if scales.size > 1 else None,
        bias=bias,
        subgraph=subgraph,
        stride=_stride(operator) if name == "CONV_2D" else 1,
        buffer=int(tensor.Buffer()),
    )


def _stride(operator: Any) -> int:
    options = options_of(operator, "Conv2DOptions")
    return 1 if options is None else int(max(options.StrideH(), options.StrideW()))


def _adjoint_y(operator: Any) -> bool:
    options = options_of(operator, "BatchMatMulOptions")
    return options is not None and bool(options.AdjY())
