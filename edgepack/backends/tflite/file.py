"""A .tflite file as objects: read, added to, and written back, whole or in parts, without what nothing uses."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from edgepack.backends.tflite.read import operators
from edgepack.errors import ModelError, OutputError
from edgepack.model.types import Array

# schema.fbs, TensorType
_TYPES = {"float32": 0, "bool": 6, "int32": 2, "uint8": 3, "int64": 4, "int8": 9, "uint32": 15}
_RESOURCE = 13
KEEPS_AXES, WITHOUT_BIAS = 5, 6
"""Versions of FULLY_CONNECTED that keep all axes of their input; the later one takes no bias as well."""
# The version from which on a kernel takes these numbers; all else is there since the first one.
_VERSIONS = {
    ("ADD", "int64"): 4,
    ("MUL", "int64"): 6,
    ("MUL", "uint32"): 7,
    ("GATHER", "int8"): 2,
    ("GATHER", "uint8"): 2,
    ("TRANSPOSE", "int8"): 2,
    ("SLICE", "int8"): 2,
    ("PAD", "int8"): 2,
    ("CAST", "int8"): 3,
    ("CAST", "uint32"): 4,
    ("FULLY_CONNECTED", "float32"): WITHOUT_BIAS,
}

_ALIGNMENT = 16
_STATE = (13, 14)  # schema.fbs, TensorType: RESOURCE and VARIANT


class File:
    """A model's objects, to which constants and kinds of operators are added once."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._buffers: dict[bytes, int] = {}
        self._codes = {(code.builtinCode, code.version): at for at, code in enumerate(model.operatorCodes)}

    def buffer(self, content: bytes) -> int:
        """The buffer with these bytes."""
        from ai_edge_litert import schema_py_generated as schema

        if content not in self._buffers:
            made = schema.BufferT()
            made.data = np.frombuffer(content, np.uint8)
            self._buffers[content] = len(self.model.buffers)
            self.model.buffers.append(made)
        return self._buffers[content]

    def operator_code(self, name: str, version: int) -> int:
        """The number of an operator of the schema."""
        from ai_edge_litert import schema_py_generated as schema

        number = int(getattr(schema.BuiltinOperator, name))
        if (number, version) not in self._codes:
            made = schema.OperatorCodeT()
            made.builtinCode, made.deprecatedBuiltinCode, made.version = number, min(number, 127), version
            self._codes[number, version] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(made)
        return self._codes[number, version]

    def new_graph(self, name: str) -> int:
        """The number of an empty subgraph."""
        from ai_edge_litert import schema_py_generated as schema

        made = schema.SubGraphT()
        made.name = name.encode()
        made.tensors, made.operators, made.inputs, made.outputs = [], [], [], []
        self.model.subgraphs.append(made)
        return len(self.model.subgraphs) - 1


class Writing:
    """A subgraph to which tensors are added; `made` gathers the new operators, in order.

    Attributes:
        number: of the subgraph.
        prefix: of the names of new tensors.
    """

    def __init__(self, file: File, number: int) -> None:
        self.file, self.number = file, number
        self.graph = file.model.subgraphs[number]
        self.made: list[Any] = []
        self.prefix = ""
        self._constants: dict[tuple[tuple[int, ...], int, int], int] = {}
        self._fixed: set[int] = set()

    def constant(self, value: Array, name: str | None = None) -> int:
        """A tensor with this value; one that is there already is shared, and so are equal bytes of another shape."""
        value = np.ascontiguousarray(value).reshape(np.shape(value))
        buffer = self.file.buffer(value.tobytes())
        key = value.shape, _type(value.dtype), buffer
        if key not in self._constants:
            self._constants[key] = self.tensor(value.shape, _type(value.dtype), f"{name}." if name else "", buffer)
            self._fixed.add(self._constants[key])
        return self._constants[key]

    def holds(self, tensor: int) -> bool:
        """Whether the file has the tensor's value."""
        data = self.file.model.buffers[self.graph.tensors[tensor].buffer].data
        return data is not None and len(data) > 0

    def value(self, tensor: int) -> Array:
        """Of a float32 constant.

        Raises:
            ModelError: it is computed, or in other numbers.
        """
        held = self.graph.tensors[tensor]
        if not self.holds(tensor) or held.type != _TYPES["float32"]:
            raise ModelError(f"tensor {text(held.name)!r} of a TFLite file is no float32 constant")
        data = bytes(
            self.file.model.buffers[held.buffer].data
        )  # an array, or bytes where they lie behind the flatbuffer
        return np.frombuffer(data, np.float32).reshape([int(size) for size in held.shape])

    def is_constant(self, tensor: int) -> bool:
        """Whether `constant` made it."""
        return tensor in self._fixed

    def tensor(self, shape: Sequence[int], kind: int, name: str, buffer: int = 0) -> int:
        """A new tensor of a schema's type."""
        from ai_edge_litert import schema_py_generated as schema

        made = schema.TensorT()
        made.shape, made.type, made.buffer = list(shape), kind, buffer
        # Numbers are names enough for what is computed: the operators of a hash would double the size of longer ones.
        made.name = f"{self.prefix}{name}{len(self.graph.tensors)}".encode()
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def op(
        self,
        name: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        dtype: DTypeLike,
        *,
        options: str | None = None,
        **fields: int | bool,
    ) -> int:
        """An operator with one output; returns that.

        Args:
            name: of the operator in the schema.
            inputs: tensors, −1 for one that is left out.
            shape, dtype: of the output.
            options: the schema's table of options without its ending; `fields` are set in it.
        """
        output = self.tensor(shape, _type(dtype), "")
        versions = [_VERSIONS.get((name, kind), 1) for kind in self._kinds([*inputs, output])]
        self.add(name, inputs, [output], options, fields, max(versions))
        return output

    def reshape(self, tensor: int, shape: Sequence[int], dtype: DTypeLike) -> int:
        """The tensor in another shape; itself where it has that one."""
        if list(self.graph.tensors[tensor].shape) == list(shape):
            return tensor
        to = self.constant(np.array(shape, np.int32))
        return self.op("RESHAPE", [tensor, to], shape, dtype)

    def variable(self, name: str) -> int:
        """A handle of the resource of this name."""
        handle = self.tensor((), _RESOURCE, "")
        fields = {"container": b"", "sharedName": name.encode()}
        self.add("VAR_HANDLE", [], [handle], "VarHandle", fields)
        return handle

    def add(
        self,
        name: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: str | None = None,
        fields: dict[str, Any] | None = None,
        version: int = 1,
    ) -> None:
        """An operator with any number of outputs."""
        from ai_edge_litert import schema_py_generated as schema

        made = schema.OperatorT()
        made.opcodeIndex = self.file.operator_code(name, version)
        made.inputs, made.outputs = list(inputs), list(outputs)
        if options is not None:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, f"{options}Options")
            made.builtinOptions = getattr(schema, f"{options}OptionsT")()
            for field, value in (fields or {}).items():
                if not hasattr(made.builtinOptions, field):
                    raise ModelError(f"{name} has no option {field}")
                setattr(made.builtinOptions, field, value)
        self.made.append(made)

    def fully_connected(self, inputs: Sequence[int], output: int) -> None:
        """An operator that multiplies every vector of its input; its bias may be −1."""
        self.add("FULLY_CONNECTED", inputs, [output], "FullyConnected", {"keepNumDims": True}, WITHOUT_BIAS)

    def finish(self) -> None:
        """Let the new operators be those of the graph."""
        self.graph.operators = self.made

    def writes(self, tensor: int, target: int) -> None:
        """Let the new operator that writes `tensor` write `target` instead, and let all others read that.

        Raises:
            ModelError: no new operator writes it.
        """
        if not any(tensor in op.outputs for op in self.made):
            raise ModelError("a layer's last step computes nothing")
        for op in self.made:
            op.inputs = [target if each == tensor else each for each in op.inputs]
            op.outputs = [target if each == tensor else each for each in op.outputs]

    def _kinds(self, tensors: Sequence[int]) -> set[str]:
        names = {number: name for name, number in _TYPES.items()}
        return {names.get(self.graph.tensors[each].type, "") for each in tensors if each >= 0}


def _type(dtype: DTypeLike) -> int:
    name = np.dtype(dtype).name
    if name not in _TYPES:
        raise ModelError(f"a layer in code cannot hold {name} in a TFLite file, only {', '.join(_TYPES)}")
    return _TYPES[name]


@dataclass(frozen=True, eq=False)
class TfliteFile:
    """A model of one subgraph.

    Attributes:
        content: the file's bytes.
        model: the schema's ModelT.
        graph: its SubGraphT.
        operator_names: of each operator, as in the schema, or the custom operator's own.
    """

    content: bytes
    model: Any
    graph: Any
    operator_names: Sequence[str]

    def constant(self, buffer: int) -> Array:
        """The bytes of a buffer: in the flatbuffer, or behind it."""
        stored = self.model.buffers[buffer]
        if stored.offset > 1:
            return np.frombuffer(self.content, np.uint8, stored.size, stored.offset)
        return np.zeros(0, np.uint8) if stored.data is None else np.asarray(stored.data, np.uint8)


def read_file(path: Path) -> TfliteFile:
    """Read a file with one subgraph and without state.

    Raises:
        ModelError: a missing or damaged file, several subgraphs, resources, or weights in other files.
    """
    from ai_edge_litert import schema_py_generated as schema

    names = operators(path)  # checks every table and constant
    content = path.read_bytes()
    model = schema.ModelT.InitFromPackedBuf(content)
    if len(model.subgraphs) != 1:
        raise ModelError(
            f"{path}: found {len(model.subgraphs)} subgraphs (control flow), expected one",
            hint="count the whole model only",
        )
    graph = model.subgraphs[0]
    if any(tensor.type in _STATE for tensor in graph.tensors):
        raise ModelError(f"{path}: found state that outlives an inference", hint="count the whole model only")
    if any(tensor.externalBuffer for tensor in graph.tensors):
        raise ModelError(f"{path}: found weights in other files", hint="count the whole model only")
    return TfliteFile(content, model, graph, names)


def write_file(source: TfliteFile, graph: Any, path: Path) -> None:
    """Write a subgraph as a model; its constants stand behind the flatbuffer, as in large files.

    Args:
        source: where the buffers and operator codes are.
        graph: a SubGraphT with the source's buffer and operator code numbers; changed.
        path: the file.

    Raises:
        OutputError: the file cannot be written.
    """
    from ai_edge_litert import schema_py_generated as schema

    data: list[Array] = []
    buffers = [schema.BufferT()]  # the first one is always empty
    known: dict[int, int] = {}
    for tensor in graph.tensors:
        if tensor.buffer not in known:
            held = source.constant(tensor.buffer)
            known[tensor.buffer] = len(buffers) if held.size else 0
            if held.size:
                buffers.append(schema.BufferT(offset=2, size=held.size))
                data.append(held)
        tensor.buffer = known[tensor.buffer]
    codes = list(dict.fromkeys(op.opcodeIndex for op in graph.operators))
    for op in graph.operators:
        op.opcodeIndex = codes.index(op.opcodeIndex)
        if op.largeCustomOptionsOffset > 1:
            start = op.largeCustomOptionsOffset
            op.customOptions = np.frombuffer(source.content, np.uint8, op.largeCustomOptionsSize, start)
            op.largeCustomOptionsOffset = op.largeCustomOptionsSize = 0
        op.debugMetadataIndex = -1
    model = copy.copy(source.model)
    model.operatorCodes = [source.model.operatorCodes[i] for i in codes]
    model.subgraphs, model.buffers = [graph], buffers
    model.metadata = model.metadataBuffer = model.signatureDefs = None
    _write(model, data, path)


def _write(model: Any, data: Sequence[Array], path: Path) -> None:
    position = _round_up(len(_packed(model)))  # numbers that are not zero all take the same room
    for buffer, held in zip(model.buffers[1:], data, strict=True):
        buffer.offset = position
        position = _round_up(position + held.size)
    try:
        with path.open("wb") as stream:
            stream.write(_packed(model))
            for buffer, held in zip(model.buffers[1:], data, strict=True):
                stream.write(bytes(buffer.offset - stream.tell()))
                stream.write(held.data)
    except OSError as err:
        raise OutputError(
            f"cannot write {path}: {err.strerror}", hint="choose a folder that exists and has room"
        ) from err


def _packed(model: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _round_up(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT


def whole(path: Path) -> Any:
    """The schema's objects of a file that this tool wrote."""
    return objects(path.read_bytes())


def objects(content: bytes) -> Any:
    """The schema's objects of the bytes of a file that was checked, or that this tool wrote."""
    from ai_edge_litert.tools import flatbuffer_utils

    return flatbuffer_utils.read_model_from_bytearray(content)


def drop_unused(model: Any) -> None:
    """Remove tensors that nothing uses and buffers that no tensor holds."""
    for number, graph in enumerate(model.subgraphs):
        signatures = [s for s in model.signatureDefs or [] if s.subgraphIndex == number]
        named = [entry for s in signatures for entry in [*(s.inputs or []), *(s.outputs or [])]]
        used = {*graph.inputs, *graph.outputs, *(entry.tensorIndex for entry in named)}
        for op in graph.operators:
            used.update(index for part in _operands(op) for index in part)
        kept = sorted(used - {-1})
        new = {-1: -1, **{old: index for index, old in enumerate(kept)}}
        graph.tensors = [graph.tensors[old] for old in kept]
        graph.inputs, graph.outputs = [new[i] for i in graph.inputs], [new[i] for i in graph.outputs]
        for entry in named:
            entry.tensorIndex = new[entry.tensorIndex]
        for op in graph.operators:
            for part in _operands(op):
                part[:] = [new[index] for index in part]
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    holders = [*tensors, *(model.metadata or [])]
    given = [] if model.metadataBuffer is None else model.metadataBuffer
    others = [number for number in given if number < len(model.buffers)]  # files that were made smaller keep old ones
    kept = sorted({0, *others, *(holder.buffer for holder in holders)})
    moved = {old: index for index, old in enumerate(kept)}
    model.buffers = [model.buffers[old] for old in kept]
    for holder in holders:
        holder.buffer = moved[holder.buffer]
    if model.metadataBuffer is not None:
        model.metadataBuffer = [moved[old] for old in others]


def drop_graphs(model: Any, numbers: Collection[int]) -> None:
    """Remove subgraphs that nothing calls any more."""
    kept = [number for number in range(len(model.subgraphs)) if number not in numbers]
    model.subgraphs = [model.subgraphs[number] for number in kept]
    move_graphs(model, {old: number for number, old in enumerate(kept)})


def move_graphs(model: Any, new: Mapping[int, int]) -> None:
    """Give subgraphs, wherever they are called by their numbers, new ones."""
    for signature in model.signatureDefs or []:
        signature.subgraphIndex = new[signature.subgraphIndex]
    operators = [op for graph in model.subgraphs for op in graph.operators]
    for options in (each for op in operators for each in (op.builtinOptions, op.builtinOptions2) if each is not None):
        for field in [name for name in vars(options) if name.endswith("SubgraphIndex")]:
            setattr(options, field, new[getattr(options, field)])


def drop_codes(model: Any) -> None:
    """Remove kinds of operators that there are none of: a runtime wants to know each of them."""
    operators = [op for graph in model.subgraphs for op in graph.operators]
    codes = sorted({op.opcodeIndex for op in operators})
    for op in operators:
        op.opcodeIndex = codes.index(op.opcodeIndex)
    model.operatorCodes = [model.operatorCodes[code] for code in codes]


def _operands(operator: Any) -> Iterable[list[int]]:
    for part in (operator.inputs, operator.outputs, operator.intermediates):
        if part is not None:
            yield part


def packed(model: Any) -> bytes:
    """The file, constants at multiples of 16 bytes."""
    import flatbuffers

    class Aligned(flatbuffers.Builder):  # type: ignore[misc]
        def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:
            return super().StartVector(elemSize, numElems, max(alignment, _ALIGNMENT if numElems >= 64 else 1))

    size = 0
    for buffer in model.buffers:
        if buffer.data is not None and not isinstance(buffer.data, np.ndarray):
            buffer.data = np.frombuffer(buffer.data, np.uint8)  # anything else is packed byte by byte
        size += 0 if buffer.data is None else len(buffer.data)
    builder = Aligned(size + (1 << 20))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def text(name: bytes | str) -> str:
    """A name as the schema's objects hold it, before or after packing."""
    return name.decode() if isinstance(name, bytes) else name
