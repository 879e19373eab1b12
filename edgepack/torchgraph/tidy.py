"""Take out of a flat graph what a framework on top of torch leaves in it: casts that change nothing, constants that are
computed anew in every run, biases that are added apart, and transpositions that undo one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.torchgraph.fold import fold_biases, register
from edgepack.torchgraph.linears import Constants, attribute

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

POINTWISE = frozenset(
    (
        *("relu", "relu6", "sigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid", "leaky_relu", "elu", "silu"),
        *("gelu", "softplus", "clamp", "clip", "abs", "exp", "neg", "sqrt", "rsqrt", "square"),
        *("add", "sub", "subtract", "mul", "multiply", "div", "divide", "maximum", "minimum"),
    )
)
"""Operators that do the same at every position, whatever the order of the axes."""
_MEANS = frozenset({"mean", "amax"})


def tidy(module: GraphModule) -> None:
    """Change the graph in place; it computes the same."""
    for step in (_drop_idle, _store_constants, fold_biases, _sink_transpositions):
        step(module)
        module.graph.eliminate_dead_code()
    module.recompile()


def _drop_idle(module: GraphModule) -> None:
    """Checks of types, and casts to the type that a value has."""
    import torch

    aten = torch.ops.aten
    for node in list(module.graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
        elif node.target in (aten.to.dtype_layout, aten.to.dtype, aten.to.device, aten.contiguous.default):
            given = node.args[0]
            if given.meta["val"].dtype == node.meta["val"].dtype:
                node.replace_all_uses_with(given)
                module.graph.erase_node(node)


def _store_constants(module: GraphModule) -> None:
    """What is computed of parameters alone becomes a parameter, by the name of the first of them; what is larger than
    that one stays computed."""
    constants = Constants(module)
    ends: list[tuple[Node, Any]] = []
    for node in module.graph.nodes:
        value = constants.tensor(node) if node.op == "call_function" else None
        if value is None or all(constants.tensor(user) is not None for user in node.users):
            continue
        if value.numel() <= attribute(module, constants.name(node)).numel():  # type: ignore[attr-defined]
            ends.append((node, value.contiguous()))
    for node, value in ends:
        with module.graph.inserting_before(node):
            stored = register(module, constants.name(node), value)
        stored.meta.update(node.meta)
        node.replace_all_uses_with(stored)
        module.graph.erase_node(node)


def _sink_transpositions(module: GraphModule) -> None:
    """Transpose behind what does the same at every position instead of before it, so that transpositions meet; two that
    meet are one, or none."""
    for node in list(module.graph.nodes):
        if (order := order_of(node)) is not None:
            while (before := order_of(node.args[0])) is not None:
                order = [before[axis] for axis in order]
                node.args = (node.args[0].args[0], order)
            if order == sorted(order):
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)
        elif name_of(node) in POINTWISE:
            _sink(module, node)
        elif name_of(node) == "pad" and (before := order_of(node.args[0])) is not None and len(node.args) == 2:
            node.args = (node.args[0], _inner_pads(node.args[1], before))
            _sink(module, node)
        elif name_of(node) in _MEANS and (before := order_of(node.args[0])) is not None and node.args[1]:
            _sink_mean(module, node, before)


def _inner_pads(pads: list[int], order: list[int]) -> list[int]:
    """Zeros before and behind each axis, from the last axis on, for a value before its transposition."""
    both = [pads[at : at + 2] for at in range(0, len(pads), 2)] + [[0, 0]] * (len(order) - len(pads) // 2)
    return [zeros for axis in reversed(range(len(order))) for zeros in both[::-1][order.index(axis)]]


def _sink_mean(module: GraphModule, node: Node, order: list[int]) -> None:
    """Through a mean or maximum over some axes, whether these stay or go."""
    given, axes, *rest = node.args
    inner = sorted(order[axis] for axis in axes)
    if rest[:1] == [True]:
        node.args = (given, inner, *rest)
        _sink(module, node)
    elif (left := [axis for axis in order if axis not in inner]) == sorted(left):
        node.args = (given.args[0], inner, *rest)


def _sink(module: GraphModule, node: Node) -> None:
    """Through an operator all of whose arguments are transposed alike."""
    import torch
    from torch.fx.node import map_arg

    orders = [order_of(given) for given in node.all_input_nodes]
    order, rank = next(iter(orders), None), node.meta["val"].dim()
    if order is None or len(order) != rank or any(other != order for other in orders):
        return
    value = node.meta["val"]
    with module.graph.inserting_after(node):
        behind = module.graph.call_function(torch.ops.aten.permute.default, (node, order))
    behind.meta["val"] = value
    node.replace_all_uses_with(behind, delete_user_cb=lambda user: user is not behind)
    node.args = map_arg(node.args, lambda given: given.args[0])
    node.kwargs = map_arg(node.kwargs, lambda given: given.args[0])
    node.meta["val"] = value.permute([order.index(axis) for axis in range(rank)])


def order_of(node: object) -> list[int] | None:
    """Of a transposition; None for anything else."""
    import torch
    from torch.fx import Node

    if not isinstance(node, Node) or node.target is not torch.ops.aten.permute.default:
        return None
    return [int(axis) % len(node.args[1]) for axis in node.args[1]]


def name_of(node: Node) -> str | None:
    """Of an operator of aten, without its overload."""
    import torch

    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    name: str = target._schema.name.removeprefix("aten::")
    return name
