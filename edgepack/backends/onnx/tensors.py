"""The tensors of a model file: read once, checked, and held apart from the file's own objects."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.backends.onnx.constants import FLOATS, VIEWS
from edgepack.errors import ModelError
from edgepack.model.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

SMALL_BYTES = 1024
"""Tensors up to this size are kept in the file's own encoding."""

_MASKING = frozenset({"Add", "Where", "Max", "Min", "Expand", "Clip", "Concat", "Slice", "Gather", "Trilu", "Pad"})
"""Operators through which exporters pass attention masks, where −∞ is a value like any other."""


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph, the function bodies, and the subgraphs of both."""
    yield from model.graphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.subgraphs()


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all tensors of the model."""
    return sum(tensor.nbytes for tensor, _, _ in _tensors(model))


def own_tensors(model: ir.Model, folder: Path) -> list[Path]:
    """Bring every tensor into memory, free of the parsed file and of external data files.

    Args:
        model: changed in place.
        folder: the model's folder; external data must lie in it.

    Returns:
        The external data files that were read, sorted.

    Raises:
        ModelError: external data is missing, outside of the folder or of the wrong size; a tensor's data does not fit
            its shape; a weight holds NaN or infinity.
    """
    import onnx_ir as ir

    files: set[Path] = set()
    for tensor, replace, name in list(_tensors(model)):
        if isinstance(tensor, ir.ExternalTensor):
            file = _external_file(tensor, folder, name)
            files.add(file)
            replace(_from_file(tensor, file, name))
        else:
            replace(_from_proto(tensor, name))
    for tensor, _, name in _tensors(model):
        _require_finite(tensor, name, model)
    return sorted(files)


def with_files(sha256: str, files: list[Path], folder: Path) -> str:
    """A model file's digest (hex) as it is or, if it has external data files, with their names and digests in it."""
    if not files:
        return sha256
    total = hashlib.sha256(sha256.encode())
    for file in files:
        with file.open("rb") as stream:
            total.update(f"\0{file.relative_to(folder.resolve())}\0".encode())
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


_Found = tuple["ir.TensorProtocol", Callable[["ir.TensorProtocol"], None], str]


def _tensors(model: ir.Model) -> Iterator[_Found]:
    """Each tensor of the model, a function that puts another in its place, and a name for messages."""
    import onnx_ir as ir

    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value, _setter(value), value.name or ""
        for node in graph:
            for key, attribute in node.attributes.items():
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    name = node.outputs[0].name if node.op_type == "Constant" and node.outputs else node.name
                    yield attribute.as_tensor(), _attribute_setter(node, key), name or node.op_type


def _setter(value: ir.Value) -> Callable[[ir.TensorProtocol], None]:
    def put(tensor: ir.TensorProtocol) -> None:
        value.const_value = tensor

    return put


def _attribute_setter(node: ir.Node, key: str) -> Callable[[ir.TensorProtocol], None]:
    import onnx_ir as ir

    def put(tensor: ir.TensorProtocol) -> None:
        doc = node.attributes[key].doc_string
        node.attributes[key] = ir.Attr(key, ir.AttributeType.TENSOR, tensor, doc_string=doc)

    return put


def _external_file(tensor: ir.ExternalTensor, folder: Path, name: str) -> Path:
    location = str(tensor.location)
    inside = folder.resolve()
    try:
        file = (inside / location).resolve()
        if not file.is_relative_to(inside):
            raise ModelError(
                f"external data of {name!r}: found the location {location!r}, expected one in the model's folder",
                hint="put the data file itself, not a link to it, beside the model",
            )
        if not file.is_file():
            raise ModelError(
                f"external data of {name!r}: {location!r} is missing in {folder}",
                hint="copy the data file beside the model, under the name that the model gives it",
            )
    except (OSError, ValueError) as err:  # a name too long, a NUL in it, a loop of links
        raise ModelError(f"external data of {name!r}: {location!r} is not a usable file name") from err
    return file


def _from_file(tensor: ir.ExternalTensor, file: Path, name: str) -> ir.TensorProtocol:
    offset, size = tensor.offset or 0, file.stat().st_size
    if offset < 0 or offset + tensor.nbytes > size or tensor.length not in (None, tensor.nbytes):
        raise ModelError(
            f"external data of {name!r}: found {size} bytes in {file.name}, "
            f"expected {tensor.nbytes} from offset {offset}",
            hint="the data file is cut short or belongs to another model; copy it again",
        )
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            raw = stream.read(tensor.nbytes)
    except OSError as err:
        raise ModelError(f"external data of {name!r}: cannot read {file.name}: {err.strerror}") from err
    return _from_raw(raw, tensor)


def _from_raw(raw: bytes, like: ir.TensorProtocol) -> ir.TensorProtocol:
    """A tensor over `raw` without a copy, or in the file's encoding where numpy has no such type."""
    import onnx
    import onnx_ir as ir

    dims = like.shape.numpy()
    if like.dtype.bitwidth < 8:
        proto = onnx.TensorProto(name=like.name, dims=dims, data_type=like.dtype.value, raw_data=raw)
        return ir.serde.deserialize_tensor(proto)
    array = np.frombuffer(raw, dtype=like.dtype.numpy()).reshape(dims)
    props = dict(like.metadata_props)
    return ir.Tensor(array, dtype=like.dtype, name=like.name, doc_string=like.doc_string, metadata_props=props)


def _from_proto(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    import onnx
    import onnx_ir as ir

    if isinstance(tensor, ir.StringTensor):
        return ir.StringTensor(list(tensor.string_data()), shape=tensor.shape, name=tensor.name)
    if not isinstance(tensor, ir.serde.TensorProtoTensor):
        return tensor
    try:
        if tensor.nbytes > SMALL_BYTES and tensor.raw.HasField("raw_data"):
            return _from_raw(tensor.raw.raw_data, tensor)
        proto = onnx.TensorProto()  # a copy: a part of the parsed file would keep all of it in memory
        proto.CopyFrom(tensor.raw)
        copy = ir.serde.TensorProtoTensor(proto)
        copy.numpy()
    except (ValueError, TypeError, AssertionError) as err:
        raise ModelError(f"the data of {name!r} do not fit its shape {list(tensor.shape.numpy())}") from err
    return copy


def _require_finite(tensor: ir.TensorProtocol, name: str, model: ir.Model) -> None:
    """Weights must be finite. Single numbers may be anything, and −∞ is fine in what only masks."""
    if tensor.dtype.name not in FLOATS or tensor.size <= 1:
        return
    array = tensor.numpy()
    if np.isfinite(array).all():
        return
    only_minus = bool((np.isfinite(array) | np.isneginf(array.astype(np.float32))).all())
    if only_minus and _only_masks(name, model):
        return
    found = "infinity" if not np.isnan(array).any() else "NaN"
    raise ModelError(
        f"the weight {name!r} holds {found}, expected finite numbers",
        hint="the training run has diverged or the file is damaged; export a sound checkpoint",
    )


def _only_masks(name: str, model: ir.Model) -> bool:
    waiting = [
        value
        for graph in all_graphs(model)
        for value in (*graph.initializers.values(), *(out for node in graph for out in node.outputs))
        if value.name == name
    ]
    while waiting:
        for node in waiting.pop().consumers():
            if node.op_type in VIEWS | {"Unsqueeze"}:
                waiting.extend(node.outputs)
            elif node.op_type not in _MASKING:
                return False
    return True


def vectors(model: ir.Model) -> list[Array]:
    """The float vectors among the initializers of the main graph, as float64."""
    found = []
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_floating_point() and tensor.size == max((*tensor.shape, 0)):
            found.append(np.asarray(tensor.numpy(), dtype=np.float64).reshape(-1))
    return found
