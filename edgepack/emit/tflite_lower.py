"""Rewrite what litert-torch cannot lower into equal operators that it can."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


def lowerable(module: GraphModule) -> GraphModule:
    """A graph that computes the same; the given one is not changed, parameters are shared.

    Global max pools (adaptive to size 1, indices unused) become a maximum over the same axes.
    """
    import torch

    aten = torch.ops.aten
    pools = (aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default)
    if not any(node.target in pools for node in module.graph.nodes):
        return module
    copy = torch.fx.GraphModule(module, torch.fx.Graph())
    output = copy.graph.graph_copy(module.graph, val_map={})
    copy.graph.output(output)
    copy = torch.fx.GraphModule(module, copy.graph)
    # Unused indices are still taken out of the pool's result by a dead node.
    copy.graph.eliminate_dead_code()
    for node in list(copy.graph.nodes):
        if node.target in pools:
            _as_maximum(copy, node)
    copy.graph.eliminate_dead_code()
    copy.recompile()
    return copy


def _as_maximum(module: GraphModule, node: Node) -> None:
    import torch

    sizes = node.args[1]
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    values = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
    if any(size != 1 for size in sizes) or len(values) != len(node.users):
        return
    axes = list(range(-len(sizes), 0))
    for value in values:
        with module.graph.inserting_before(value):
            maximum = module.graph.call_function(torch.ops.aten.amax.default, (node.args[0], axes, True))
        maximum.meta.update(value.meta)
        value.replace_all_uses_with(maximum)
