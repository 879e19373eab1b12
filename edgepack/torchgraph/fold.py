"""Fold an inference-mode batch norm, or a bias that is added apart, into the layer before it, as ONNX exporters do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.torchgraph.linears import Constants

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule, Node


def fold_batch_norms(module: GraphModule) -> int:
    """Fold every foldable batch norm of the graph in place and return how many there were.

    Folding before the ONNX export keeps the weights of both graphs bit-equal, so that they can be matched by value.
    """
    import torch

    constants = Constants(module)
    norms = [n for n in module.graph.nodes if n.op == "call_function" and n.target is torch.ops.aten.batch_norm.default]
    folded = sum(_fold(module, node, constants) for node in norms)
    if folded:
        module.graph.eliminate_dead_code()
        module.recompile()
    return folded


def _fold(module: GraphModule, norm: Node, constants: Constants) -> bool:
    import torch

    given, gamma, beta, mean, variance, training, _, eps = norm.args[:8]
    layer = None if training else _layer_of(given, axis=1)
    if layer is None:
        return False
    weight, bias = constants.tensor(layer.args[1]), None
    if len(layer.args) > 2 and layer.args[2] is not None:
        bias = constants.tensor(layer.args[2])
        if bias is None:
            return False
    centre, spread = constants.tensor(mean), constants.tensor(variance)
    if weight is None or centre is None or spread is None:
        return False
    scale, shift = constants.tensor(gamma), constants.tensor(beta)
    with torch.no_grad():
        factor = torch.rsqrt(spread.double() + eps) * (1.0 if scale is None else scale.double())
        offset = -centre.double() * factor if bias is None else (bias.double() - centre.double()) * factor
        offset = offset if shift is None else offset + shift.double()
        new_weight = (weight.double() * factor.reshape(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
        new_bias = offset.to(weight.dtype)
    name = constants.name(layer.args[1])
    with module.graph.inserting_before(layer):
        new_args = (register(module, name, new_weight), register(module, _bias_name(name), new_bias))
        layer.args = (layer.args[0], *new_args, *layer.args[3:])
    norm.replace_all_uses_with(given)
    module.graph.erase_node(norm)
    return True


def fold_biases(module: GraphModule) -> None:
    """Let every layer without a bias take the constant that is added to its channels, in place."""
    import torch

    constants = Constants(module)
    for add in list(module.graph.nodes):
        if add.target is not torch.ops.aten.add.Tensor or add.kwargs:
            continue
        given, bias = add.args
        value = constants.tensor(bias)
        axis = None if value is None else _only_axis(value)
        layer = None if axis is None else _layer_of(given, axis=add.meta["val"].dim() + axis)
        if value is None or layer is None or any(one is not None for one in layer.args[2:3]):
            continue
        weight = constants.tensor(layer.args[1])
        if weight is None or weight.dtype != value.dtype or value.numel() != len(weight):
            continue
        with module.graph.inserting_before(layer):
            own = register(module, constants.name(bias), value.flatten().contiguous())
        layer.args = (*layer.args[:2], own, *layer.args[3:])
        add.replace_all_uses_with(given)
        module.graph.erase_node(add)


def _only_axis(value: Tensor) -> int | None:
    """The axis, counted from the last, along which a constant differs; None where there is no such one."""
    axes = [axis - value.dim() for axis, size in enumerate(value.shape) if size != 1]
    return axes[0] if len(axes) == 1 else None


def _layer_of(value: object, axis: int) -> Node | None:
    """The layer whose channels lie on this axis of a value, with nothing but transpositions in between; None where
    there is none, or something else takes its result as well."""
    import torch
    from torch.fx import Node

    aten = torch.ops.aten
    while isinstance(value, Node) and len(value.users) == 1:
        if value.target is aten.permute.default:
            axis = value.args[1][axis] % value.meta["val"].dim()
            value = value.args[0]
        elif value.target in (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default):
            return value if axis == 1 else None
        else:
            features = value.meta["val"].dim() - 1 if value.target is aten.linear.default else None
            return value if axis == features else None
    return None


def _bias_name(weight: str) -> str:
    return f"{weight.removesuffix('weight')}bias" if weight.endswith("weight") else f"{weight}_bias"


def register(module: GraphModule, name: str, value: Tensor) -> Node:
    """A get_attr node for a new parameter that takes over the old one's name, unless another node needs the old one."""
    import torch

    users = [n for n in module.graph.nodes if n.op == "get_attr" and n.target == name for _ in n.users]
    if len(users) > 1:
        name = f"{name}_folded_{sum(1 for _ in module.parameters())}"
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path) if path else module
    if hasattr(owner, leaf):
        delattr(owner, leaf)
    owner.register_parameter(leaf, torch.nn.Parameter(value, requires_grad=False))
    return module.graph.get_attr(name)
