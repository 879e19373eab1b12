"""What layers of each kind are, free of any file format: their matrices, and what may stand in their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgepack.model.kinds import conv, embedding, linear, recurrent
from edgepack.model.kinds.kind import LayerKind
from edgepack.model.layer import WEIGHT, Layer, View
from edgepack.model.structure import DENSE

KINDS: Mapping[str, LayerKind] = {
    linear.NAME: linear.Linear(),
    conv.NAME: conv.Conv(),
    recurrent.NAME: recurrent.Recurrent(),
    embedding.NAME: embedding.Embedding(),
}
"""By the name that a `Layer` carries."""


def kind_of(layer: Layer) -> LayerKind:
    """The kind of a layer."""
    return KINDS[layer.kind]


def view_name(layer: str, view: str) -> str:
    """What a view is called in the whole model: after its layer, where it is the weight itself."""
    return layer if view == WEIGHT else f"{layer}/{view}"


def sides(layer: Layer) -> tuple[int, int]:
    """Outputs and inputs of the layer as one matrix."""
    return next(iter(kind_of(layer).views(layer).values())).shape


def views_of(layers: Iterable[Layer]) -> tuple[View, ...]:
    """Every matrix of the layers that multiplies vectors, in their order: named after its layer where that has one."""
    return tuple(view for layer in layers for view in _views(layer))


def _views(layer: Layer) -> Iterable[View]:
    kind = kind_of(layer)
    for name, matrix in kind.views(layer).items():
        yield View(view_name(layer.name, name), matrix, layer.bias, kernel=kind.ops(layer, DENSE, 1)[0].kernel)
