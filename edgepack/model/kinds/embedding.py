"""Embedding tables: a row of the table for every token. Nothing is multiplied, so there is nothing to factor: what can
be chosen is the scheme that the rows are stored in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edgepack.model.kinds.kind import RankGrid, Rows
from edgepack.model.layer import WEIGHT, Array, Geometry, Layer
from edgepack.model.replacement import Replacement, dense
from edgepack.model.structure import DENSE, Op, Structure

NAME = "embedding"


def embedding_layer(name: str, table: Array, uses: int = 1) -> Layer:
    """A layer of this kind.

    Args:
        name: see `Layer`.
        table: (tokens, width) float32.
        uses: how many nodes share the table.
    """
    return Layer(name, NAME, {WEIGHT: table}, None, Geometry("Gather"), uses)


class Embedding:
    """See `LayerKind`."""

    def views(self, layer: Layer) -> Mapping[str, Array]:
        """None: no vector is multiplied."""
        return {}

    def rows(self, layer: Layer, view: str) -> Rows:
        """There are none.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{layer.name}: an embedding table has no view {view!r}")

    def macs(self, layer: Layer) -> int:
        """None: no vector is multiplied."""
        return 0

    def structures(self, layer: Layer, grid: RankGrid) -> Iterator[Structure]:
        """The table as it is."""
        yield DENSE

    def parts(self, layer: Layer, structure: Structure) -> Mapping[str, Structure]:
        """None: there is no view."""
        _check(layer, structure)
        return {}

    def ops(self, layer: Layer, structure: Structure, vectors: int) -> tuple[Op, ...]:
        """One lookup, which multiplies nothing."""
        _check(layer, structure)
        return (Op(WEIGHT, "gather", layer.out_features, layer.in_features, vectors),)

    def replace(self, layer: Layer, structure: Structure, decompositions: Mapping[str, Replacement]) -> Replacement:
        """The table itself."""
        _check(layer, structure)
        return dense(layer.weight, None)

    def effective(self, layer: Layer, replacement: Replacement) -> Mapping[str, Array]:
        """Nothing: there are no views."""
        _check(layer, replacement.structure)
        return {}


def _check(layer: Layer, structure: Structure) -> None:
    if not structure.is_dense:
        raise ValueError(f"{layer.name}: found {structure}, an embedding table is dense")
