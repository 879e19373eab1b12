"""Put thin operators, or another weight, in the place of a dense operator of a float32 .tflite file.

The model is not converted again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.backends.tflite.constexpr import encode
from edgepack.backends.tflite.decoded import FLOAT, value_of
from edgepack.backends.tflite.file import File, Writing, drop_unused, packed, text, whole
from edgepack.backends.tflite.kinds import KINDS, OPERATORS
from edgepack.backends.tflite.kinds.conv import DEPTHWISE
from edgepack.backends.tflite.matching import TOLERANCE, Fold, Found, Wanted, match, shifts_by_size
from edgepack.backends.tflite.read import linear_ops
from edgepack.backends.tflite.schemes import FP32
from edgepack.errors import ModelError
from edgepack.model.kinds import linear
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array

_INT8_VERSION = 2
"""Of DEQUANTIZE, that takes int8."""
_DILATED = 2
"""Version of DEPTHWISE_CONV_2D that has steps between its places."""


def refuses(fold: Fold, layer: Layer, part: Replacement) -> str | None:
    """Why the part cannot stand in the place of the operator, in a few words; None if it can."""
    operands = OPERATORS[fold.op.op]
    if fold.integers and not part.structure.in_place:
        return "in a model that computes in integers a layer becomes low-rank factors or stays as it was given"
    if not operands.biases:
        return f"{fold.op.op} has no bias and takes no other weight"
    if len(operands.weights) > 1 and not part.structure.ranks:
        return f"the gates of {fold.op.op} are rounded each by itself"
    if part.structure.is_constexpr and fold.op.stride != 1:
        return "a convolution with strides is not written in code"
    if (reason := KINDS[layer.kind].refuses(layer, part.structure, FP32)) is not None:
        return reason
    if not part.structure.of_a_matrix and not (fold.columns == 1.0).all():
        return "what the converter folded in from before differs between the places of its kernel"
    if not fold.takes(layer, part):
        return "what the converter folded into the operator is not known well enough to keep it"
    return None


def share(layers: Sequence[Layer], folds: Sequence[Sequence[Fold]]) -> bool:
    """Whether layers can have the first of their low-rank factors in common: each is one operator in floats, on one
    input, with the same folded in from before.

    Args:
        layers: that multiply the same vectors.
        folds: of each.
    """
    first = folds[0][0]
    place = (first.op.op, first.op.subgraph, first.op.input_index)
    return all(
        layer.kind == linear.NAME
        and len(own) == 1
        and not own[0].integers
        and (own[0].op.op, own[0].op.subgraph, own[0].op.input_index) == place
        and np.allclose(own[0].columns, first.columns, rtol=TOLERANCE, atol=0.0)
        for layer, own in zip(layers, folds, strict=True)
    )


def thin(
    source: Path,
    path: Path,
    layers: Sequence[Layer],
    factors: Mapping[str, Replacement],
    folds: Mapping[str, Sequence[Fold]],
) -> dict[str, tuple[str, ...]]:
    """Write the dense file with the parts in the place of each operator of the named layers.

    Of several thin operators the last writes what the dense one wrote, activation included. All places of a layer share
    its factors, and layers whose parts are `is_shared` and have the same B that of the first of them. A layer in code
    gets its effective weight: a quantizer knows no other; `constexpr.encode` puts the code in its place when the file
    has its final scheme.

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
    model = whole(source)
    dense = {layer.name: layer for layer in layers}
    editor = Editor(model)
    order = sorted(factors, key=lambda name: editor.place(folds[name][0]))
    written = {
        name: tuple(output for fold in folds[name] for output in editor.replace(fold, dense[name], factors[name]))
        for name in order
    }
    drop_unused(model)
    path.write_bytes(packed(model))
    return written


class Editor:
    """The file's objects while operators are replaced."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.latents: dict[tuple[object, ...], int] = {}
        """What first factors give that several layers have in common, by what they take and hold."""
        self._tensors: dict[tuple[int, bytes], int] = {}
        self._names = [{text(tensor.name) for tensor in graph.tensors} for graph in model.subgraphs]

    def replace(self, fold: Fold, layer: Layer, part: Replacement) -> tuple[str, ...]:
        """Replace one operator; returns the names of what its successors write. Of one in integers they compute in
        float32, between DEQUANTIZE and QUANTIZE: `edgepack.backends.tflite.requantize` makes them integers again."""
        if fold.integers:
            fold = self._in_floats(fold)
        return KINDS[layer.kind].split(self, fold, layer, part)

    def operator(self, fold: Fold) -> Any:
        """The operator itself.

        Raises:
            ModelError: the file has none that writes the tensor.
        """
        operators = self._model.subgraphs[fold.op.subgraph].operators
        return operators[self.place(fold)]

    def place(self, fold: Fold) -> int:
        """Number of the operator in its graph.

        Raises:
            ModelError: see `operator`.
        """
        operators = self._model.subgraphs[fold.op.subgraph].operators
        place = [i for i, op in enumerate(operators) if fold.op.output_index in list(op.outputs)]
        if len(place) != 1:
            raise ModelError(f"no operator writes {fold.op.output!r} in the TFLite file")
        return place[0]

    def _in_floats(self, fold: Fold) -> Fold:
        """Let an operator in int8 compute in float32 what it wrote; the name goes to that."""
        graph, place = self._model.subgraphs[fold.op.subgraph], self.place(fold)
        operator = graph.operators[place]
        kernel = value_of(self._model, graph.tensors[operator.inputs[1]])
        if kernel is None:
            raise ModelError(f"the weight of {fold.op.output!r} is not in the TFLite file")
        given, written = int(operator.inputs[0]), int(operator.outputs[0])
        taken, made = (self._like(fold.op.subgraph, each, f"{fold.op.output}/float") for each in (given, written))
        graph.tensors[written].name, graph.tensors[made].name = graph.tensors[made].name, graph.tensors[written].name
        weight = self.constant(fold.op.subgraph, graph.tensors[made], kernel, f"{fold.op.output}/weight")
        operator.inputs, operator.outputs = [taken, weight, *operator.inputs[2:]], [made]
        writing = Writing(File(self._model), fold.op.subgraph)
        writing.add("DEQUANTIZE", [given], [taken], "Dequantize", version=_INT8_VERSION)
        writing.add("QUANTIZE", [made], [written], "Quantize")
        before, behind = writing.made
        graph.operators[place : place + 1] = [before, operator, behind]
        return replace(fold, op=replace(fold.op, input_index=taken, output_index=made), integers=False)

    def _like(self, number: int, tensor: int, name: str) -> int:
        """A tensor in float32 in the shape of another."""
        made = copy.copy(self._model.subgraphs[number].tensors[tensor])
        made.type, made.quantization, made.buffer = FLOAT, None, 0
        return self._added(number, made, name)

    def insert(self, fold: Fold, operator: Any) -> str:
        """Put an operator in front of this one; returns the name of what it writes."""
        self._model.subgraphs[fold.op.subgraph].operators.insert(self.place(fold), operator)
        return self.name(fold, operator.outputs[0])

    def fully_connected(self, number: int, inputs: Sequence[int], output: int) -> Any:
        """An operator that multiplies every vector of its input, for `insert`."""
        writing = Writing(File(self._model), number)
        writing.fully_connected(inputs, output)
        return writing.made[0]

    def depthwise(self, number: int, like: Any) -> Any:
        """A convolution over every channel by itself, with the paddings and steps of one over all, for `insert`."""
        writing = Writing(File(self._model), number)
        writing.add(DEPTHWISE, (), (), "DepthwiseConv2D", {**_steps(like), "depthMultiplier": 1}, _DILATED)
        return writing.made[0]

    def over_all_channels(self, fold: Fold) -> Any:
        """The operator; of a single channel, which converters write as a depthwise one, it becomes CONV_2D."""
        graph, place = self._model.subgraphs[fold.op.subgraph], self.place(fold)
        found = graph.operators[place]
        if not hasattr(found.builtinOptions, "depthMultiplier"):
            return found
        writing = Writing(File(self._model), fold.op.subgraph)
        fields = _steps(found) | {"fusedActivationFunction": found.builtinOptions.fusedActivationFunction}
        writing.add("CONV_2D", list(found.inputs), list(found.outputs), "Conv2D", fields)
        graph.operators[place] = writing.made[0]
        return writing.made[0]

    def tensor(self, fold: Fold, index: int) -> Any:
        """A tensor of the graph that the operator stands in."""
        return self._model.subgraphs[fold.op.subgraph].tensors[index]

    def name(self, fold: Fold, index: int) -> str:
        """What a tensor of the graph is called that the operator stands in."""
        return text(self.tensor(fold, index).name)

    def reweigh(self, fold: Fold, layer: Layer, part: Replacement) -> tuple[str]:
        """Give an operator of one matrix another one, or what a layer in code comes to."""
        operator, number, name = self.operator(fold), fold.op.subgraph, fold.op.output
        old = self._model.subgraphs[number].tensors[operator.inputs[1]]
        matrix = KINDS[layer.kind].laid_out(layer, part.weight)
        weight = (matrix * fold.rows[:, None] * fold.columns).astype(np.float32)
        outputs_last = len(weight) != old.shape[0]  # of a depthwise one
        weight = (weight.T if outputs_last else weight).reshape(old.shape)
        bias = self.bias(number, old, fold.bias(layer, part), layer.out_features, f"{name}/bias")
        operator.inputs = [operator.inputs[0], self.constant(number, old, weight, f"{name}/weight"), bias]
        return (name,)

    def latent(self, fold: Fold, channels: int, untaken: Sequence[int] = ()) -> int:
        """A new tensor between two operators: this one's output with so many channels.

        Args:
            untaken: axes between samples and channels, counted from 0, along which it has the sizes of the input.
        """
        taken, given = self.tensor(fold, self.operator(fold).inputs[0]), self.tensor(fold, fold.op.output_index)

        def shape(before: Sequence[int], behind: Sequence[int]) -> list[int]:
            sizes = {1 + axis: before[1 + axis] for axis in untaken}
            return [*(sizes.get(axis, size) for axis, size in enumerate(behind[:-1])), channels]

        latent = copy.copy(given)
        latent.shape = shape(taken.shape, given.shape)
        if latent.shapeSignature is not None and len(latent.shapeSignature):
            known = taken.shapeSignature is not None and len(taken.shapeSignature)
            latent.shapeSignature = shape(taken.shapeSignature if known else taken.shape, given.shapeSignature)
        return self._added(fold.op.subgraph, latent, f"{fold.op.output}/thin")

    def bias(self, number: int, dense: Any, bias: Array | None, size: int, name: str) -> int:
        """A bias, or the absence of one, for which a convolution has zeros."""
        if bias is None and len(dense.shape) != 4:
            return -1
        return self.constant(number, dense, np.zeros(size, np.float32) if bias is None else bias, name)

    def constant(self, number: int, like: Any, value: Array, name: str) -> int:
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

    def shares(self, names: Sequence[str]) -> bool:
        """Whether these layers can have one B in every file of `replace`, and every plan's file is one of these."""
        thinnest = {layer.name: _thinnest(layer) for layer in self.layers}
        own = [layer for layer in self.layers if layer.name in names]
        return self.takes(thinnest) and share(own, [self.folds[layer.name] for layer in own])

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
        constexpr = {name: part for name, part in factors.items() if part.structure.is_constexpr}
        encode(source, path, constexpr, self.folds)


def _thinnest(layer: Layer) -> Replacement:
    """Low-rank factors and another bias than the layer's."""
    rows, columns = layer.weight.shape
    bias = np.ones(rows, np.float32) if layer.bias is None else layer.bias + np.float32(1)
    return low_rank(np.zeros((rows, 1), np.float32), np.zeros((1, columns), np.float32), bias)


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
    known = [layer for layer in layers if layer.kind in KINDS]
    wanted = {layer.name: KINDS[layer.kind].wanted(layer, pairs.get(layer.name)) for layer in known}
    found = match(linear_ops(path), [want for own in wanted.values() for want in own])
    operators = {name: _operators(own, found) for name, own in wanted.items()}
    shifts = shifts_by_size(vectors)
    folds = {}
    for layer in known:
        places = [KINDS[layer.kind].fold(place, layer, shifts) for place in found.get(layer.name, ())]
        understood = tuple(place for place in places if place is not None)
        if places and len(understood) == len(places):
            folds[layer.name] = understood
    return Places(path, tuple(layers), {name: names for name, names in operators.items() if names}, folds)


def _operators(wanted: Sequence[Wanted], found: Mapping[str, Sequence[Found]]) -> tuple[str, ...]:
    """What the operators of all products of a layer write, or none of them."""
    parts = [found.get(want.name, ()) for want in wanted]
    return tuple(place.op.output for part in parts for place in part) if all(parts) else ()


def _steps(convolution: Any) -> dict[str, int]:
    """Padding, strides and steps between places of an operator."""
    names = ("padding", "strideH", "strideW", "dilationHFactor", "dilationWFactor")
    return {name: getattr(convolution.builtinOptions, name) for name in names}
