"""Finds every linear layer of an ONNX model, wherever it stands and however its weight is reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.model.kinds.linear import linear_layer
from edgepack.model.layer import Layer
from edgepack.onnxgraph.constants import Key, Reader
from edgepack.onnxgraph.inline import inline_weight_functions
from edgepack.onnxgraph.linear import Kind, Use, is_unsure, match
from edgepack.onnxgraph.names import is_meaningful
from edgepack.onnxgraph.ranks import known_rank, note_ranks

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, eq=False)
class Placement:
    """One node, or node and Add, that applies a layer.

    Attributes:
        node: the Gemm, MatMul or Conv.
        kind: "rows": features on the last axis, y = x Wᵀ + b; "columns": Y = W X, features on the last axis but one;
            "conv": 1×1 convolution, features on axis 1.
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
    """A linear layer and all the places that apply it.

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


def find_sites(model: ir.Model) -> tuple[Site, ...]:
    """Every linear layer of the model in graph order, the main graph before the functions.

    A weight that several nodes use is one site with several placements; where they use it in different orientations,
    each orientation is a site. Biases that differ between the placements of one weight stay outside of it. A node
    in a custom domain is left alone, so is a weight behind DequantizeLinear or a cast from an integer. An initializer
    that is also a graph input counts as a constant; once its weight is factored the input is gone as well. Functions
    that receive a weight as an argument are inlined in `model` first, as the layer is not visible inside them.
    """
    inline_weight_functions(model)
    reader = Reader()
    found = _uses(model, reader)
    if any(is_unsure(use, reader) for use in found):
        note_ranks(model)
        found = _uses(model, reader)
    groups: dict[Key, list[Use]] = {}
    for use in found:
        groups.setdefault(use.key, []).append(use)
    uses = list(groups.values())
    return tuple(_site(name, group) for name, group in zip(_names(uses), uses, strict=True))


def _uses(model: ir.Model, reader: Reader) -> list[Use]:
    return [use for node in _all_nodes(model) if (use := match(node, reader)) is not None]


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _names(groups: list[list[Use]]) -> list[str]:
    """The weight's name if it tells something and is one layer's alone, else the node's, else the output's."""
    roots = Counter(group[0].root.name for group in groups)
    nodes = Counter(group[0].node.name for group in groups)
    taken: set[str] = set()
    names = []
    for first in (group[0] for group in groups):
        root, node, y = first.root.name, first.node.name, first.node.outputs[0].name
        if root and roots[root] == 1 and is_meaningful(root):
            base = root
        else:
            base = node if node and nodes[node] == 1 else y or root or first.node.op_type
        name, number = base, 2
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        taken.add(name)
        names.append(name)
    return names


def _site(name: str, group: list[Use]) -> Site:
    import onnx_ir as ir

    first = group[0]
    shared = all(_same_bias(first, use) for use in group)
    weight, bias = np.asarray(first.weight, np.float32), first.bias if shared else None
    layer = linear_layer(name, weight, bias, first.node.op_type, len(group))
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
