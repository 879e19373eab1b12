"""Transposed convolutions with pads that LiteRT's operator does not have: computed whole, then cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.torchgraph.factor import copied

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


def cut_transposed(module: GraphModule) -> GraphModule:
    """A graph that computes the same; the given one is not changed, parameters are shared.

    LiteRT's operator has no pads, or those of "SAME", as many in front as behind. Every other transposed convolution
    becomes one without pads and a slice of it along each axis.
    """
    import torch

    aten = torch.ops.aten
    kinds = (aten.conv_transpose1d.default, aten.conv_transpose2d.input)
    names = [node.name for node in module.graph.nodes if node.target in kinds and _needs_cut(node)]
    if not names:
        return module
    copy = copied(module)
    for node in [node for node in copy.graph.nodes if node.name in names]:
        _cut(copy, node)
    copy.recompile()
    return copy


def _settings(node: Node) -> tuple[list[int], ...]:
    """Kernel, strides, pads, pads of the output and dilations, a number for each axis."""
    _, _, _, strides, pads, extra, _, dilations = _arguments(node)
    kernel = list(node.args[1].meta["val"].shape[2:])
    return kernel, *(list(each) * (len(kernel) // len(each)) for each in (strides, pads, extra, dilations))


def _arguments(node: Node) -> list[Any]:
    """All arguments of the operator, in order."""
    given = dict(zip((each.name for each in node.target._schema.arguments), node.args, strict=False)) | node.kwargs
    return [given.get(each.name, each.default_value) for each in node.target._schema.arguments]


def _needs_cut(node: Node) -> bool:
    same, none, room = [], [], []
    for size, step, pad, more, dilation in zip(*_settings(node), strict=True):
        same.append((step == 1 or 2 * pad == size - step) and more == 0 and dilation == 1)
        none.append(pad == 0)
        room.append(more <= pad)
    return all(room) and not all(same) and not all(none)


def _cut(module: GraphModule, node: Node) -> None:
    import torch

    _, _, pads, _, _ = _settings(node)
    sizes = node.meta["val"].shape[2:]
    x, weight, bias, strides, _, _, groups, dilations = _arguments(node)
    arguments = (x, weight, bias, strides, [0] * len(pads), [0] * len(pads), groups, dilations)
    with module.graph.inserting_before(node):
        result = module.graph.call_function(node.target, arguments)
        for axis, (pad, size) in enumerate(zip(pads, sizes, strict=True), 2):
            result = module.graph.call_function(torch.ops.aten.slice.Tensor, (result, axis, pad, pad + size))
    result.meta.update(node.meta)
    node.replace_all_uses_with(result)
    module.graph.erase_node(node)
