"""Layers that have one weight and take their vectors in different ways: it is stored once, so it stays one for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import INT8_BITS, Scheme
from edgepack.model.structure import Structure


def refuses_shared(layer: Layer, structure: Structure, scheme: Scheme) -> str | None:
    """Why a layer that shares its weight with others cannot be written so; None where it can, and for all others."""
    if not layer.shared or (structure.is_dense and scheme.bits >= INT8_BITS):
        return None
    return "other layers have the same weight, which is stored once for all of them"


def without_shared(parts: Mapping[str, Replacement], layers: Iterable[Layer]) -> dict[str, Replacement]:
    """The parts but those of such layers, whose weight is rounded once for all, by the format."""
    shared = {layer.name for layer in layers if layer.shared}
    return {name: part for name, part in parts.items() if name not in shared}


def in_one_scheme(schemes: Mapping[str, Scheme], layers: Iterable[Layer], of_file: Scheme) -> dict[str, Scheme]:
    """The schemes of single layers, with the widest of those of such layers for all of these.

    Args:
        schemes: by layer name.
        layers: of the model.
        of_file: of layers without one of their own.
    """
    own = {layer.name: schemes.get(layer.name, of_file) for layer in layers if layer.shared}
    if len(set(own.values())) < 2:
        return dict(schemes)
    return {**schemes, **dict.fromkeys(own, max(own.values(), key=lambda scheme: scheme.bits))}
