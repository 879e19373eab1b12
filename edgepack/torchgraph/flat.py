"""An exported program as a plain graph: tensors in, a flat tuple of tensors out, no guards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.errors import ModelError

if TYPE_CHECKING:
    from torch._ops import OpOverload
    from torch.export import ExportedProgram
    from torch.fx import Graph, GraphModule, Node


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
    leaves = _leaves(output.args[0])
    output.meta[_KEYS] = [key for key, leaf in zip(_keys(graph), leaves, strict=True) if leaf is not None]
    leaves = [leaf for leaf in leaves if leaf is not None]
    if not leaves:
        raise ModelError("the program returns no tensor", hint="return at least one tensor from forward()")
    output.args = (tuple(leaves),)
    graph.set_codegen(CodeGen())
    return torch.fx.GraphModule(module, graph, class_name="Program")


def _keys(graph: Graph) -> list[str]:
    """Of each value that a program returns: the keys and attributes under which it stands; empty where it has a place
    alone."""
    from torch.utils import _pytree as pytree

    spec = graph._codegen.pytree_info.out_spec
    paths, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))
    return [".".join(map(_word, path)) if any(map(_is_named, path)) else "" for path, _ in paths]


def _is_named(key: object) -> bool:
    return hasattr(key, "key") or hasattr(key, "name")


def _word(key: Any) -> str:
    return str(key.key if hasattr(key, "key") else key.name if hasattr(key, "name") else key.idx)


def keep_keys(module: GraphModule) -> None:
    """Let the graph return a dict where all of its outputs have keys, so that they outlive another export."""
    output = next(node for node in module.graph.nodes if node.op == "output")
    keys = output.meta[_KEYS]
    if all(keys):
        output.args = (dict(zip(keys, output.args[0], strict=True)),)
        module.recompile()


_KEYS = "keys"


def start_afresh(module: GraphModule) -> None:
    """Let every run of the graph begin with the constants as they are: what it writes in place, it writes to a copy."""
    import torch

    graph = module.graph
    for root in dict.fromkeys(_written(node) for node in graph.nodes):
        if root is not None:
            with graph.inserting_after(root):
                own = graph.call_function(torch.ops.aten.clone.default, (root,))
            own.meta.update(root.meta)
            root.replace_all_uses_with(own, delete_user_cb=lambda user, own=own: user is not own)
    module.recompile()


def _written(node: Node) -> Node | None:
    """The constant that an operator writes to, itself or through views of it."""
    import torch

    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return None
    while node.args and isinstance(node.target, torch._ops.OpOverload) and _is_view(node.target):
        node = node.args[0]
    return node if node.op == "get_attr" else None


def _is_view(operator: OpOverload) -> bool:
    """Whether its result shares memory with what it is given."""
    return any(result.alias_info is not None for result in operator._schema.returns)


def _leaves(value: object) -> list[Node | None]:
    from torch.fx import Node
    from torch.utils import _pytree as pytree

    flat, _ = pytree.tree_flatten(value)
    return [leaf if isinstance(leaf, Node) else None for leaf in flat]


def input_names(module: GraphModule) -> list[str]:
    """Names of the graph's inputs, in order."""
    return [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]


def output_names(module: GraphModule) -> list[str]:
    """Names of what the graph returns, in order: the keys of a dict, else names of nodes; a repeated one gets a
    number."""
    output = next(node for node in module.graph.nodes if node.op == "output")
    names: list[str] = []
    for key, node in zip(output.meta[_KEYS], output.args[0], strict=True):
        name = key or node.name
        while name in names:
            name += "_again"
        names.append(name)
    return names
