"""The layers of a .tflite file that is itself the model, and where they stand in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from edgepack.backends.tflite.decoded import decode, operator_name, readers_of, value_of
from edgepack.backends.tflite.file import objects, packed, text
from edgepack.backends.tflite.kinds.recurrent import FUSED, GATES, of_gates
from edgepack.backends.tflite.matching import Fold
from edgepack.backends.tflite.narrow import has_halves, is_half
from edgepack.backends.tflite.read import TfliteLinear, linear_ops_of, read_content
from edgepack.backends.tflite.tidy import number_names
from edgepack.errors import ModelError
from edgepack.model.kinds.conv import ConvGeometry, Patches, conv_layer
from edgepack.model.kinds.kind import EVERY_POSITION, Rows
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.kinds.recurrent import RecurrentGeometry, recurrent_layer
from edgepack.model.layer import Geometry, Layer, distinct
from edgepack.model.types import Array

_FLOAT, _INT8, _UINT8, _INT16 = 0, 9, 3, 7  # schema.fbs, TensorType
_INTEGERS = (_INT8, _UINT8, _INT16)
_MATRIX_FIRST = ("FULLY_CONNECTED", "CONV_2D")
_EDITED = "the model in float32"
"""What a file that was never on disk is called in messages."""
_DIVERGED = "a model whose training diverged cannot be compressed"
_PADDING = ("SAME_UPPER", "VALID")  # schema.fbs, Padding


@dataclass(frozen=True)
class Tap:
    """Where the vectors are seen that an operator multiplies.

    Attributes:
        tensor: number of its input.
        way: how the vectors are taken from that.
        flat: of a fully connected operator, which may take its vectors from several axes, their length; else 0.
    """

    tensor: int
    way: Rows
    flat: int

    def features_last(self, activations: Array) -> Array:
        """The operator's input as `way` takes it."""
        return activations.reshape(-1, self.flat) if self.flat else activations


@dataclass(frozen=True, eq=False)
class Site:
    """An operator that is a layer.

    Attributes:
        op: the operator.
        weights: numbers of the tensors that hold its weight.
        kernel: (out, *sizes, in) float32, or (out, in).
        bias: (out,) float32, None for none.
        geometry: of a convolution or of recurrent cells; None of a linear layer.
        integers: whether it computes in integers.
        in_int8: whether these are int8 throughout, so that thin operators can stand in its place.
    """

    op: TfliteLinear
    weights: tuple[int, ...]
    kernel: Array
    bias: Array | None
    geometry: Geometry | None
    integers: bool
    in_int8: bool

    @property
    def tap(self) -> Tap:
        """Where its vectors are seen."""
        flat = self.kernel.shape[-1] if self.op.op == "FULLY_CONNECTED" else 0
        way = Patches(self.geometry) if isinstance(self.geometry, ConvGeometry) else EVERY_POSITION
        return Tap(self.op.input_index, way, flat)

    def layer(self, name: str, bias: Array | None, uses: int) -> Layer:
        """It as a layer."""
        match self.geometry:
            case ConvGeometry() as geometry:
                channels_first = np.ascontiguousarray(np.moveaxis(self.kernel, -1, 1))
                return conv_layer(name, channels_first, bias, geometry, uses)
            case RecurrentGeometry() as cells:
                return recurrent_layer(name, self.kernel, bias, cells, uses)
        matrix = self.kernel.reshape(len(self.kernel), -1)
        return linear_layer(name, matrix, bias, "Conv" if self.op.op == "CONV_2D" else "Gemm", uses)


@dataclass(frozen=True, eq=False)
class TfliteModel:
    """A TFLite file in memory.

    Attributes:
        content: the file, its weights in float32 as far as it computes in floats.
        source: the file as it was given.
        layers: of its first graph, in order of execution.
        sites: the operators of each layer, by its name.
        has_halves: whether the file as it was given decodes float16 weights.
    """

    content: bytes
    source: bytes
    layers: tuple[Layer, ...]
    sites: Mapping[str, tuple[Site, ...]]
    has_halves: bool = False

    @property
    def in_integers(self) -> bool:
        """Whether it has layers, and they compute in integers."""
        return any(site.integers for own in self.sites.values() for site in own)

    @cached_property
    def folds(self) -> Mapping[str, tuple[Fold, ...]]:
        """The operators of each layer that computes in floats or in int8, by its name, as what may be replaced."""
        return {
            name: tuple(map(_fold, own))
            for name, own in self.sites.items()
            if all(site.in_int8 or not site.integers for site in own)
        }


def _fold(site: Site) -> Fold:
    rows, columns = (np.ones(side) for side in site.op.weight.shape)
    op = replace(site.op, bias=site.bias) if site.integers else site.op
    return Fold(op, rows, columns, rows, None, site.integers)


def tflite_model(content: bytes, name: str) -> TfliteModel:
    """The model in the bytes of a file; the names of its inner tensors become numbers.

    Args:
        content: of the file.
        name: of the file, for messages.

    Raises:
        ModelError: a damaged file, or weights that are no numbers.
    """
    with np.errstate(all="ignore"):
        model = read_content(content, name, lambda _: _in_floats(content))
    for layer in model.layers:
        if not all(np.isfinite(array).all() for array in (layer.weight, layer.bias) if array is not None):
            raise ModelError(f"{name}: {layer.name!r} holds NaN or infinity, expected finite numbers", hint=_DIVERGED)
    return model


def _in_floats(content: bytes) -> TfliteModel:
    model = objects(content)
    halves = has_halves(model)
    decode(model)
    names = [text(tensor.name) for tensor in model.subgraphs[0].tensors]
    number_names(model)
    made = packed(model)
    found = _of_one_arithmetic(list(_sites(model, made)))
    opened = _found(found, made, content, lambda site: names[site.weights[0]].split(";")[0])
    return _stored_in_16_bits(opened) if halves else opened


def _stored_in_16_bits(model: TfliteModel) -> TfliteModel:
    """With what layers take that are left as they are."""
    layers = (replace(layer, stored_bits=16) if is_half(layer.weight) else layer for layer in model.layers)
    return replace(model, layers=tuple(layers), has_halves=True)


def edited(content: bytes, names: Mapping[str, str]) -> TfliteModel:
    """The model in the content of another, edited: its tensors keep their names.

    Args:
        content: of the file.
        names: of layers, by what an operator of theirs writes; all others are called after that.
    """
    model = objects(content)
    found = _sites(model, content)
    return _found(found, content, content, lambda site: names.get(site.op.output, site.op.output))


def _found(found: Iterable[Site], content: bytes, source: bytes, name: Callable[[Site], str]) -> TfliteModel:
    """The layers of a model.

    Args:
        found: its operators that are layers.
        content: the model, packed.
        source: see `TfliteModel`.
        name: of the layer that an operator is the first place of, as far as no other has it.
    """
    groups: dict[tuple[tuple[int, ...], object, str], list[Site]] = {}
    for site in found:
        groups.setdefault((site.weights, site.geometry, site.op.op), []).append(site)
    own = distinct(name(group[0]) for group in groups.values())
    sites = dict(zip(own, map(tuple, groups.values()), strict=True))
    weights = Counter(own for own, *_ in groups)
    layers = tuple(
        replace(group[0].layer(layer, _common(group), len(group)), shared=weights[group[0].weights] > 1)
        for layer, group in sites.items()
    )
    return TfliteModel(content, source, layers, sites)


def _of_one_arithmetic(sites: Sequence[Site]) -> Sequence[Site]:
    """Those that compute in floats; where none does, those in integers."""
    floats = [site for site in sites if not site.integers]
    return floats or sites


def _common(sites: Sequence[Site]) -> Array | None:
    """The bias that all places of a weight have; where they differ it is none of the layer's."""
    first, *others = [site.bias for site in sites]
    if first is None:
        return None
    same = all(other is not None and np.array_equal(first, other) for other in others)
    return first if same else None


def _sites(model: Any, content: bytes) -> Iterator[Site]:
    """Operators of the first graph that multiply by a constant matrix, with a constant bias or none.

    Args:
        model: the schema's ModelT.
        content: the same, packed.
    """
    if model.signatureDefs and model.signatureDefs[0].subgraphIndex != 0:
        return  # what answers is not the graph that can be watched
    graph = model.subgraphs[0]
    writers = {int(output): each for each in graph.operators for output in each.outputs}
    for op in read_content(content, _EDITED, linear_ops_of):
        find = _cells if op.op in FUSED else _site if op.op in _MATRIX_FIRST else None
        if op.subgraph == 0 and find is not None and (site := find(model, graph, writers, op)) is not None:
            yield site


def _cells(model: Any, graph: Any, writers: Mapping[int, Any], op: TfliteLinear) -> Site | None:
    """An LSTM in floats: its gates, and nothing beside them."""
    operator, fused = writers[op.output_index], FUSED[op.op]
    weights, states = ([int(operator.inputs[at]) for at in fused.gates(start)] for start in (0, GATES))
    are_floats = all(graph.tensors[tensor].type == _FLOAT for tensor in (operator.inputs[0], *weights, *states))
    if not fused.is_plain(operator.inputs) or not are_floats or op.bias is None:
        return None
    if _is_used_otherwise(model, graph, operator, dict(zip(weights, fused.gates(0), strict=True))):
        return None
    units = len(op.weight) // (fused.directions * GATES)
    kernel, bias = of_gates(op.weight, units), of_gates(op.bias, units)
    return Site(op, tuple(weights), kernel, bias, RecurrentGeometry("LSTM", units), integers=False, in_int8=False)


def _site(model: Any, graph: Any, writers: Mapping[int, Any], op: TfliteLinear) -> Site | None:
    operator = writers[op.output_index]
    x, w, y = (graph.tensors[index] for index in (*operator.inputs[:2], operator.outputs[0]))
    kernel = value_of(model, w)
    integers, in_int8 = x.type in _INTEGERS, w.type == _INT8 and all(map(_is_int8, (x, y)))
    if kernel is None or not (integers or x.type == w.type == _FLOAT):
        return None
    bias, known = None, True
    if len(operator.inputs) > 2 and operator.inputs[2] >= 0:
        held = graph.tensors[operator.inputs[2]]
        bias = value_of(model, held)
        known = bias is not None and (not integers or _has_grid(held))
    options = operator.builtinOptions
    if not known or options is None or _is_used_otherwise(model, graph, operator, {int(operator.inputs[1]): 1}):
        return None
    if op.op == "FULLY_CONNECTED":
        plain = not options.weightsFormat and w.shape[-1] > 0
        return Site(op, (int(operator.inputs[1]),), kernel, bias, None, integers, in_int8) if plain else None
    if x.shape is None or len(x.shape) != 4 or x.shape[-1] != kernel.shape[-1]:
        return None  # in groups, which see a part of the channels each
    geometry = _geometry(kernel, options)
    return Site(op, (int(operator.inputs[1]),), kernel, bias, geometry, integers, in_int8)


def _has_grid(tensor: Any) -> bool:
    grid = tensor.quantization
    return grid is not None and grid.scale is not None and len(grid.scale) > 0


def _is_int8(tensor: Any) -> bool:
    """Whether a tensor is int8 on one grid."""
    if tensor.type != _INT8 or not _has_grid(tensor) or len(tensor.quantization.scale) > 1:
        return False
    return 0 < float(tensor.quantization.scale[0]) < np.inf


def _is_used_otherwise(model: Any, graph: Any, operator: Any, weights: Mapping[int, int]) -> bool:
    """Whether a weight is an output, or the input of an operator of another kind: then its bytes stay anyway.

    Args:
        weights: as which of the operator's inputs each of its tensors is used.
    """
    name = operator_name(model, operator)
    others = (
        operator_name(model, each) != name or place != own
        for weight, own in weights.items()
        for each, place in readers_of(graph, weight)
    )
    return any(others) or any(weight in graph.outputs for weight in weights)


def _geometry(kernel: Array, options: Any) -> ConvGeometry | None:
    """How a convolution goes over its input; None of one that takes every position by itself."""
    sizes = tuple(kernel.shape[1:-1])
    strides = int(options.strideH), int(options.strideW)
    if sizes == (1, 1) and strides == (1, 1):
        return None
    steps = int(options.dilationHFactor), int(options.dilationWFactor)
    return ConvGeometry("Conv", sizes, strides, steps, (0,) * 4, _PADDING[options.padding])


def depths(model: TfliteModel, names: Collection[str]) -> dict[str, int]:
    """By layer name: the most of the named layers that lie on a path from the graph's inputs to this one.

    Layers of one depth do not feed each other. A layer that is used in several places counts where it lies deepest.
    """
    graph = objects(model.content).subgraphs[0]
    layer_of = {site.op.output_index: name for name, own in model.sites.items() if name in names for site in own}
    found: dict[str, int] = {}
    behind: dict[int, int] = {}
    for operator in graph.operators:
        depth = max((behind.get(int(index), 0) for index in operator.inputs), default=0)
        if (name := layer_of.get(int(operator.outputs[0])) if len(operator.outputs) else None) is not None:
            found[name] = max(found.get(name, 0), depth)
            depth += 1
        behind |= {int(index): depth for index in operator.outputs}
    return found


def vectors(model: TfliteModel) -> list[Array]:
    """The biases of the layers, as float64: nothing is folded into them."""
    biases = (site.bias for own in model.sites.values() for site in own)
    return [bias.astype(np.float64) for bias in biases if bias is not None]
