"""The role of a kind of layer within TFLite: which operators its layers are, and how they are replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.structure import Structure
from edgepack.model.types import Array

if TYPE_CHECKING:
    from edgepack.backends.tflite.matching import Fold, Found, Wanted
    from edgepack.backends.tflite.rewrite import Editor


@dataclass(frozen=True)
class Operands:
    """Which inputs of an operator are what.

    Attributes:
        x: the activations.
        weights: tensors that they are multiplied by, one above the other as rows of one matrix.
        biases: likewise; empty where it has none.
    """

    x: int
    weights: tuple[int, ...]
    biases: tuple[int, ...] = ()


class TfliteKind(Protocol):
    """A kind whose layers are told apart in a converted file and can be replaced there.

    Layers of a kind that has no room here stay as the converter writes them.
    """

    @property
    def operators(self) -> Mapping[str, Operands]:
        """Operator → which of its inputs are the activations, the weight and the bias."""

    def matrix(self, operator: str, weight: Array) -> Array | None:
        """A constant that an operator multiplies by, as (out, in); None for what is no layer of this kind."""

    def laid_out(self, layer: Layer, matrix: Array) -> Array:
        """A matrix (n, in) on the layer's input, its columns in the order of what `matrix` reads."""

    def refuses(self, layer: Layer, structure: Structure, scheme: Scheme) -> str | None:
        """Why a layer cannot be written in a structure and a scheme; None if it can."""

    def wanted(self, layer: Layer, part: Replacement | None) -> tuple[Wanted, ...]:
        """The matrices by which the operators of a layer, or of what stands in its place, are known, in their order."""

    def fold(self, found: Found, layer: Layer, shifts: Mapping[int, Array]) -> Fold | None:
        """How the layer's bias came into an operator; see `edgepack.backends.tflite.matching.fold`."""

    def split(self, editor: Editor, fold: Fold, layer: Layer, part: Replacement) -> tuple[str, ...]:
        """Put the products of a replacement, or another weight, in the place of an operator.

        Returns:
            The names of the tensors that they write.
        """
