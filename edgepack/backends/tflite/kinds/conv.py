"""Convolutions in TFLite: CONV_2D of larger kernels, or with strides; along one axis they are written as along two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgepack.backends.tflite.kinds.linear import in_two
from edgepack.backends.tflite.matching import Wanted
from edgepack.backends.tflite.schemes import INT4_DYNAMIC
from edgepack.model.kinds.conv import geometry_of
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.structure import Structure
from edgepack.model.types import Array

if TYPE_CHECKING:
    from edgepack.backends.tflite.matching import Fold
    from edgepack.backends.tflite.rewrite import Editor


class TfliteConvKind:
    """See `TfliteKind`."""

    operators: Mapping[str, tuple[int, int, int | None]] = {"CONV_2D": (0, 1, 2)}

    def matrix(self, operator: str, weight: Array) -> Array | None:
        """See `TfliteKind`."""
        return weight.reshape(len(weight), -1) if weight.ndim == 4 else None

    def laid_out(self, layer: Layer, matrix: Array) -> Array:
        """Place by place, where the layer has channel by channel."""
        places = matrix.reshape(len(matrix), -1, int(np.prod(geometry_of(layer).kernel)))
        return np.ascontiguousarray(places.swapaxes(1, 2)).reshape(matrix.shape)

    def refuses(self, layer: Layer, structure: Structure, scheme: Scheme) -> str | None:
        """See `TfliteKind`."""
        if structure.is_constexpr:
            return "a convolution is not written in code"
        return "LiteRT has no fast 4-bit kernel for CONV_2D" if scheme == INT4_DYNAMIC else None

    def wanted(self, layer: Layer, part: Replacement | None) -> tuple[Wanted, ...]:
        """The kernel, or that to r channels and the matrix behind it."""
        if part is None:
            return (Wanted(layer.name, self.laid_out(layer, layer.weight), layer.uses),)
        first = self.laid_out(layer, part.B)
        return tuple(
            Wanted(f"{layer.name}\0{role}", matrix, layer.uses) for role, matrix in (("B", first), ("A", part.A))
        )

    def split(self, editor: Editor, fold: Fold, layer: Layer, part: Replacement) -> tuple[str, ...]:
        """A convolution of the same kernel to r channels, and one of 1×1 with all that the dense one had behind it."""
        return in_two(editor, fold, layer, part, self.laid_out(layer, part.B))
