"""Put two thin operators, or another weight, in the place of a dense operator of a float32 .tflite file.

The model is not converted again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.backends.tflite.constexpr import encode
from edgepack.backends.tflite.file import drop_unused, packed, text
from edgepack.backends.tflite.matching import Fold, Found, Wanted, fold, match, shifts_by_size
from edgepack.backends.tflite.read import linear_ops
from edgepack.errors import ModelError
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array


def refuses(fold: Fold, layer: Layer, part: Replacement) -> str | None:
    """Why the part cannot stand in the place of the operator, in a few words; None if it can."""
    if fold.op.op not in ("FULLY_CONNECTED", "CONV_2D"):
        return f"{fold.op.op} has no bias and takes no other weight"
    if part.structure.is_constexpr and fold.op.stride != 1:
        return "a convolution with strides is not written in code"
    if not fold.takes(layer, part):
        return "what the converter folded into the operator is not known well enough to keep it"
    return None


def thin(
    source: Path,
    path: Path,
    layers: Sequence[Layer],
    factors: Mapping[str, Replacement],
    folds: Mapping[str, Sequence[Fold]],
) -> dict[str, tuple[str, ...]]:
    """Write the dense file with the parts in the place of each operator of the named layers.

    Of two thin operators the second writes what the dense one wrote, activation included. All places of a layer share
    its factors. A layer in code gets its effective weight: a quantizer knows no other; `tflite_coded.encode` puts the
    code in its place when the file has its final scheme.

    Args:
        source: the dense float32 file.
        path: where to write.
        layers: at least those in `factors`.
        factors: by layer name.
        folds: by layer name, all operators of the layer, none of which `refuses` its part.

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
    drop_unused(model)
    path.write_bytes(packed(model))
    return written


class _Editor:
    """The file's objects while operators are replaced."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._tensors: dict[tuple[int, bytes], int] = {}
        self._names = [{text(tensor.name) for tensor in graph.tensors} for graph in model.subgraphs]

    def replace(self, fold: Fold, layer: Layer, part: Replacement) -> tuple[str, ...]:
        """Replace one operator; returns the names of what its successors write."""
        graph = self._model.subgraphs[fold.op.subgraph]
        place = [i for i, op in enumerate(graph.operators) if fold.op.output_index in list(op.outputs)]
        if len(place) != 1:
            raise ModelError(f"{layer.name}: no operator writes {fold.op.output!r} in the TFLite file")
        if part.structure.ranks:
            return self._split(fold, layer, part, place[0])
        return self._reweigh(fold, layer, part, graph.operators[place[0]])

    def _reweigh(self, fold: Fold, layer: Layer, part: Replacement, operator: Any) -> tuple[str]:
        number, name = fold.op.subgraph, fold.op.output
        old = self._model.subgraphs[number].tensors[operator.inputs[1]]
        weight = (part.weight * fold.rows[:, None] * fold.columns).astype(np.float32).reshape(old.shape)
        bias = self._bias(number, old, fold.bias(layer, part), layer.out_features, f"{name}/bias")
        operator.inputs = [operator.inputs[0], self._constant(number, old, weight, f"{name}/weight"), bias]
        return (name,)

    def _split(self, fold: Fold, layer: Layer, pair: Replacement, place: int) -> tuple[str, str]:
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
        return text(graph.tensors[thin].name), name

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


@dataclass(frozen=True)
class Places:
    """The layers of a file.

    Attributes:
        path: the file.
        layers: of the model.
        operators: by layer name, what its operators write; layers without an operator are absent.
        folds: by layer name, its dense operators where each of them is fully understood.
    """

    path: Path
    layers: tuple[Layer, ...]
    operators: Mapping[str, tuple[str, ...]]
    folds: Mapping[str, tuple[Fold, ...]]

    def takes(self, factors: Mapping[str, Replacement]) -> bool:
        """Whether `replace` can put all of these into the file."""
        return all(self.refuses(name, part) is None for name, part in factors.items())

    def refuses(self, name: str, part: Replacement) -> str | None:
        """Why `replace` cannot put this into the file, in a few words; None if it can."""
        if name not in self.folds:
            return "its operators are not in the file, or their biases are not understood"
        layer = next(layer for layer in self.layers if layer.name == name)
        reasons = (refuses(place, layer, part) for place in self.folds[name])
        return next((reason for reason in reasons if reason is not None), None)

    def replace(self, path: Path, factors: Mapping[str, Replacement]) -> dict[str, tuple[str, ...]]:
        """Write the file with these in the place of the named layers; returns the `operators` of that file.

        Layers in code have their effective weights there, which a quantizer must leave in float32; `encode` comes last.
        """
        return {**self.operators, **thin(self.path, path, self.layers, factors, self.folds)}

    def encode(self, source: Path, path: Path, factors: Mapping[str, Replacement]) -> None:
        """Write a file of `replace`, or an integer scheme of it, with the code of those layers that are stored in code.

        Raises:
            ModelError: an operator is not in the file, or not in float32.
        """
        coded = {name: part for name, part in factors.items() if part.structure.is_constexpr}
        encode(source, path, coded, self.folds)


def find_places(
    path: Path,
    layers: Sequence[Layer],
    vectors: Sequence[Array],
    factors: Mapping[str, Replacement] | None = None,
) -> Places:
    """Find every layer's operators by their weights.

    Args:
        path: a float32 file from the converter.
        layers: of the source model, in its order.
        vectors: one-dimensional constants of the source model, which the converter may have folded into biases.
        factors: by layer name, of the layers that are pairs in the file.

    Raises:
        ModelError: unreadable file.
    """
    pairs = factors or {}
    wanted = [want for layer in layers for want in _wanted(layer, pairs.get(layer.name))]
    found = match(linear_ops(path), wanted)
    operators = {layer.name: _operators(layer, pairs, found) for layer in layers}
    shifts = shifts_by_size(vectors)
    folds = {}
    for layer in layers:
        places = [fold(place, layer, shifts) for place in found.get(layer.name, ())]
        known = tuple(place for place in places if place is not None)
        if places and len(known) == len(places):
            folds[layer.name] = known
    return Places(path, tuple(layers), {name: names for name, names in operators.items() if names}, folds)


def _wanted(layer: Layer, pair: Replacement | None) -> list[Wanted]:
    if pair is None:
        return [Wanted(layer.name, layer.weight, layer.uses)]
    return [Wanted(f"{layer.name}\0B", pair.B, layer.uses), Wanted(f"{layer.name}\0A", pair.A, layer.uses)]


def _operators(layer: Layer, pairs: Mapping[str, Replacement], found: Mapping[str, Sequence[Found]]) -> tuple[str, ...]:
    """Both halves of a pair, or none of them."""
    keys = [f"{layer.name}\0B", f"{layer.name}\0A"] if layer.name in pairs else [layer.name]
    parts = [found.get(key, ()) for key in keys]
    return tuple(place.op.output for part in parts for place in part) if all(parts) else ()
