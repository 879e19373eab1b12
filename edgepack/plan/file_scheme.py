"""The scheme of a whole file and the schemes of its layers that differ from it."""

from __future__ import annotations

from collections.abc import Sequence

from edgepack.model.scheme import FileScheme, Scheme, scheme_of
from edgepack.types import LayerPlan


def base_scheme(layers: Sequence[LayerPlan], beside_code: Scheme) -> Scheme:
    """The scheme that most weight parameters take; of equals the first by name. A pair beside a matrix counts with it.

    Layers stored in code have no say: no other weight can be in their scheme.

    Args:
        layers: of the plan.
        beside_code: the scheme where there are no other layers: of all weights that are in no layer.
    """
    weights: dict[Scheme, int] = {}
    for layer in layers:
        if layer.scheme is not None and not layer.scheme.is_constexpr:
            weights[layer.scheme] = weights.get(layer.scheme, 0) + layer.weight_parameters
    return min(weights, key=lambda scheme: (-weights[scheme], scheme.name), default=beside_code)


def exceptions(layers: Sequence[LayerPlan], file: FileScheme) -> dict[str, Scheme]:
    """Layer name → scheme, of the layers that differ from what the file gives its layers."""
    return {layer.layer: layer.scheme for layer in layers if layer.scheme not in (None, file.layers)}


def file_label(layers: Sequence[LayerPlan], file: FileScheme) -> str:
    """What to call the scheme of a file for people: `mixed` where its layers differ, with that of its other weights."""
    own = ((layer.scheme_in(file), layer.ops) for layer in layers)
    return file.label(each for scheme, ops in own for each in ([scheme_of(op, scheme) for op in ops] or [scheme]))
