"""Convolutions in TFLite: CONV_2D of larger kernels, or with strides; along one axis they are written as along two.

Stages that take every channel by itself are DEPTHWISE_CONV_2D, whose kernel is (1, *sizes, channels).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.backends.tflite.kinds.kind import Operands
from edgepack.backends.tflite.kinds.linear import without_activation
from edgepack.backends.tflite.matching import Fold, Found, Wanted, fold
from edgepack.backends.tflite.schemes import INT4_DYNAMIC
from edgepack.model.kinds.conv import geometry_of, kernels_of
from edgepack.model.kinds.stages import Stage
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.structure import Structure
from edgepack.model.types import Array

if TYPE_CHECKING:
    from edgepack.backends.tflite.rewrite import Editor

DEPTHWISE = "DEPTHWISE_CONV_2D"


class TfliteConvKind:
    """See `TfliteKind`."""

    operators: Mapping[str, Operands] = {"CONV_2D": Operands(0, (1,), (2,)), DEPTHWISE: Operands(0, (1,), (2,))}

    def matrix(self, operator: str, weight: Array) -> Array | None:
        """See `TfliteKind`."""
        if operator == DEPTHWISE:
            return weight.reshape(-1, weight.shape[-1]).T if weight.ndim == 4 else None
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
        """The kernel, or those of all stages."""
        if part is None:
            return (Wanted(layer.name, self.laid_out(layer, layer.weight), layer.uses),)
        return tuple(
            Wanted(f"{layer.name}\0{stage.role}", _matrix(kernel), layer.uses)
            for stage, kernel in kernels_of(layer, part)
        )

    def fold(self, found: Found, layer: Layer, shifts: Mapping[int, Array]) -> Fold | None:
        """See `TfliteKind`."""
        return fold(found, layer, shifts)

    def split(self, editor: Editor, fold: Fold, layer: Layer, part: Replacement) -> tuple[str, ...]:
        """Convolutions in a row, the first one on the input as it was, the last one with all that was behind it."""
        if not part.structure.ranks:
            return editor.reweigh(fold, layer, part)
        last = editor.over_all_channels(fold)
        dense, name, number = editor.tensor(fold, last.inputs[1]), fold.op.output, fold.op.subgraph
        *others, end = kernels_of(layer, part)
        x, written = last.inputs[0], []
        # Of a kernel that is taken apart they are ones: anything else is refused.
        scales = fold.columns if part.structure.of_a_matrix else np.ones(1)
        for stage, kernel in others:
            own = _Along.of(stage, layer, dense)
            thin = editor.latent(fold, stage.rows, own.untaken)
            weight = (_matrix(kernel) * scales).astype(np.float32).reshape(stage.rows, *own.sizes, -1)
            if stage.geometry.groups == 1:
                first = copy.deepcopy(last)
            else:
                first, weight = editor.depthwise(number, last), np.moveaxis(weight, 0, -1).reshape(1, *own.sizes, -1)
            constant = editor.constant(number, dense, weight, f"{name}/{stage.role}")
            first.inputs = [x, constant, editor.bias(number, dense, None, stage.rows, f"{name}/zeros")]
            first.outputs = [thin]
            without_activation(first)
            own.set_steps(first)
            written.append(editor.insert(fold, first))
            x, scales = thin, np.ones(1)
        stage, kernel = end
        own = _Along.of(stage, layer, dense)
        weight = (_matrix(kernel) * fold.rows[:, None]).astype(np.float32).reshape(stage.rows, *own.sizes, -1)
        bias = editor.bias(number, dense, fold.bias(layer, part), layer.out_features, f"{name}/bias")
        last.inputs = [x, editor.constant(number, dense, weight, f"{name}/{stage.role}"), bias]
        own.set_steps(last)
        return (*written, name)


def _matrix(kernel: Array) -> Array:
    """(out, places · in) of a kernel (out, in, *sizes)."""
    return np.ascontiguousarray(np.moveaxis(kernel, 1, -1)).reshape(len(kernel), -1)


@dataclass(frozen=True)
class _Along:
    """How one of several operators goes over the two axes of an operator's input.

    Attributes:
        sizes: of its kernel.
        steps: strides and steps between places along each axis; None for those of the operator.
        untaken: axes along which it gives as many places as it takes.
    """

    sizes: tuple[int, ...]
    steps: tuple[tuple[int, ...], tuple[int, ...]] | None
    untaken: tuple[int, ...]

    @classmethod
    def of(cls, stage: Stage, layer: Layer, dense: Any) -> _Along:
        """Of a stage, where the operator's kernel is like `dense`: a layer of one axis has two there."""
        own, both = stage.geometry, (1, 1)
        if replace(own, groups=1) == geometry_of(layer):
            return cls(tuple(dense.shape[1:-1]), None, ())
        if {*own.kernel, *own.strides} == {1}:
            return cls(both, (both, both), (0, 1))
        return cls(own.kernel, (own.strides, own.dilations), tuple(a for a, size in enumerate(own.kernel) if size == 1))

    def set_steps(self, operator: Any) -> None:
        """Give an operator its strides, and the steps between its places."""
        if self.steps is None:
            return
        options, (strides, dilations) = operator.builtinOptions, self.steps
        options.strideH, options.strideW = strides
        options.dilationHFactor, options.dilationWFactor = dilations
