"""Recurrent layers, seen from their inputs: what LSTM, GRU and plain recurrent cells multiply x(t) by, the matrices of
all gates and directions one above the other.

Low-rank factors in their place are a linear layer to r features, and the same recurrent layer on these. What a cell
multiplies its own state by is not part of the layer: it stays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgepack.model.kinds.matrix import OneMatrix
from edgepack.model.layer import WEIGHT, Array, Geometry, Layer
from edgepack.model.structure import Op, Structure

NAME = "recurrent"


@dataclass(frozen=True)
class RecurrentGeometry(Geometry):
    """See `Geometry`.

    Attributes:
        units: numbers in the state of a direction, by which each of its gates multiplies at every step.
    """

    units: int


def recurrent_layer(name: str, weight: Array, bias: Array | None, geometry: RecurrentGeometry, uses: int = 1) -> Layer:
    """A layer of this kind.

    Args:
        name: see `Layer`.
        weight: (directions · gates · units, in) float32.
        bias: (directions · gates · units,) float32, what is added to that product, or None.
        geometry: its operator is "LSTM", "GRU" or "RNN".
        uses: how many nodes share the weight.
    """
    return Layer(name, NAME, {WEIGHT: weight}, bias, geometry, uses)


def units_of(layer: Layer) -> int:
    """Numbers in the state of a direction of a layer of this kind.

    Raises:
        ValueError: it is of another kind.
    """
    match layer.geometry:
        case RecurrentGeometry() as geometry:
            return geometry.units
    raise ValueError(f"{layer.name}: found a {layer.kind} layer, expected a recurrent one")


class Recurrent(OneMatrix):
    """See `LayerKind`."""

    def macs(self, layer: Layer) -> int:
        """Those of the matrix and of the state."""
        return layer.out_features * (layer.in_features + units_of(layer))

    def ops(self, layer: Layer, structure: Structure, vectors: int) -> tuple[Op, ...]:
        """Those of the matrix; what is on top of the cells belongs to the recurrent operator."""
        return tuple(
            op if op.role == "B" else replace(op, kind="recurrent") for op in super().ops(layer, structure, vectors)
        )
