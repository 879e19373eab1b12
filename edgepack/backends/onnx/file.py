"""ONNX files: read with every check at the door, written whole or not at all; what goes in and what comes out."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.backends.onnx.tensors import SMALL_BYTES, own_tensors, weight_bytes, with_files
from edgepack.backends.onnx.values import MAP, quiet
from edgepack.errors import ModelError, OutputError
from edgepack.model.types import TensorSpec
from edgepack.workers.sandbox import MORE, most_nodes

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = [
    "copy",
    "from_proto",
    "input_specs",
    "load",
    "load_with_digest",
    "output_specs",
    "read",
    "save",
    "to_bytes",
    "to_proto",
]

EXTERNAL_BYTES = 1_900_000_000
"""Weights beyond this go to a data file of their own: a protobuf message ends at 2 GiB."""

DEEPEST_CALLS = 64
"""Functions that call each other, at most."""
_AGAIN = "export the model again"
_FOREIGN = {b"PK\x03\x04": "a zip archive (.pt2, .pt, .npz)", b"\x89HDF": "an HDF5 file (.h5, .keras)"}


def load(path: Path) -> ir.Model:
    """Read an ONNX file and its external data into memory, and check both.

    Training information in the file is not kept. Functions, subgraphs, names, metadata and custom operators are.

    Raises:
        ModelError: the file is missing, empty, cut short, a folder or not ONNX; external data is missing or outside of
            the model's folder; a weight holds NaN or infinity; the graph is invalid.
    """
    return load_with_digest(path)[0]


def load_with_digest(path: Path) -> tuple[ir.Model, str]:
    """`load`, and the SHA-256 (hex) of what was read, external data included."""
    import onnx_ir as ir

    path = Path(path)
    proto, sha256 = _read(path)
    try:
        with quiet("onnx_ir"):  # it logs what the checker refuses below
            model = from_proto(proto)
    except ir.serde.SerdeError as err:
        raise ModelError(f"{path}: the graph cannot be read: {_first_cause(err)}") from err
    files = own_tensors(model, path.parent)
    if not all(map(_is_sorted, model.graphs())):  # runtimes take it as it is
        with suppress(ValueError):  # a cycle, which the checker refuses below
            model.graph.sort()
            proto = to_proto(model)
    _check(path, proto)
    return model, with_files(sha256, files, path.parent)


def read(path: Path) -> ir.Model:
    """A file that is known to be sound, such as one that was written here; external data stay where they are."""
    import onnx
    import onnx_ir as ir

    model = from_proto(onnx.load(path, load_external_data=False))
    ir.external_data.set_base_dir(model.graph, path.parent)
    return model


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """The message as a model; types of maps, which the library does not have, are kept beside its outputs."""
    import onnx_ir as ir

    maps = {value.name: value.type.SerializeToString() for value in proto.graph.output if _holds_map(value.type)}
    for graph in _graphs(proto):
        for value in [value for value in graph.value_info if _holds_map(value.type)]:
            graph.value_info.remove(value)
    for value in proto.graph.output:
        if value.name in maps:
            value.ClearField("type")
    model = ir.serde.deserialize_model(proto)
    for value, output in zip(proto.graph.output, model.graph.outputs, strict=True):
        if value.name in maps:
            value.type.ParseFromString(maps[value.name])
            output.meta[MAP] = maps[value.name]
    return model


def _holds_map(of_type: onnx.TypeProto) -> bool:
    return of_type.HasField("map_type") or (
        of_type.HasField("sequence_type") and _holds_map(of_type.sequence_type.elem_type)
    )


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as a message."""
    import onnx_ir as ir

    proto: onnx.ModelProto = ir.serde.serialize_model(model)
    for value, output in zip(proto.graph.output, model.graph.outputs, strict=True):
        if MAP in output.meta:
            value.type.ParseFromString(output.meta[MAP])
    return proto


def save(model: ir.Model, path: Path) -> None:
    """Write a model. The same model gives the same bytes.

    Weights beyond `EXTERNAL_BYTES` go to `<name>.data` beside the file. An error or an interrupt leaves the old file
    alone.

    Raises:
        OutputError: the file cannot be written.
    """
    import onnx_ir as ir

    path = Path(path)
    external = f"{path.name}.data" if weight_bytes(model) > EXTERNAL_BYTES else None
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            if external is None:
                (Path(folder) / path.name).write_bytes(to_bytes(model))
                path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # of a larger model at this path before
            else:
                ir.save(model, Path(folder) / path.name, format="protobuf", external_data=external)
                os.replace(Path(folder) / external, path.parent / external)
            os.replace(Path(folder) / path.name, path)
    except OSError as err:
        raise OutputError(
            f"cannot write {path}: {err.strerror}", hint="choose a folder that exists and has room"
        ) from err


def copy(source: Path, path: Path) -> None:
    """Write a sound file as it is, byte by byte; as `save` does where it has weights in other files.

    Raises:
        ModelError: see `load`.
    """
    import onnx
    from onnx.external_data_helper import uses_external_data

    content = source.read_bytes()
    if any(uses_external_data(tensor) for tensor in _tensor_protos(onnx.load_from_string(content))):
        save(load(source), path)
    else:
        path.write_bytes(content)


def to_bytes(model: ir.Model) -> bytes:
    """The model as a runtime reads it from memory.

    Raises:
        ModelError: its weights are beyond `EXTERNAL_BYTES`.
    """
    size = weight_bytes(model)
    if size > EXTERNAL_BYTES:
        raise ModelError(
            f"the model has {size} bytes of weights, expected at most {EXTERNAL_BYTES} in one message",
            hint="save it to a file first",
        )
    content: bytes = to_proto(model).SerializeToString(deterministic=True)
    return content


def external_files(path: Path) -> list[Path]:
    """The files beside a model that hold weights of it, as far as they are there; in order of their names.

    Raises:
        ModelError: the file is missing, empty, cut short, a folder or not ONNX.
    """
    proto = _parsed(path, _content(path))
    entries = [entry for tensor in proto.graph.initializer for entry in tensor.external_data]
    named = {path.parent / entry.value for entry in entries if entry.key == "location"}
    return sorted(file for file in named if file.is_file())


def _read(path: Path) -> tuple[onnx.ModelProto, str]:
    """The parsed file and its digest; the bytes themselves are let go, or a large model is held once too often."""
    content = _content(path)
    return _parsed(path, content), hashlib.sha256(content).hexdigest()


def _content(path: Path) -> bytes:
    if not path.exists():
        raise ModelError(f"{path}: no such file", hint="check the path of the model")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise ModelError(f"{path}: found {kind}, expected an ONNX file", hint="name the .onnx file itself")
    try:
        content = path.read_bytes()
    except OSError as err:
        raise ModelError(f"{path}: cannot be read: {err.strerror}") from err
    if not content:
        raise ModelError(f"{path}: the file is empty", hint="export or copy the model again")
    return content


def _parsed(path: Path, content: bytes) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    proto = onnx.ModelProto()
    found = next((f"it is {name}" for magic, name in _FOREIGN.items() if content.startswith(magic)), None)
    if content[4:8] == b"TFL3":
        found = "it is a TFLite model"
    try:
        proto.ParseFromString(content)
    except DecodeError as err:
        raise ModelError(
            f"{path}: {found or 'it is cut short or'} not an ONNX file ({len(content)} bytes)",
            hint="copy the file again; a model in another format must be exported to ONNX first",
        ) from err
    if not proto.ir_version or not proto.HasField("graph"):
        raise ModelError(f"{path}: found no ONNX graph in it", hint="export the model to ONNX first")
    nodes, most = _unfolded_nodes(proto), most_nodes()
    if nodes is None:
        raise ModelError(
            f"{path}: its functions call each other in a circle, or over {DEEPEST_CALLS} deep", hint=_AGAIN
        )
    if nodes > most:
        raise ModelError(f"{path}: {nodes} nodes, with those of its functions, expected at most {most}", hint=MORE)
    if any(graph.sparse_initializer for graph in _graphs(proto)):
        raise ModelError(f"{path}: found sparse initializers, expected dense ones", hint="export it with dense weights")
    types = set(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}
    for tensor in _tensor_protos(proto):
        if tensor.data_type not in types or any(dim < 0 for dim in tensor.dims):
            raise ModelError(f"{path}: the tensor {tensor.name!r} has no known type or a negative size")
    return proto


def _unfolded_nodes(proto: onnx.ModelProto) -> int | None:
    """Nodes of the graph and of its subgraphs, with a function's own in the place of each call; None where functions
    call each other in a circle, or over `DEEPEST_CALLS` deep."""
    functions = {(function.domain, function.name): list(_inside(function.node)) for function in proto.functions}
    known: dict[tuple[str, str], int] = {}

    def count(nodes: Iterable[onnx.NodeProto]) -> int:
        return sum(known.get((node.domain, node.op_type), 1) for node in nodes)

    for _ in range(DEEPEST_CALLS):  # those that call no other are known first, then those that call these
        counted = {key: count(nodes) for key, nodes in functions.items()}
        if counted == known:
            return count(_inside(proto.graph.node))
        known = counted
    return None


def _inside(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those of their subgraphs."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                waiting.extend(graph.node)


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph, and the subgraphs of its nodes and of the functions' nodes."""
    yield proto.graph
    waiting = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    while waiting:
        for attribute in waiting.pop().attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield graph
                waiting.extend(graph.node)


def _is_sorted(graph: ir.Graph) -> bool:
    """Whether every node stands behind those whose outputs it takes."""
    later = set(graph)
    for node in graph:
        if any(value is not None and value.producer() in later for value in node.inputs):
            return False
        later.discard(node)
    return True


def _check(path: Path, proto: onnx.ModelProto) -> None:
    """Let the ONNX checker see the file.

    Its large tensors, known to be sound by then, are emptied first, so the checker's limit of 2 GiB does not matter. An
    input or output that does not state its shape gets one, since runtimes do not ask for it.
    """
    import onnx

    for tensor in _tensor_protos(proto):
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        if external or tensor.ByteSize() > SMALL_BYTES:
            light = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0])
            tensor.CopyFrom(light)
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError) as err:  # a ValueError: names that are not UTF-8
        raise ModelError(f"{path}: the graph is not valid ONNX: {_first_cause(err)}", hint=_AGAIN) from err
    newest = onnx.defs.onnx_opset_version()
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > newest:
            raise ModelError(
                f"{path}: found operator set {opset.version}, expected at most {newest}",
                hint="export the model for an older operator set, or upgrade the packages onnx and onnxruntime",
            )


def _tensor_protos(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    nodes = [node for function in proto.functions for node in function.node]
    for graph in _graphs(proto):
        yield from graph.initializer
        nodes.extend(graph.node)
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t") or (attribute.type == attribute.TENSOR and not attribute.ref_attr_name):
                yield attribute.t


def _first_cause(err: BaseException) -> str:
    while err.__cause__ is not None:
        err = err.__cause__
    return str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__


def input_specs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """The inputs that a caller must give; initializers that are listed as inputs are not among them.

    Raises:
        ModelError: an input is not a tensor or does not state its shape.
    """
    return tuple(_spec(value, "input") for value in model.graph.inputs if not value.is_initializer())


def output_specs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """The outputs. One that does not state its shape has the shape (), and so have maps, sequences and optional
    tensors, which sessions give as arrays."""
    import onnx_ir as ir

    return tuple(
        _spec(value, "output")
        if MAP in value.meta or isinstance(value.type, ir.TensorType)
        else TensorSpec(value.name or "", (), np.dtype(np.float32))
        for value in model.graph.outputs
    )


def _spec(value: ir.Value, role: str) -> TensorSpec:
    import onnx_ir as ir

    name = value.name or ""
    if MAP in value.meta:
        return TensorSpec(name, (), np.dtype(np.float32))
    if not isinstance(value.type, ir.TensorType) or value.type.dtype == ir.DataType.UNDEFINED:
        raise ModelError(
            f"the {role} {name!r} is {value.type}, expected a tensor", hint="export the model with plain tensors"
        )
    if value.shape is None and role == "input":
        raise ModelError(
            f"the input {name!r} does not state its shape",
            hint="export the model with the shape; axes that vary may have a name instead of a number",
        )
    dims = () if value.shape is None else value.shape.dims
    shape = tuple(dim if isinstance(dim, int) and dim > 0 else None for dim in dims)
    return TensorSpec(name, shape, value.type.dtype.numpy())
