"""Recurrent layers of an fx graph: what LSTM, GRU and plain recurrent cells multiply their inputs by."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.model.kinds.kind import EVERY_POSITION, Rows
from edgepack.model.kinds.recurrent import RecurrentGeometry
from edgepack.model.types import Array
from edgepack.torchgraph.linears import Constants

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule, Node

ORDER: Mapping[str, tuple[int, ...]] = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Of torch's gates, where they stand in a layer: as in ONNX."""
WEIGHTS, HAS_BIASES, LAYERS, TRAINS, BOTH = 2, 3, 4, 6, 7
"""Arguments of all these nodes."""


@dataclass(frozen=True)
class TorchRecurrent:
    """One node of recurrent cells in a single layer with constant weights for their inputs.

    Attributes:
        node: the fx node.
        name: the parameter that the first of its weights comes from ("lstm.weight_ih_l0").
        weight: (directions · gates · units, in) float32, its gates in ONNX' order.
        bias: (directions · gates · units,) float32, what is added to that product, or None.
        geometry: of the layer.
    """

    node: Node
    name: str
    weight: Array
    bias: Array | None
    geometry: RecurrentGeometry
    kind = "recurrent"
    axis = -1
    bias_input = None
    kernel = ()

    @property
    def input(self) -> Node:
        """The node that gives x."""
        x: Node = self.node.args[0]
        return x

    @property
    def rows(self) -> Rows:
        """How the vectors are taken from its input."""
        return EVERY_POSITION

    def of_state(self, direction: int) -> list[Node]:
        """What a direction has behind the weights of its inputs: those of the state, and two biases or none."""
        each = 4 if self.node.args[HAS_BIASES] else 2
        weights: list[Node] = list(self.node.args[WEIGHTS][direction * each : (direction + 1) * each])
        return weights[1:]

    def by_directions(self, rows: Array) -> tuple[Array, ...]:
        """Rows (directions · gates · units, …) of the layer as the operator takes them: a block for each direction."""
        order = ORDER[self.geometry.operator]
        gates = rows.reshape(-1, len(order), self.geometry.units, *rows.shape[1:])[:, order]
        return tuple(np.ascontiguousarray(way.reshape(-1, *rows.shape[1:])) for way in gates)


def operator_of(node: Node) -> str | None:
    """Which of ONNX' recurrent operators a node is; None for others."""
    import torch

    aten = torch.ops.aten
    names = {
        aten.lstm.input: "LSTM",
        aten.gru.input: "GRU",
        aten.rnn_tanh.input: "RNN",
        aten.rnn_relu.input: "RNN",
    }
    return names.get(node.target)


def one_node_a_layer(module: GraphModule) -> None:
    """Let every node of several layers, one on top of the other, be as many nodes, in place."""
    for node in list(module.graph.nodes):
        if operator_of(node) is not None and node.args[LAYERS] > 1 and _is_plain(node):
            _part(module, node)
    module.recompile()


def _is_plain(node: Node) -> bool:
    """Whether each layer has all its weights, without a projection, and nothing is dropped between them."""
    each = 4 if node.args[HAS_BIASES] else 2
    expected = each * node.args[LAYERS] * (2 if node.args[BOTH] else 1)
    return not node.args[TRAINS] and not node.kwargs and len(node.args[WEIGHTS]) == expected


def _part(module: GraphModule, node: Node) -> None:
    import torch

    aten, graph = torch.ops.aten, module.graph
    x, states, weights, has_biases, count, *rest = node.args
    several = isinstance(states, Sequence)
    y, *described = node.meta["val"]
    each, ways = len(weights) // count, len(described[0]) // count
    ends: list[list[Node]] = []

    def call(target: object, args: tuple[object, ...], value: object) -> Node:
        made: Node = graph.call_function(target, args)
        made.meta.update({key: note for key, note in node.meta.items() if key in ("nn_module_stack", "stack_trace")})
        made.meta["val"] = value
        return made

    with graph.inserting_before(node):
        for layer in range(count):
            own = [state.new_empty((ways, *state.shape[1:])) for state in described]
            begin, end = layer * ways, (layer + 1) * ways
            first = [
                call(aten.slice.Tensor, (state, 0, begin, end), value)
                for state, value in zip(states if several else [states], own, strict=True)
            ]
            of_layer = weights[layer * each : (layer + 1) * each]
            args = (x, first if several else first[0], of_layer, has_biases, 1, *rest)
            cells = call(node.target, args, (y, *own))
            x, *last = (call(operator.getitem, (cells, at), value) for at, value in enumerate((y, *own)))
            ends.append(last)
        stacked = zip(*ends, strict=True)
        results = [
            x,
            *(call(aten.cat.default, (list(parts), 0), value) for parts, value in zip(stacked, described, strict=True)),
        ]
    for result in list(node.users):
        result.replace_all_uses_with(results[result.args[1]])
        graph.erase_node(result)
    graph.erase_node(node)
    graph.eliminate_dead_code()


def find_recurrent(module: GraphModule) -> list[TorchRecurrent]:
    """The nodes of recurrent cells in a single layer, in order of execution."""
    constants = Constants(module)
    found = (_recurrent_at(node, constants) for node in module.graph.nodes)
    return [site for site in found if site is not None]


def _recurrent_at(node: Node, constants: Constants) -> TorchRecurrent | None:
    name = operator_of(node)
    if name is None or node.args[LAYERS] != 1 or not _is_plain(node) or constants.tensor(node.args[0]) is not None:
        return None
    has_biases = node.args[HAS_BIASES]
    each = 4 if has_biases else 2
    values = [constants.tensor(one) for one in node.args[WEIGHTS]]
    known = [value for value in values if value is not None and value.is_floating_point()]
    if len(known) < len(values):
        return None
    units = int(known[1].shape[1])
    return TorchRecurrent(
        node=node,
        name=constants.name(node.args[WEIGHTS][0]),
        weight=_layered(name, known[::each]),
        bias=_layered(name, known[2::each]) if has_biases else None,
        geometry=RecurrentGeometry(name, units),
    )


def _layered(name: str, directions: Sequence[Tensor]) -> Array:
    """Weights or biases of the inputs of all directions, one above the other, gates in ONNX' order."""
    order = ORDER[name]
    blocks = [way.float().numpy().reshape(len(order), -1, *way.shape[1:])[np.argsort(order)] for way in directions]
    return np.ascontiguousarray(np.concatenate([block.reshape(-1, *block.shape[2:]) for block in blocks]), np.float32)
