"""A layer as a model has it, and each of its matrices as the algorithms see it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

if TYPE_CHECKING:
    from edgepack.model.types import Moments

Array = npt.NDArray[Any]

WEIGHT = "weight"
"""Name of the weight of layers that have one, and of the view of it."""


def distinct(names: Iterable[str]) -> list[str]:
    """The names in their order; one that was taken before gets a number behind it."""
    taken: dict[str, None] = {}
    for base in names:
        name, number = base, 2
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        taken[name] = None
    return list(taken)


@dataclass(frozen=True)
class Geometry:
    """What is to be known of a layer beside its weights; a kind may have one with more to it.

    Attributes:
        operator: that it came from: "Gemm", "MatMul" or "Conv" for linear layers, "Conv" for convolutions, "Gather" for
            embeddings.
    """

    operator: str


@dataclass(frozen=True)
class Layer:
    """A layer that can be replaced, wherever it stands in a model.

    Attributes:
        name: unique in the model, stable between runs.
        kind: of `edgepack.model.kinds`: what its weights mean.
        weights: float32, by name.
        bias: (out,) float32 or None.
        geometry: see there.
        uses: how many nodes share its weights.
        tied: whether rows of its weight are looked up elsewhere in the model, as those of an embedding table.
        shared: whether other layers, which take their vectors in another way, have the same weight.
        stored_bits: of a number of its weight in a file that leaves the layer as it is.
    """

    name: str
    kind: str
    weights: Mapping[str, Array]
    bias: Array | None
    geometry: Geometry
    uses: int = 1
    tied: bool = False
    shared: bool = False
    stored_bits: int = 32

    @property
    def weight(self) -> Array:
        """The weight of a layer that has one: (out, in) of a linear layer, (out, in · places of the kernel) of a
        convolution, (rows, columns) of an embedding table."""
        return self.weights[WEIGHT]

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return int(self.weight.shape[0])

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return int(self.weight.shape[1])

    def with_weight(self, weight: Array, bias: Array | None) -> Layer:
        """The same with other numbers."""
        return replace(self, weights={**self.weights, WEIGHT: weight}, bias=bias)


@dataclass(frozen=True)
class View:
    """One matrix of a layer, which multiplies vectors taken from the activations: all that the algorithms know of it.

    Attributes:
        name: of the layer, where this is its only view.
        weight: W (out, in) float32.
        bias: (out,) float32 or None.
        moments: statistics of the vectors, None before calibration.
        kernel: where the columns are channels by places of a convolution's kernel, its sizes.
    """

    name: str
    weight: Array
    bias: Array | None
    moments: Moments | None = None
    kernel: tuple[int, ...] = ()

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return int(self.weight.shape[0])

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return int(self.weight.shape[1])
