"""Finds every layer of an ONNX model that multiplies vectors, wherever it stands and however its weight is reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.backends.onnx.constants import FLOATS, VIEWS, Key, Reader, known_rank, note_ranks, root_of
from edgepack.backends.onnx.kinds import KINDS, OPERATORS
from edgepack.backends.onnx.kinds.embedding import is_lookup
from edgepack.backends.onnx.matching import Kind, Use, is_unsure
from edgepack.backends.onnx.values import is_meaningful
from edgepack.model.layer import Layer, distinct
from edgepack.model.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepack.backends.onnx.rewrite import Builder

    FunctionId = tuple[str, str, str]


@dataclass(frozen=True, eq=False)
class Placement:
    """One node, or node and Add, that applies a layer.

    Attributes:
        node: the Gemm, MatMul or Conv.
        kind: "rows": features on the last axis, y = x Wᵀ + b; "columns": Y = W X, features on the last axis but one;
            "conv": convolution, features on axis 1.
        x_index: which of the node's inputs is `x`.
        swapped: Gemm takes `x` with its two axes exchanged; a rewrite does that before it builds.
        add: the Add node of the bias, if it is a node of its own.
        extra_index: the input of the node that a rewrite adds afterwards, as it is not the layer's bias; None if none.
        scale: the factor on that input.
        spatial: number of spatial axes of a convolution, else 0.
    """

    node: ir.Node
    kind: Kind
    x_index: int
    swapped: bool
    add: ir.Node | None
    extra_index: int | None
    scale: float
    spatial: int

    @property
    def graph(self) -> ir.Graph:
        """The graph, subgraph or function body that the node stands in."""
        graph = self.node.graph
        if graph is None:
            raise ValueError(f"the node {self.node.name!r} was removed by an earlier rewrite")
        return graph

    @property
    def x(self) -> ir.Value:
        """The layer's input, as it is now: an earlier rewrite may have replaced its producer."""
        value = self.node.inputs[self.x_index]
        if value is None:
            raise ValueError(f"the node {self.node.name!r} was removed by an earlier rewrite")
        return value

    @property
    def y(self) -> ir.Value:
        """The layer's output, after the bias."""
        return (self.add or self.node).outputs[0]

    @property
    def extra(self) -> ir.Value | None:
        """What a rewrite adds after the layer, times `scale`."""
        return None if self.extra_index is None else self.node.inputs[self.extra_index]

    @property
    def absorbed(self) -> tuple[ir.Node, ...]:
        """The nodes that a rewrite removes."""
        return (self.node,) if self.add is None else (self.node, self.add)

    @property
    def rank(self) -> int | None:
        """Rank of `x` where it is known."""
        fixed = {"Gemm": 2, "Conv": 2 + self.spatial}
        return fixed.get(self.node.op_type) or known_rank(self.x)


@dataclass(frozen=True, eq=False)
class Site:
    """A layer and all the places that apply it.

    Attributes:
        layer: name, weight (a view of the file's array where it is float32 already) and bias.
        placements: in graph order.
        dtype: the type in which the nodes compute, and so that of constants put beside `x`.
        stored_dtype: the type in which the file stores the weight; another one than `dtype` only behind a Cast.
        root: the initializer or Constant output that holds the weight.
    """

    layer: Layer
    placements: tuple[Placement, ...]
    dtype: np.dtype[Any]
    stored_dtype: np.dtype[Any]
    root: ir.Value

    @property
    def spatial(self) -> bool:
        """Whether it is a convolution."""
        return any(placement.spatial for placement in self.placements)

    @property
    def unknown_axes(self) -> bool:
        """Whether it stands in a product W X with X of unknown rank, whose two last axes cannot be exchanged."""
        return any(placement.kind == "columns" and placement.rank is None for placement in self.placements)

    def put(self, builder: Builder, array: Array, suffix: str) -> ir.Value:
        """A constant `<layer>.<suffix>`, stored and computed with as the layer's weight was."""
        import onnx_ir as ir

        stored = builder.constant(np.ascontiguousarray(array, self.stored_dtype), f"{self.layer.name}.{suffix}")
        if self.stored_dtype == self.dtype:
            return stored
        return builder.op("Cast", [stored], {"to": int(ir.DataType.from_numpy(self.dtype))})


def find_sites(model: ir.Model) -> tuple[Site, ...]:
    """Every layer of the model that multiplies vectors in graph order, the main graph before the functions.

    A weight that several nodes use is one site with several placements; where they use it in different orientations,
    each orientation is a site, and so is each way in which convolutions go over their input. Biases that differ between
    the placements of one weight stay outside of it. A node in a custom domain is left alone, so is a weight behind
    DequantizeLinear or a cast from an integer. An initializer that is also a graph input counts as a constant; once its
    weight is factored the input is gone as well. Functions that receive a weight as an argument are inlined in `model`
    first, as the layer is not visible inside them.
    """
    inline_weight_functions(model)
    reader = Reader()
    found = _uses(model, reader)
    if any(is_unsure(use, reader) for _, use in found):
        note_ranks(model)
        found = _uses(model, reader)
    groups: dict[Key, list[Use]] = {}
    for kind, use in found:
        groups.setdefault((kind, *use.key), []).append(use)
    names = _names(list(groups.values()))
    sites = [_site(name, str(key[0]), group) for name, (key, group) in zip(names, groups.items(), strict=True)]
    kernels = Counter(id(site.root) for site in sites if site.spatial)
    return tuple(
        replace(site, layer=replace(site.layer, shared=True)) if kernels[id(site.root)] > 1 else site for site in sites
    )


def _uses(model: ir.Model, reader: Reader) -> list[tuple[str, Use]]:
    """Every node that is a layer, with the kind of that."""
    return [
        (name, use)
        for node in _all_nodes(model)
        for name, kind in KINDS.items()
        if (use := kind.match(node, reader)) is not None
    ]


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _names(groups: list[list[Use]]) -> list[str]:
    """The weight's name if it tells something and is one layer's alone, else the node's, else the output's."""
    roots = Counter(group[0].root.name for group in groups)
    nodes = Counter(group[0].node.name for group in groups)
    bases = []
    for first in (group[0] for group in groups):
        root, node, y = first.root.name, first.node.name, first.node.outputs[0].name
        if root and roots[root] == 1 and is_meaningful(root):
            bases.append(root)
        else:
            bases.append(node if node and nodes[node] == 1 else y or root or first.node.op_type)
    return distinct(bases)


def _site(name: str, kind: str, group: list[Use]) -> Site:
    import onnx_ir as ir

    first = group[0]
    shared = all(_same_bias(first, use) for use in group)
    layer = KINDS[kind].layer(name, first, first.bias if shared else None, len(group))
    layer = replace(layer, tied=any(is_lookup(node, index) for node, index in first.root.uses()))
    dtype = first.weight.dtype
    stored = first.root.dtype or ir.DataType.from_numpy(dtype)
    placements = tuple(_placement(use, keep_bias_apart=not shared) for use in group)
    return Site(layer, placements, dtype, stored.numpy(), first.root)


def _same_bias(a: Use, b: Use) -> bool:
    if a.bias is None or b.bias is None:
        return a.bias is b.bias
    return np.array_equal(a.bias, b.bias)


def _placement(use: Use, keep_bias_apart: bool) -> Placement:
    own_bias = use.bias is not None and use.add is None
    return Placement(
        node=use.node,
        kind=use.kind,
        x_index=use.x_index,
        swapped=use.swapped,
        add=None if keep_bias_apart else use.add,
        extra_index=2 if keep_bias_apart and own_bias else use.extra_index,
        scale=use.scale,
        spatial=use.spatial,
    )


def inline_weight_functions(model: ir.Model) -> None:
    """Inline, in place, the functions that are given a linear layer's weight as an argument.

    Inside such a function the weight is no constant, so the layer could not be told from a product of two variables.
    Functions that hold their weights themselves stay. A function that cannot be inlined stays too, its layers unseen.
    """
    for _ in range(len(model.functions)):  # inlining one caller can uncover the next
        wanted = _given_weights(model)
        if not wanted or not inline(model, lambda function: function.identifier() in wanted):  # noqa: B023
            return


def inline(model: ir.Model, criteria: Callable[[ir.Function], bool]) -> bool:
    """Inline, in place, the functions that meet `criteria`; False if the file's functions do not allow it."""
    import onnx_ir as ir
    from onnx_ir.passes.common import InlinePass

    try:
        InlinePass(criteria)(model)
    except (ir.passes.InvariantError, RuntimeError, ValueError):  # recursion, differing opsets, graph-valued attributes
        return False
    return True


def callers(model: ir.Model, inner: set[FunctionId]) -> set[FunctionId]:
    """`inner` and every function that reaches one of them through calls."""
    reached = set(inner)
    while True:
        more = {
            function.identifier()
            for function in model.functions.values()
            if any(node.op_identifier() in reached for node in function.all_nodes())
        }
        if more <= reached:
            return reached
        reached |= more


def _given_weights(model: ir.Model) -> set[FunctionId]:
    slots = _weight_slots(model)
    wanted: set[FunctionId] = set()
    graphs = [model.graph.all_nodes(), *(function.all_nodes() for function in model.functions.values())]
    for nodes in graphs:
        for node in nodes:
            name = node.op_identifier()
            if any(_is_matrix(node.inputs[i]) for i in slots.get(name, ()) if i < len(node.inputs)):
                wanted.add(name)
    return wanted


def _is_matrix(value: ir.Value | None) -> bool:
    root = None if value is None else root_of(value)
    if root is None:
        return False
    if root.const_value is None:  # a Constant node's: its size is seen only after inlining
        return True
    return len(root.const_value.shape) >= 2 and root.const_value.dtype.name in FLOATS


def _weight_slots(model: ir.Model) -> dict[FunctionId, set[int]]:
    """For each function the inputs that reach a linear node's weight, directly or through further calls."""
    slots: dict[FunctionId, set[int]] = {name: set() for name in model.functions}
    changed = True
    while changed:
        changed = False
        for name, function in model.functions.items():
            inputs = {id(value): index for index, value in enumerate(function.inputs)}
            for node in function.all_nodes():
                own = OPERATORS.get(node.op_type, ()) if node.domain == "" else ()
                for index in {*own, *slots.get(node.op_identifier(), ())}:
                    value = node.inputs[index] if index < len(node.inputs) else None
                    slot = inputs.get(id(_behind_views(value)))
                    if slot is not None and slot not in slots[name]:
                        slots[name].add(slot)
                        changed = True
    return slots


def _behind_views(value: ir.Value | None) -> ir.Value | None:
    while value is not None:
        node = value.producer()
        if node is None or node.domain != "" or node.op_type not in VIEWS or not node.inputs:
            return value
        value = node.inputs[0]
    return None
