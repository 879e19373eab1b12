"""What layers have in common that multiply vectors by one matrix: its structures, their products, what they come to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from edgepack.model.kinds.kind import EVERY_POSITION, RankGrid, Rows
from edgepack.model.layer import WEIGHT, Array, Layer
from edgepack.model.replacement import Replacement
from edgepack.model.structure import DENSE, Op, Structure, low_rank


def linear_ops(rows: int, columns: int, structure: Structure, vectors: int) -> tuple[Op, ...]:
    """The products of a structure for a matrix (rows, columns).

    Of a constexpr layer there are none that an operator computes with a weight as it is stored.

    Raises:
        ValueError: a linear layer has no such structure.
    """
    if structure.is_constexpr:
        return ()
    if structure.is_dense:
        return (Op(WEIGHT, "matmul", rows, columns, vectors),)
    beside = structure.is_correction
    if structure.rank is None or not (structure.is_low_rank or beside):
        raise ValueError(f"a linear layer cannot be {structure}, expected dense, low-rank factors or constexpr")
    first = Op("B", "matmul", structure.rank, columns, vectors, corrects=beside)
    second = Op("A", "matmul", rows, structure.rank, vectors, corrects=beside)
    return (first, second, Op("base", "matmul", rows, columns, vectors)) if beside else (first, second)


class OneMatrix:
    """A `LayerKind` whose layers are one matrix, dense or in two thin ones, for the features at every position."""

    def views(self, layer: Layer) -> Mapping[str, Array]:
        """The weight."""
        return {WEIGHT: layer.weight}

    def rows(self, layer: Layer, view: str) -> Rows:
        """The features at every position."""
        return EVERY_POSITION

    def macs(self, layer: Layer) -> int:
        """Those of the matrix."""
        return layer.weight.size

    def structures(self, layer: Layer, grid: RankGrid) -> Iterator[Structure]:
        """Dense, and low-rank factors in its place."""
        yield DENSE
        yield from map(low_rank, grid.low_rank(layer.out_features, layer.in_features))

    def parts(self, layer: Layer, structure: Structure) -> Mapping[str, Structure]:
        """The structure itself, of the only view."""
        return {WEIGHT: structure}

    def ops(self, layer: Layer, structure: Structure, vectors: int) -> tuple[Op, ...]:
        """One product, the two thin ones, or all three."""
        return linear_ops(layer.out_features, layer.in_features, structure, vectors)

    def replace(self, layer: Layer, structure: Structure, decompositions: Mapping[str, Replacement]) -> Replacement:
        """What was found for the only view."""
        found = decompositions.get(WEIGHT)
        if found is None or found.structure != structure:
            had = "nothing" if found is None else found.structure
            raise ValueError(f"{layer.name}: found {had}, expected {structure}")
        return found

    def effective(self, layer: Layer, replacement: Replacement) -> Mapping[str, Array]:
        """The stored matrix, the product of the factors, or their sum."""
        return {WEIGHT: effective_weight(replacement)}


def effective_weight(part: Replacement) -> Array:
    """(out, in) float32: the matrix that a replacement of a linear layer comes to."""
    if not part.structure.ranks:
        return part.weight
    product = part.A @ part.B
    return product if part.structure.is_low_rank else np.asarray(part.base + product)
