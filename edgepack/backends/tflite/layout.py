"""What litert-torch is told of channels-last: operators that its pass for layouts does not know.

The pass lets convolutions, and what stands between them, compute with channels last, as LiteRT wants it. Around an
operator that it does not know it puts a transpose on each side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgepack.torchgraph.factor import copied
from edgepack.torchgraph.tidy import POINTWISE, name_of, order_of

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


_CHANNELS_LAST = [0, 2, 3, 1]


def teach_layouts() -> None:
    """Tell the pass, for this process: pads with a constant, and what computes each element by itself."""
    import torch
    from litert_torch._convert.fx_passes.optimize_layout_transposes_pass.layout_rewrite import noop, rewriters

    aten = torch.ops.aten
    rewriters.register(aten.constant_pad_nd)(_pad_channels_last)
    for single in (aten.elu, aten.square):
        rewriters.register(single)(noop)


def _pad_channels_last(node: Node) -> None:
    """A pad of an image (N, C, H, W) with channels last: widths are those of the last axis first."""
    x, widths, *fill = node.args
    w, h, c, n = ([*widths, *[0] * 8][at : at + 2] for at in (0, 2, 4, 6))
    node.args = (x, [*c, *w, *h, *n], *fill)


def raised(module: GraphModule) -> GraphModule:
    """A graph that computes the same; the given one is not changed, parameters are shared.

    Transpositions of what convolutions give stand right behind these, where they meet the converter's own; between
    them may be what computes each element by itself, and axes of 1 that come or go, as of convolutions along time.
    """
    if not any(_way(node) for node in module.graph.nodes):
        return module
    copy = copied(module)
    for node in list(copy.graph.nodes):
        if way := _way(node):
            _raise(copy, node, way)
    copy.graph.eliminate_dead_code()
    copy.recompile()
    return copy


def _way(node: Node) -> list[tuple[Node, list[int]]]:
    """From a transposition up to a convolution: each node between them, and the order of the axes of what it takes;
    empty where there is no such way."""
    order = order_of(node)
    way: list[tuple[Node, list[int]]] = []
    at = node.args[0] if order is not None else None
    while at is not None and order is not None and len(at.users) == 1 and name_of(at) not in ("conv1d", "conv2d"):
        if name_of(at) in ("reshape", "view", "squeeze", "unsqueeze"):
            order = _before(at.args[0].meta["val"].shape, at.meta["val"].shape, order)
        elif (
            name_of(at) not in POINTWISE or at.args[0].meta["val"].shape != at.meta["val"].shape or _others(at) is None
        ):
            return []
        if order is not None:
            way.append((at, order))
            at = at.args[0]
    ends = order == _CHANNELS_LAST and at is not None and name_of(at) == "conv2d" and len(at.users) == 1
    return way if ends else []


def _others(node: Node) -> list[Node] | None:
    """Constants that an operator takes beside its first input; None where some are computed."""
    rest = [each for each in node.all_input_nodes if each is not node.args[0]]
    return rest if node.args[0] in node.all_input_nodes and all(each.op == "get_attr" for each in rest) else None


def _before(given: Sequence[int], after: Sequence[int], order: Sequence[int]) -> list[int] | None:
    """The order of axes before some of size 1 come or go; None where others do."""
    own = [[axis for axis, size in enumerate(shape) if size != 1] for shape in (given, after)]
    if [given[axis] for axis in own[0]] != [after[axis] for axis in own[1]]:
        return None
    known = dict(zip(own[1], own[0], strict=True))
    made = [known[axis] for axis in order if axis in known]
    for axis, size in enumerate(given):
        if size == 1:
            # Beside the same axis as before, the first in front of all.
            place = (
                made.index(axis + 1)
                if axis and axis + 1 in made
                else made.index(axis - 1) + 1
                if axis - 1 in made
                else 0
            )
            made.insert(place if axis else 0, axis)
    return made


def _raise(module: GraphModule, node: Node, way: Sequence[tuple[Node, list[int]]]) -> None:
    import torch

    graph, aten = module.graph, torch.ops.aten
    last, order = way[-1]
    with graph.inserting_before(node):
        given = last.args[0]
        made = graph.call_function(aten.permute.default, (given, order))
        made.meta["val"] = given.meta["val"].permute(order)
        outer = [order for _, order in way[:-1]]
        for (each, _), behind in zip(reversed(way), [*reversed(outer), order_of(node) or []], strict=True):
            shape = [each.meta["val"].shape[axis] for axis in behind]
            if name_of(each) in POINTWISE:
                arguments = [_ordered(module, value, behind) for value in each.args[1:]]
                made = graph.call_function(each.target, (made, *arguments), dict(each.kwargs))
            else:
                made = graph.call_function(aten.reshape.default, (made, shape))
            made.meta["val"] = each.meta["val"].permute(behind)
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def _ordered(module: GraphModule, value: Any, order: Sequence[int]) -> Any:
    """A constant with its axes in this order; numbers as they are."""
    import torch
    from torch.fx import Node

    if not isinstance(value, Node):
        return value
    aten, shape = torch.ops.aten, value.meta["val"].shape
    whole = module.graph.call_function(aten.reshape.default, (value, [*[1] * (len(order) - len(shape)), *shape]))
    return module.graph.call_function(aten.permute.default, (whole, list(order)))
