"""Put two thin operators, or another weight, in the place of a dense operator of a float32 .tflite file.

The model is not converted again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.emit.tflite_fold import Fold
from edgepack.errors import ModelError
from edgepack.types import Array, Dense, Factors, LinearLayer, Replacement

_ALIGNMENT = 16


def can_replace(fold: Fold, layer: LinearLayer, part: Replacement) -> bool:
    """Whether `thin` can replace the operator and keep what the converter folded into it."""
    return fold.op.op in ("FULLY_CONNECTED", "CONV_2D") and fold.takes(layer, part)


def thin(
    source: Path,
    path: Path,
    layers: Sequence[LinearLayer],
    factors: Mapping[str, Replacement],
    folds: Mapping[str, Sequence[Fold]],
) -> dict[str, tuple[str, ...]]:
    """Write the dense file with the parts in the place of each operator of the named layers.

    Of two thin operators the second writes what the dense one wrote, activation included. All places of a layer share
    its factors.

    Args:
        source: the dense float32 file.
        path: where to write.
        layers: at least those in `factors`.
        factors: by layer name.
        folds: by layer name, all operators of the layer, each of which `can_replace`.

    Returns:
        By layer name: the tensors that its operators write, as the quantizer names them.

    Raises:
        ModelError: an operator is not in the file, or not of a kind that can be split.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(source.read_bytes())
    dense = {layer.name: layer for layer in layers}
    editor = _Editor(model)
    written = {
        name: tuple(output for fold in folds[name] for output in editor.replace(fold, dense[name], part))
        for name, part in factors.items()
    }
    _drop_unused(model)
    path.write_bytes(_packed(model))
    return written


class _Editor:
    """The file's objects while operators are replaced."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._tensors: dict[tuple[int, bytes], int] = {}
        self._names = [{_text(tensor.name) for tensor in graph.tensors} for graph in model.subgraphs]

    def replace(self, fold: Fold, layer: LinearLayer, part: Replacement) -> tuple[str, ...]:
        """Replace one operator; returns the names of what its successors write."""
        graph = self._model.subgraphs[fold.op.subgraph]
        place = [i for i, op in enumerate(graph.operators) if fold.op.output_index in list(op.outputs)]
        if len(place) != 1:
            raise ModelError(f"{layer.name}: no operator writes {fold.op.output!r} in the TFLite file")
        if isinstance(part, Dense):
            return self._reweigh(fold, layer, part, graph.operators[place[0]])
        return self._split(fold, layer, part, place[0])

    def _reweigh(self, fold: Fold, layer: LinearLayer, part: Dense, operator: Any) -> tuple[str]:
        number, name = fold.op.subgraph, fold.op.output
        old = self._model.subgraphs[number].tensors[operator.inputs[1]]
        weight = (part.weight * fold.rows[:, None]).astype(np.float32).reshape(old.shape)
        bias = self._bias(number, old, fold.bias(layer, part), layer.out_features, f"{name}/bias")
        operator.inputs = [operator.inputs[0], self._constant(number, old, weight, f"{name}/weight"), bias]
        return (name,)

    def _split(self, fold: Fold, layer: LinearLayer, pair: Factors, place: int) -> tuple[str, str]:
        number, graph = fold.op.subgraph, self._model.subgraphs[fold.op.subgraph]
        second = graph.operators[place]
        first = copy.deepcopy(second)
        dense = graph.tensors[second.inputs[1]]
        kernel = (1, 1) if len(dense.shape) == 4 else ()
        b = (pair.B * fold.columns).astype(np.float32).reshape(pair.rank, *kernel, layer.in_features)
        a = (pair.A * fold.rows[:, None]).astype(np.float32).reshape(layer.out_features, *kernel, pair.rank)
        name = fold.op.output
        thin = self._latent(number, fold, pair.rank)
        weight = self._constant(number, dense, b, f"{name}/B")
        first.inputs = [second.inputs[0], weight, self._bias(number, dense, None, pair.rank, f"{name}/zeros")]
        first.outputs = [thin]
        bias = self._bias(number, dense, fold.bias(layer, pair), layer.out_features, f"{name}/bias")
        second.inputs = [thin, self._constant(number, dense, a, f"{name}/A"), bias]
        _without_activation(first)
        _with_unit_stride(second)
        graph.operators.insert(place, first)
        return _text(graph.tensors[thin].name), name

    def _latent(self, number: int, fold: Fold, rank: int) -> int:
        """The tensor between the two: the dense operator's output with `rank` channels."""
        output = self._model.subgraphs[number].tensors[fold.op.output_index]
        latent = copy.copy(output)
        latent.shape = [*output.shape[:-1], rank]
        if latent.shapeSignature is not None and len(latent.shapeSignature):
            latent.shapeSignature = [*output.shapeSignature[:-1], rank]
        return self._added(number, latent, f"{fold.op.output}/thin")

    def _bias(self, number: int, dense: Any, bias: Array | None, size: int, name: str) -> int:
        """A bias, or the absence of one, for which a convolution has zeros."""
        if bias is None and len(dense.shape) != 4:
            return -1
        return self._constant(number, dense, np.zeros(size, np.float32) if bias is None else bias, name)

    def _constant(self, number: int, like: Any, value: Array, name: str) -> int:
        """A tensor with this value; one that is there already is shared."""
        content = np.frombuffer(value.tobytes(), np.uint8)
        key = number, repr(value.shape).encode() + content.tobytes()
        if key not in self._tensors:
            made = copy.copy(like)
            made.shape, made.shapeSignature = list(value.shape), None
            made.buffer = len(self._model.buffers)
            buffer = copy.copy(self._model.buffers[0])
            buffer.data, buffer.offset, buffer.size = content, 0, 0
            self._model.buffers.append(buffer)
            self._tensors[key] = self._added(number, made, name)
        return self._tensors[key]

    def _added(self, number: int, tensor: Any, name: str) -> int:
        """Under a name that no other tensor has: the quantizer tells tensors apart by name."""
        names, free, count = self._names[number], name, 0
        while free in names:
            count += 1
            free = f"{name}{count}"
        names.add(free)
        tensor.name = free.encode()
        tensors = self._model.subgraphs[number].tensors
        tensors.append(tensor)
        return len(tensors) - 1


def _without_activation(operator: Any) -> None:
    if operator.builtinOptions is not None:
        operator.builtinOptions.fusedActivationFunction = 0
    operator.debugMetadataIndex = -1


def _with_unit_stride(operator: Any) -> None:
    """The first convolution of the two has taken the strides."""
    if hasattr(operator.builtinOptions, "strideH"):
        operator.builtinOptions.strideH = operator.builtinOptions.strideW = 1


def _drop_unused(model: Any) -> None:
    """Remove tensors that nothing uses and buffers that no tensor holds: the dense weights."""
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
    others = set(model.metadataBuffer) if model.metadataBuffer is not None else set()
    kept = sorted({0, *others, *(holder.buffer for holder in holders)})
    moved = {old: index for index, old in enumerate(kept)}
    model.buffers = [model.buffers[old] for old in kept]
    for holder in holders:
        holder.buffer = moved[holder.buffer]
    if model.metadataBuffer is not None:
        model.metadataBuffer = [moved[old] for old in model.metadataBuffer]


def _operands(operator: Any) -> Iterable[list[int]]:
    for part in (operator.inputs, operator.outputs, operator.intermediates):
        if part is not None:
            yield part


def _packed(model: Any) -> bytes:
    """The file, constants at multiples of 16 bytes as LiteRT's own writer has them."""
    import flatbuffers

    class Aligned(flatbuffers.Builder):  # type: ignore[misc]
        def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:  # noqa: N802
            return super().StartVector(elemSize, numElems, max(alignment, _ALIGNMENT if numElems >= 64 else 1))

    size = 0
    for buffer in model.buffers:
        if buffer.data is not None and not isinstance(buffer.data, np.ndarray):
            buffer.data = np.frombuffer(buffer.data, np.uint8)  # anything else is packed byte by byte
        size += 0 if buffer.data is None else len(buffer.data)
    builder = Aligned(size + (1 << 20))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name
