"""Recurrent layers, seen from their inputs: what LSTM, GRU and plain recurrent cells multiply x(t) by, the matrices of
all gates and directions one above the other.

Low-rank factors in their place are a linear layer to r features, and the same recurrent layer on these. What a cell
multiplies its own state by is not part of the layer: it stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from edgepack.model.kinds.kind import EVERY_POSITION, RankGrid, Rows
from edgepack.model.kinds.linear import effective_weight, linear_ops
from edgepack.model.layer import WEIGHT, Array, Geometry, Layer
from edgepack.model.replacement import Replacement
from edgepack.model.structure import DENSE, Op, Structure, low_rank

NAME = "recurrent"


def recurrent_layer(name: str, weight: Array, bias: Array | None, operator: str, uses: int = 1) -> Layer:
    """A layer of this kind.

    Args:
        name: see `Layer`.
        weight: (directions · gates · units, in) float32.
        bias: (directions · gates · units,) float32, what is added to that product, or None.
        operator: that it came from: "LSTM", "GRU" or "RNN".
        uses: how many nodes share the weight.
    """
    return Layer(name, NAME, {WEIGHT: weight}, bias, Geometry(operator), uses)


class Recurrent:
    """See `LayerKind`."""

    def views(self, layer: Layer) -> Mapping[str, Array]:
        """The weight of the inputs."""
        return {WEIGHT: layer.weight}

    def rows(self, layer: Layer, view: str) -> Rows:
        """The features at every step."""
        return EVERY_POSITION

    def structures(self, layer: Layer, grid: RankGrid) -> Iterator[Structure]:
        """Dense, and low-rank factors in its place."""
        yield DENSE
        yield from map(low_rank, grid.low_rank(layer.out_features, layer.in_features))

    def parts(self, layer: Layer, structure: Structure) -> Mapping[str, Structure]:
        """The structure itself, of the only view."""
        return {WEIGHT: structure}

    def ops(self, layer: Layer, structure: Structure, vectors: int) -> tuple[Op, ...]:
        """Those of the matrix; what is on top of the cells belongs to the recurrent operator."""
        products = linear_ops(layer.out_features, layer.in_features, structure, vectors)
        return tuple(op if op.role == "B" else replace(op, kind="recurrent") for op in products)

    def replace(self, layer: Layer, structure: Structure, decompositions: Mapping[str, Replacement]) -> Replacement:
        """What was found for the only view."""
        found = decompositions.get(WEIGHT)
        if found is None or found.structure != structure:
            had = "nothing" if found is None else found.structure
            raise ValueError(f"{layer.name}: found {had}, expected {structure}")
        return found

    def effective(self, layer: Layer, replacement: Replacement) -> Mapping[str, Array]:
        """The stored matrix, or the product of the factors."""
        return {WEIGHT: effective_weight(replacement)}
