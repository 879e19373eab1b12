"""Inputs that a TFLite file leaves open, and the file with their sides given."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.backends.tflite.file import objects, packed, text
from edgepack.backends.tflite.read import DTYPES, read_content
from edgepack.backends.tflite.runtime import interpreter
from edgepack.errors import ModelError
from edgepack.model.types import TensorSpec


def stated_inputs(content: bytes, name: str) -> tuple[TensorSpec, ...]:
    """What the first graph takes, under the names of its signature where it has one; None for a side that is open.

    Args:
        content: of the file.
        name: of the file, for messages.

    Raises:
        ModelError: a damaged file.
    """
    return read_content(content, name, lambda _: tuple(_stated(objects(content)).values()))


def resized(content: bytes, shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """The file with inputs of these shapes, by name, and with those of all that follows from them; what it leaves open
    stays open for a runtime.

    Raises:
        ModelError: the runtime refuses them.
    """
    model = objects(content)
    for tensor, spec in _stated(model).items():
        if spec.name in shapes:
            model.subgraphs[0].tensors[tensor].shape = list(shapes[spec.name])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "resized.tflite")
        path.write_bytes(packed(model))
        found = {int(each["index"]): each["shape"] for each in _ready(path).get_tensor_details()}
    for number, tensor in enumerate(model.subgraphs[0].tensors):
        shape = [int(side) for side in found.get(number, ())]
        if tensor.shape is not None and len(shape) == len(tensor.shape):
            tensor.shape = shape
    return packed(model)


def closed(content: bytes, shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """The same with no side left open, for runtimes that take none; the file as it is where it leaves none open.

    Raises:
        ModelError: the runtime refuses these shapes.
    """
    if all(None not in spec.shape for spec in _stated(objects(content)).values()):
        return content
    model = objects(resized(content, shapes))
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.shapeSignature = None
    return packed(model)


def _ready(path: Path) -> Any:
    """An interpreter that shows every tensor; where an operator has a kernel in a delegate alone, one that may not."""
    try:
        return interpreter(path, watched=True)
    except ModelError:
        return interpreter(path)


def _stated(model: Any) -> dict[int, TensorSpec]:
    """By their tensors."""
    graph = model.subgraphs[0]
    own = [each for each in model.signatureDefs or [] if each.subgraphIndex == 0][:1]
    named = {int(entry.tensorIndex): text(entry.name) for each in own for entry in each.inputs or []}
    found = {}
    for number in map(int, graph.inputs):
        tensor = graph.tensors[number]
        if tensor.type not in DTYPES:
            raise ModelError(f"an input is of type {tensor.type} of the schema, expected numbers")
        sides = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
        shape = tuple(None if side < 0 else int(side) for side in (() if sides is None else sides))
        name = named.get(number, text(tensor.name or b""))
        found[number] = TensorSpec(name, shape, np.dtype(DTYPES[tensor.type]))
    return found
