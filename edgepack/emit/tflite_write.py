"""Add constants, tensors and operators to the objects of a .tflite file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from edgepack.errors import ModelError
from edgepack.types import Array

# schema.fbs, TensorType
_TYPES = {"float32": 0, "int32": 2, "uint8": 3, "int64": 4, "int8": 9, "uint32": 15}
_RESOURCE = 13
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
    ("FULLY_CONNECTED", "float32"): 6,  # without a bias
}


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
        prefix: of the names of new tensors.
    """

    def __init__(self, file: File, number: int) -> None:
        self.file = file
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
