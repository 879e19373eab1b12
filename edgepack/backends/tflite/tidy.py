"""Takes out of a file what no runtime needs: long names inside of it, notes, empty tables, equal vectors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from edgepack.backends.tflite.file import drop_unused, packed, text, whole
from edgepack.backends.tflite.narrow import narrow


def shorten_names(path: Path) -> None:
    """Give the tensors of a file numbers for names, in place; the inputs and outputs of the first graph keep theirs.

    Done to what the converter wrote, before anything refers to tensors by their names.
    """
    model = whole(path)
    number_names(model)
    _write(model, path)


def number_names(model: Any) -> None:
    """`shorten_names` of the schema's ModelT. The quantizer wants names that no other graph has: behind the first one
    inputs and outputs have numbers as well."""
    first, *others = model.subgraphs
    public = {int(index) for index in (*first.inputs, *first.outputs)}
    _number(first, [index for index in range(len(first.tensors)) if index not in public])
    for number, graph in enumerate(others, start=1):
        for index, tensor in enumerate(graph.tensors):
            tensor.name = f"{number}/{index}".encode()


def tidy(path: Path, *, notes: bool = False, halves: bool = False) -> None:
    """Make a file small, in place; what it computes stays the same, to the bit.

    Converters and quantizers leave notes on themselves, a table of quantization for tensors that have none, and the
    same vector once for every tensor. Signatures stay: by them programs call the model. So do the names of all that
    operators write, by which layers are found; constants get numbers.

    Args:
        path: of the file.
        notes: whether the description and the metadata stay: in a file that came from somebody else they may matter.
        halves: whether weights may be decoded from float16 at load, as the model did it that was given.
    """
    model = whole(path)
    if halves:
        narrow(model)
    if not notes:
        model.description = model.metadata = model.metadataBuffer = None
    for graph in model.subgraphs:
        public = {int(index) for index in (*graph.inputs, *graph.outputs)}
        constants = [index for index, tensor in enumerate(graph.tensors) if _data(model, tensor) is not None]
        _number(graph, [index for index in constants if index not in public])
        for tensor in graph.tensors:
            grid = tensor.quantization
            if grid is not None:
                grid.min = grid.max = None
                has_scale = grid.scale is not None and len(grid.scale) > 0
                tensor.quantization = grid if has_scale or grid.details is not None else None
    _share_vectors(model)
    drop_unused(model)
    _write(model, path)


def _number(graph: Any, indices: Sequence[int]) -> None:
    """Name these tensors of a graph by numbers that no other has."""
    others = set(range(len(graph.tensors))) - set(indices)
    taken = {text(graph.tensors[index].name) for index in others}
    free = (name for name in map(str, count()) if name not in taken)
    for index in indices:
        graph.tensors[index].name = next(free).encode()


def _data(model: Any, tensor: Any) -> Any:
    """The bytes of a constant, None of a tensor that is computed."""
    data = model.buffers[tensor.buffer].data
    return None if data is None or not len(data) or tensor.isVariable else data


def _share_vectors(model: Any) -> None:
    """Matrices are left alone: each belongs to its layer, and is counted there."""
    known: dict[bytes, int] = {}
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        data = _data(model, tensor)
        if data is not None and len(tensor.shape) <= 1:
            tensor.buffer = known.setdefault(bytes(data), tensor.buffer)


def _write(model: Any, path: Path) -> None:
    path.write_bytes(packed(model))
