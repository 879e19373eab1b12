"""The tables of a .tflite file: opened, checked, and the values in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgepack.errors import ModelError
from edgepack.types import Array

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
