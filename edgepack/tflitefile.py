"""Read a .tflite file as objects, and write subgraphs of it as files with only the constants that they use."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.errors import ModelError, OutputError
from edgepack.tflitegraph.contents import operators
from edgepack.types import Array

_ALIGNMENT = 16
_STATE = (13, 14)  # schema.fbs, TensorType: RESOURCE and VARIANT


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
