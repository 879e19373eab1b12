"""Linear layers: y = W x + b for every row of the input, a product, a fully connected layer or a 1×1 convolution."""

from __future__ import annotations

from collections.abc import Iterator

from edgepack.model.kinds.kind import RankGrid
from edgepack.model.kinds.matrix import OneMatrix
from edgepack.model.layer import WEIGHT, Array, Geometry, Layer
from edgepack.model.structure import Structure, low_rank_correction

NAME = "linear"


def linear_layer(name: str, weight: Array, bias: Array | None, operator: str = "Gemm", uses: int = 1) -> Layer:
    """A layer of this kind.

    Args:
        name: see `Layer`.
        weight: (out, in) float32.
        bias: (out,) float32 or None.
        operator: that it came from: "Gemm", "MatMul" or "Conv".
        uses: how many nodes share the weight.
    """
    return Layer(name, NAME, {WEIGHT: weight}, bias, Geometry(operator), uses)


class Linear(OneMatrix):
    """See `LayerKind`."""

    def structures(self, layer: Layer, grid: RankGrid) -> Iterator[Structure]:
        """Dense, low-rank factors in its place, and low-rank factors beside it."""
        yield from super().structures(layer, grid)
        yield from map(low_rank_correction, grid.correction(layer.out_features, layer.in_features))
