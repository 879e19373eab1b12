"""An exported program as a plain graph: tensors in, a flat tuple of tensors out, no guards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import ModelError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node


def flat_module(program: ExportedProgram) -> GraphModule:
    """The program's graph with its parameters as attributes.

    Inputs are positional, in the order and under the names of the program's own inputs; nested outputs come out as one
    flat tuple. The parameters are shared with the program, not copied.

    Raises:
        ModelError: no output of the program is a tensor.
    """
    import torch
    from torch.fx.graph import CodeGen

    module = program.module(check_guards=False)
    graph = module.graph
    for node in list(graph.nodes):
        # Input guards repeat checks that every runtime makes itself, and no converter understands them.
        if node.op == "call_module" and node.target == "_guards_fn":
            graph.erase_node(node)
    output = next(node for node in graph.nodes if node.op == "output")
    leaves = [leaf for leaf in _leaves(output.args[0]) if leaf is not None]
    if not leaves:
        raise ModelError("the program returns no tensor", hint="return at least one tensor from forward()")
    output.args = (tuple(leaves),)
    graph.set_codegen(CodeGen())
    return torch.fx.GraphModule(module, graph, class_name="Program")


def _leaves(value: object) -> list[Node | None]:
    from torch.fx import Node
    from torch.utils import _pytree as pytree

    flat, _ = pytree.tree_flatten(value)
    return [leaf if isinstance(leaf, Node) else None for leaf in flat]


def input_names(module: GraphModule) -> list[str]:
    """Names of the graph's inputs, in order."""
    return [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]


def output_names(module: GraphModule) -> list[str]:
    """Names of the nodes that the graph returns, in order; a repeated one gets a number."""
    output = next(node for node in module.graph.nodes if node.op == "output")
    names: list[str] = []
    for node in output.args[0]:
        name = node.name
        while name in names:
            name += "_again"
        names.append(name)
    return names
