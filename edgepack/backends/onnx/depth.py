"""How many of some layers lie before each of them: what can be looked at in one run of the model, and what cannot."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from edgepack.backends.onnx.sites import find_sites

if TYPE_CHECKING:
    import onnx_ir as ir


def depths(model: ir.Model, names: Collection[str]) -> dict[str, int]:
    """By layer name: the most of the named layers that lie on a path from the model's inputs to this one.

    Layers of one depth do not feed each other. A layer that is used in several places counts where it lies deepest. One
    that stands in a branch, a loop or a function is left out.

    Args:
        names: layers of the model.
    """
    copy = model.clone()
    placed = {
        id(placement.node): site.layer.name
        for site in find_sites(copy)
        if site.layer.name in names
        for placement in site.placements
    }
    found: dict[str, int] = {}
    behind: dict[int, int] = {}
    deepest = 0
    for node in copy.graph:
        inner = any(attribute.type.name in ("GRAPH", "GRAPHS") for attribute in node.attributes.values())
        # What a branch or a loop reads from around it is not among its inputs.
        depth = deepest if inner else max((behind.get(id(value), 0) for value in node.inputs), default=0)
        if id(node) in placed:
            name = placed[id(node)]
            found[name] = max(found.get(name, 0), depth)
            depth += 1
        deepest = max(deepest, depth)
        behind |= {id(value): depth for value in node.outputs}
    inside = {placed[key] for key in placed} - set(found)
    return {name: depth for name, depth in found.items() if name not in inside}
