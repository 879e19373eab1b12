"""The role of a kind of layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from edgepack.model.layer import Array, Layer
from edgepack.model.replacement import Replacement
from edgepack.model.structure import Op, Structure


class RankGrid(Protocol):
    """Which ranks are worth trying for a matrix."""

    def low_rank(self, rows: int, columns: int) -> tuple[int, ...]:
        """Of factors in its place, ascending."""

    def correction(self, rows: int, columns: int) -> tuple[int, ...]:
        """Of factors beside it, ascending."""


class LayerKind(Protocol):
    """What layers of one kind are. Everything else asks here and knows matrices, vectors and products only."""

    def views(self, layer: Layer) -> Mapping[str, Array]:
        """The matrices (out, in) of a layer that multiply vectors, by name."""

    def rows(self, layer: Layer, view: str, activations: Array) -> Array:
        """The vectors (N, in) that a view multiplies, of the layer's input."""

    def structures(self, layer: Layer, grid: RankGrid) -> Iterable[Structure]:
        """What may stand in the layer's place: as it is first, then by rising rank."""

    def ops(self, layer: Layer, structure: Structure, vectors: int) -> tuple[Op, ...]:
        """The products of a structure, in the order in which they are computed.

        Args:
            layer: of this kind.
            structure: of those that the kind knows.
            vectors: that one inference multiplies.

        Raises:
            ValueError: the kind does not know it.
        """

    def replace(self, layer: Layer, structure: Structure, decompositions: Mapping[str, Replacement]) -> Replacement:
        """What is written for the layer, from what was found for each of its views.

        Raises:
            ValueError: they do not fit the structure.
        """

    def effective(self, layer: Layer, replacement: Replacement) -> Mapping[str, Array]:
        """What each view comes to with the replacement: (out, in) float32, for proofs and exact losses."""
