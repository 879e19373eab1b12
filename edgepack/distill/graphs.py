"""Surgery on factored graphs: shared parameters, further outputs, fake quantization."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgepack.distill.fake import Rounding, fake_activation, fake_weight

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule, Node
    from torch.nn import Parameter

_THIN = re.compile(r"edgepack_(\d+)_(A|B|core|bias)(_\d+)?")
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
        for weight in node.all_input_nodes if node.op == "call_function" else ():
            index = thin_index(str(weight.target))
            if index is not None and _role(weight) == "A":
                found[index].append(_whole(node))
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


def with_rounding(module: GraphModule, roundings: Mapping[int, Rounding]) -> GraphModule:
    """A copy in which all products of thin layers round their weight and their input, as a file does.

    Parameters are shared.

    Args:
        module: as `returning` gives it.
        roundings: by the index of the thin layer; layers without one stay floats.
    """
    import torch

    twin = torch.fx.GraphModule(module, copy.deepcopy(module.graph), class_name="Rounded")
    runs = _counted(twin)
    for node in list(twin.graph.nodes):
        weight = None if node.op != "call_function" else next(filter(_role, node.all_input_nodes), None)
        index = None if weight is None else thin_index(str(weight.target))
        if weight is not None and index is not None and index in roundings:
            _round_inputs(node, weight, roundings[index], runs)
    twin.graph.eliminate_dead_code()
    twin.graph.lint()
    twin.recompile()
    return twin


def batch_of(module: GraphModule) -> int | None:
    """Size of the first axis that all inputs have in common; None where there is none."""
    sizes = {tuple(n.meta["val"].shape)[:1] for n in module.graph.nodes if n.op == "placeholder"}
    shared = sizes.pop() if len(sizes) == 1 else ()
    return int(shared[0]) if shared else None


def run_count(x: Tensor, batch: int) -> int:
    """How many runs an input has that may hold several, one behind the other on its first axis."""
    return len(x) // batch


def _counted(module: GraphModule) -> Node | int:
    """A node with the number of runs that the graph is given."""
    batch = batch_of(module)
    if not batch:
        return 1
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    with module.graph.inserting_after(inputs[-1]):
        return module.graph.call_function(run_count, (inputs[0], batch))


def _round_inputs(node: Node, weight: Node, rounding: Rounding, runs: Node | int) -> None:
    """Round both operands of a product: one of the first two arguments is the weight, the other its input."""
    grid = rounding.weights.get(_role(weight) or "")
    operands: list[Any] = list(node.args)
    with node.graph.inserting_before(node):
        for position, value in enumerate(operands[:2]):
            if value is weight and grid is not None:
                operands[position] = node.graph.call_function(fake_weight, (value, grid.qmax, grid.block))
            elif value is not weight and rounding.activations:
                operands[position] = node.graph.call_function(fake_activation, (value, runs))
    node.args = tuple(operands)


def _role(node: Node) -> str | None:
    """Of the factor that a node gives; None for any other node."""
    match = _THIN.fullmatch(str(node.target)) if node.op == "get_attr" else None
    return None if match is None or match.group(2) == "bias" else match.group(2)
