"""Surgery on factored graphs: shared parameters, further outputs, fake quantization."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgepack.distill.fake import fake_activation, fake_weight

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node
    from torch.nn import Parameter

_THIN = re.compile(r"edgepack_(\d+)_(A|B|bias)(_\d+)?")
"""What `with_factors` calls the parameters of the layer of that index."""


def thin_index(name: str) -> int | None:
    """The index of the factored layer that a parameter belongs to, None for any other parameter."""
    found = _THIN.fullmatch(name)
    return None if found is None else int(found.group(1))


def adopt(module: GraphModule, shared: dict[str, Parameter], *, others: bool) -> None:
    """Put the shared parameters into a graph, and those that are new into `shared`.

    The graph's own parameters are those of the user's model: they are never changed, nor is what they require.

    Args:
        module: as `with_factors` returned it.
        shared: by name; filled by the first call, whose graph has all layers thin.
        others: whether vectors outside of the thin layers are to be trained.
    """
    import torch

    first = not shared
    named = dict(module.named_parameters(remove_duplicate=False))
    for name, own in named.items():
        thin = thin_index(name) is not None
        if first and (thin or (others and own.dim() == 1 and own.dtype == torch.float32)):
            # Places of one layer with biases of their own cannot learn one change: such biases stay.
            trains = not thin or f"{name.partition('_bias')[0]}_bias_1" not in named or "_bias" not in name
            shared[name] = torch.nn.Parameter(own.detach().clone(), requires_grad=trains)
        kept = shared.get(name)
        _assign(module, name, torch.nn.Parameter(own.detach(), requires_grad=False) if kept is None else kept)


def _assign(module: GraphModule, path: str, parameter: Parameter) -> None:
    owner, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(owner), leaf, parameter)


def thin_outputs(module: GraphModule, count: int) -> list[list[Node]]:
    """For each of the first `count` factored layers the nodes that stand for its places, in order of execution."""
    found: list[list[Node]] = [[] for _ in range(count)]
    for node in module.graph.nodes:
        names = (
            [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"] if node.op == "call_function" else []
        )
        for name in names:
            match = _THIN.fullmatch(name)
            if match is not None and match.group(2) == "A":
                found[int(match.group(1))].append(_whole(node))
    return found


def _whole(node: Node) -> Node:
    """The node that took the place of the dense one: the product itself, or a bias added to it."""
    while "val" not in node.meta:  # which `with_factors` puts on the last of them only
        node = next(iter(node.users))
    return node


def returning(module: GraphModule, watched: Sequence[Node]) -> GraphModule:
    """A copy that returns the first output, further float outputs, and the watched nodes' values; parameters are
    shared."""
    import torch

    twin = torch.fx.GraphModule(module, copy.deepcopy(module.graph), class_name="Watched")
    by_name = {node.name: node for node in twin.graph.nodes}
    output = next(node for node in twin.graph.nodes if node.op == "output")
    first, *more = output.args[0]
    floats = [node for node in more if node.meta["val"].is_floating_point()]
    output.args = ((first, *floats, *[by_name[node.name] for node in watched]),)
    for node in list(twin.graph.nodes):
        # Checks of what is known already, for which there are no rules to run them on several samples at once.
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            twin.graph.erase_node(node)
    twin.graph.eliminate_dead_code()
    twin.recompile()
    return twin


def with_fake_int8(module: GraphModule, largest: int) -> GraphModule:
    """A copy in which both halves of every thin layer round their weight and their input to int8.

    Parameters are shared; `largest` is the largest weight code.
    """
    import torch

    twin = torch.fx.GraphModule(module, copy.deepcopy(module.graph), class_name="Int8")
    for node in list(twin.graph.nodes):
        if node.op != "call_function":
            continue
        weights = [n for n in node.all_input_nodes if n.op == "get_attr" and _is_weight(str(n.target))]
        if weights:
            _round_inputs(twin, node, weights[0], largest)
    twin.graph.lint()
    twin.recompile()
    return twin


def _round_inputs(module: GraphModule, node: Node, weight: Node, largest: int) -> None:
    """Round both operands of a product: one of the first two arguments is the weight, the other its input."""
    operands: list[Any] = list(node.args)
    with module.graph.inserting_before(node):
        for position in (0, 1):
            value = operands[position]
            rounder, more = (fake_weight, (largest,)) if value is weight else (fake_activation, ())
            operands[position] = module.graph.call_function(rounder, (value, *more))
    node.args = tuple(operands)


def _is_weight(name: str) -> bool:
    match = _THIN.fullmatch(name)
    return match is not None and match.group(2) != "bias"
