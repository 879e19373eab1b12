"""Embedding tables: a row of the table for every token, y = Tᵀ x for x that is 1 at the token and 0 elsewhere.

Low-rank factors in a table's place are a narrower table, of which rows are looked up, and a product behind it that
makes them wide again. How often tokens occur says which directions count: the covariance of such vectors is that of
their shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from edgepack.model.kinds.kind import RankGrid, Rows
from edgepack.model.layer import WEIGHT, Array, Geometry, Layer
from edgepack.model.replacement import Replacement, dense
from edgepack.model.structure import DENSE, Op, Structure, low_rank

NAME = "embedding"
ROWS = "rows"
"""The only view: the table on its side, (width, tokens)."""


def embedding_layer(name: str, table: Array, uses: int = 1) -> Layer:
    """A layer of this kind.

    Args:
        name: see `Layer`.
        table: (tokens, width) float32.
        uses: how many nodes share the table.
    """
    return Layer(name, NAME, {WEIGHT: table}, None, Geometry("Gather"), uses)


@dataclass(frozen=True)
class OneHot:
    """A vector for every token that is looked up, as `Rows` of numbers of tokens."""

    tokens: int

    def __call__(self, activations: Array) -> Array:
        """See `Rows`: (N, tokens) float32."""
        found = np.zeros((activations.size, self.tokens), np.float32)
        found[np.arange(activations.size), activations.reshape(-1)] = 1
        return found

    def count(self, activations: Array) -> int:
        """See `Rows`."""
        return activations.size


class Embedding:
    """See `LayerKind`."""

    def views(self, layer: Layer) -> Mapping[str, Array]:
        """The table on its side."""
        return {ROWS: layer.weight.T}

    def rows(self, layer: Layer, view: str) -> Rows:
        """A vector for every token."""
        return OneHot(layer.out_features)

    def macs(self, layer: Layer) -> int:
        """None: rows are looked up."""
        return 0

    def structures(self, layer: Layer, grid: RankGrid) -> Iterator[Structure]:
        """The table as it is, and low-rank factors in its place."""
        yield DENSE
        yield from map(low_rank, grid.low_rank(layer.out_features, layer.in_features))

    def parts(self, layer: Layer, structure: Structure) -> Mapping[str, Structure]:
        """The structure itself, of the only view."""
        _check(layer, structure)
        return {ROWS: structure}

    def ops(self, layer: Layer, structure: Structure, vectors: int) -> tuple[Op, ...]:
        """One lookup; of low-rank factors one in a narrower table, and the product behind it."""
        _check(layer, structure)
        tokens, width = layer.weight.shape
        if structure.rank is None:
            return (Op(WEIGHT, "gather", tokens, width, vectors),)
        rank = structure.rank
        return Op("B", "gather", tokens, rank, vectors), Op("A", "matmul", width, rank, vectors)

    def replace(self, layer: Layer, structure: Structure, decompositions: Mapping[str, Replacement]) -> Replacement:
        """The table, or its factors: `A` (width, r), and `B` (tokens, r), the rows that are looked up."""
        _check(layer, structure)
        found = decompositions.get(ROWS)
        if found is None or found.structure != structure:
            had = "nothing" if found is None else found.structure
            raise ValueError(f"{layer.name}: found {had}, expected {structure}")
        if structure.is_dense:
            return dense(_turned(found.weight), found.bias)
        return Replacement(structure, {"A": found.A, "B": _turned(found.B)}, found.bias)

    def effective(self, layer: Layer, replacement: Replacement) -> Mapping[str, Array]:
        """The stored table on its side, or the product of the factors."""
        _check(layer, replacement.structure)
        if replacement.structure.is_dense:
            return {ROWS: replacement.weight.T}
        return {ROWS: replacement.A @ replacement.B.T}


def _turned(matrix: Array) -> Array:
    return np.ascontiguousarray(matrix.T)


def _check(layer: Layer, structure: Structure) -> None:
    if not (structure.is_dense or (structure.is_low_rank and structure.rank)):
        raise ValueError(f"{layer.name}: found {structure}, an embedding table is dense or has low-rank factors")
