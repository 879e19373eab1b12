"""TFLite files as one with a signature for each: entry points of a model, which share their weights there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.backends.tflite.decoded import operator_name, sign
from edgepack.backends.tflite.file import drop_unused, move_graphs, packed, text, whole
from edgepack.backends.tflite.read import operators
from edgepack.backends.tflite.runtime import interpreter
from edgepack.data import example
from edgepack.errors import ModelError
from edgepack.model.types import Array, TensorSpec
from edgepack.workspace import atomic_path, file_bytes


@dataclass(frozen=True)
class Joined:
    """A signature of the joined file.

    Attributes:
        name: of the signature.
        path: of the file that it was.
        size_bytes: of that.
        inputs, outputs: their names, in order.
    """

    name: str
    path: Path
    size_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def join(parts: Mapping[str, Path], out: Path) -> tuple[Joined, ...]:
    """Write one file with the graphs of all, and constants that are equal to the byte once.

    Every signature answers as its own file does: both are run on seeded inputs.

    Args:
        parts: by the name that the signature gets; each file has one signature, or none.
        out: the file to write.

    Raises:
        ModelError: a file is missing or damaged, has several signatures, or answers in another way when joined.
    """
    joined: Any = None
    signatures, alone = [], {}
    with tempfile.TemporaryDirectory(prefix="edgepack-join-") as folder:
        single = Path(folder, "single.tflite")
        for name, path in parts.items():
            model = _single(path, name)
            (signature,) = model.signatureDefs
            names = [tuple(text(each.name) for each in ends) for ends in (signature.inputs, signature.outputs)]
            signatures.append(Joined(name, path, file_bytes(path), *names))
            single.write_bytes(packed(model))
            alone[name] = _answers(single, name)
            joined = model if joined is None else _with(joined, model)
    _share_buffers(joined)
    drop_unused(joined)
    with atomic_path(out) as temporary:
        temporary.write_bytes(packed(joined))
        for name, path in parts.items():
            if not _alike(_answers(temporary, name), alone[name]):
                raise ModelError(f"{path}: answers in another way as signature {name!r} of the joined file")
    return tuple(signatures)


def _answers(path: Path, name: str) -> dict[str, Array]:
    """What a signature answers to seeded inputs."""
    runner = interpreter(path).get_signature_runner(name)
    details = runner.get_input_details()
    specs = [TensorSpec(each, tuple(map(int, one["shape"])), np.dtype(one["dtype"])) for each, one in details.items()]
    return {each: np.array(value) for each, value in runner(**example(None, specs, 0)).items()}


def _alike(have: Mapping[str, Array], want: Mapping[str, Array]) -> bool:
    floats = [value.dtype.kind == "f" for value in want.values()]
    pairs = zip(have.values(), want.values(), floats, strict=True)
    return [*have] == [*want] and all(np.array_equal(a, b, equal_nan=is_float) for a, b, is_float in pairs)


def _single(path: Path, name: str) -> Any:
    """The model of a file, with one signature of this name and variables that no other has."""
    operators(path)  # checks every table and constant
    model = whole(path)
    sign(model)
    if len(model.signatureDefs) > 1:
        names = ", ".join(text(each.signatureKey) for each in model.signatureDefs)
        raise ModelError(
            f"{path}: has the signatures {names}, one was expected", hint="give the files it was joined from"
        )
    model.signatureDefs[0].signatureKey = name.encode()
    model.metadata = model.metadataBuffer = model.description = None
    for op in (op for graph in model.subgraphs for op in graph.operators):
        if operator_name(model, op) == "VAR_HANDLE":
            op.builtinOptions.sharedName = f"{name}/{text(op.builtinOptions.sharedName or b'')}".encode()
    return model


def _with(joined: Any, model: Any) -> Any:
    """The first model with the graphs, buffers and operators of the second behind its own."""
    graphs, buffers, codes = (len(each) for each in (joined.subgraphs, joined.buffers, joined.operatorCodes))
    move_graphs(model, {number: graphs + number for number in range(len(model.subgraphs))})
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer += buffers
        for op in graph.operators:
            op.opcodeIndex += codes
    joined.subgraphs = [*joined.subgraphs, *model.subgraphs]
    joined.buffers = [*joined.buffers, *model.buffers]
    joined.operatorCodes = [*joined.operatorCodes, *model.operatorCodes]
    joined.signatureDefs = [*joined.signatureDefs, *model.signatureDefs]
    return joined


def _share_buffers(model: Any) -> None:
    """Tensors with equal bytes have one buffer, those without any the first, which is empty."""
    known: dict[bytes, int] = {b"": 0}
    places = [known.setdefault(_content(buffer), at) for at, buffer in enumerate(model.buffers)]
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        tensor.buffer = places[tensor.buffer]


def _content(buffer: Any) -> bytes:
    return b"" if buffer.data is None else bytes(buffer.data)
