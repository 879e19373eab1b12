"""The role of a kind of layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
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

    def stage(self, rows: int, columns: int) -> tuple[int, ...]:
        """Of factors that take a convolution's kernel apart, with so many weights as those of this matrix, ascending;
        below its sides."""

    def tucker(self, outputs: int, channels: int, places: int) -> Iterable[tuple[int, int]]:
        """Pairs of ranks, of inputs and of outputs, for a kernel of so many places between two matrices."""


class Rows(Protocol):
    """How vectors are taken from a layer's input: a value, of which equal ones take the same vectors."""

    def __call__(self, activations: Array) -> Array:
        """(N, in), of an input with its features on the last axis, whatever the layout of the file is.

        Where there are more than statistics need, some of them.
        """

    def count(self, activations: Array) -> int:
        """How many vectors the layer multiplies for such an input."""

    def __hash__(self) -> int:
        """It tells vectors of one input apart."""


@dataclass(frozen=True)
class EveryPosition:
    """The features at every position, as `Rows`."""

    def __call__(self, activations: Array) -> Array:
        """See `Rows`."""
        return activations.reshape(-1, activations.shape[-1])

    def count(self, activations: Array) -> int:
        """See `Rows`."""
        return prod(activations.shape[:-1])


EVERY_POSITION = EveryPosition()


class LayerKind(Protocol):
    """What layers of one kind are. Everything else asks here and knows matrices, vectors and products only."""

    def views(self, layer: Layer) -> Mapping[str, Array]:
        """The matrices (out, in) of a layer that multiply vectors, by name."""

    def rows(self, layer: Layer, view: str) -> Rows:
        """How the vectors that a view multiplies are taken from the layer's input."""

    def macs(self, layer: Layer) -> int:
        """Multiplications of the dense layer for each vector that it takes from its input."""

    def structures(self, layer: Layer, grid: RankGrid) -> Iterable[Structure]:
        """What may stand in the layer's place: as it is first, then by rising rank."""

    def parts(self, layer: Layer, structure: Structure) -> Mapping[str, Structure]:
        """What is to be found for each view that a structure is made of: a matrix as it is, low-rank factors, or both.

        Raises:
            ValueError: the kind does not know the structure.
        """

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
        """What is written for the layer, from what was found for its `parts`, by view.

        Raises:
            ValueError: they do not fit the structure.
        """

    def effective(self, layer: Layer, replacement: Replacement) -> Mapping[str, Array]:
        """What each view comes to with the replacement: (out, in) float32, for proofs and exact losses."""
