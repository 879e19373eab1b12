"""Linear layers in TFLite: FULLY_CONNECTED, a constant matrix of BATCH_MATMUL, CONV_2D of 1×1 kernels."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.backends.tflite.kinds.kind import Operands
from edgepack.backends.tflite.matching import Fold, Found, Wanted, fold
from edgepack.backends.tflite.schemes import INT4_DYNAMIC
from edgepack.model.kinds import kind_of
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.structure import Structure
from edgepack.model.types import Array

if TYPE_CHECKING:
    from edgepack.backends.tflite.rewrite import Editor


class TfliteLinearKind:
    """See `TfliteKind`."""

    operators: Mapping[str, Operands] = {
        "FULLY_CONNECTED": Operands(0, (1,), (2,)),
        "CONV_2D": Operands(0, (1,), (2,)),
        "BATCH_MATMUL": Operands(0, (1,)),
    }

    def matrix(self, operator: str, weight: Array) -> Array | None:
        """See `TfliteKind`."""
        if operator == "CONV_2D":
            if weight.shape[1:3] != (1, 1):
                return None
            weight = weight.reshape(weight.shape[0], weight.shape[3])
        return weight if weight.ndim == 2 else None

    def laid_out(self, layer: Layer, matrix: Array) -> Array:
        """As it is."""
        return matrix

    def refuses(self, layer: Layer, structure: Structure, scheme: Scheme) -> str | None:
        """See `TfliteKind`."""
        if scheme != INT4_DYNAMIC:
            return None
        operator = "CONV_2D" if layer.geometry.operator == "Conv" else "FULLY_CONNECTED"
        ops = kind_of(layer).ops(layer, structure, 1)
        odd = next((op for op in ops if not takes_int4(operator, op.columns)), None)
        return None if odd is None else f"LiteRT has no fast 4-bit kernel for {operator} with {odd.columns} inputs"

    def wanted(self, layer: Layer, part: Replacement | None) -> tuple[Wanted, ...]:
        """The weight, or the two thin ones."""
        if part is None:
            return (Wanted(layer.name, layer.weight, layer.uses),)
        return tuple(Wanted(f"{layer.name}\0{role}", part.tensors[role], layer.uses) for role in "BA")

    def fold(self, found: Found, layer: Layer, shifts: Mapping[int, Array]) -> Fold | None:
        """See `TfliteKind`."""
        return fold(found, layer, shifts)

    def split(self, editor: Editor, fold: Fold, layer: Layer, part: Replacement) -> tuple[str, ...]:
        """Two operators, the second with all that the dense one had behind its product."""
        if not part.structure.ranks:
            return editor.reweigh(fold, layer, part)
        return _in_two(editor, fold, layer, part)


def _in_two(editor: Editor, fold: Fold, layer: Layer, part: Replacement) -> tuple[str, ...]:
    """Two operators in the place of one: the first takes its input as it did, the second has all that was behind it. A
    first one that other layers have as well is there once.

    Returns:
        The names of the tensors that they write.
    """
    second = editor.operator(fold)
    dense = editor.tensor(fold, second.inputs[1])
    point = (1,) * (len(dense.shape) - 2)
    a = (part.A * fold.rows[:, None]).astype(np.float32).reshape(layer.out_features, *point, part.rank)
    name, number = fold.op.output, fold.op.subgraph
    key = (number, fold.op.input_index, part.B.shape, part.B.tobytes()) if part.structure.is_shared else None
    thin = None if key is None else editor.latents.get(key)
    if thin is None:
        b = (part.B * fold.columns).astype(np.float32).reshape(part.rank, *point, -1)
        first = copy.deepcopy(second)
        thin = editor.latent(fold, part.rank)
        weight = editor.constant(number, dense, b, f"{name}/B")
        first.inputs = [second.inputs[0], weight, editor.bias(number, dense, None, part.rank, f"{name}/zeros")]
        first.outputs = [thin]
        without_activation(first)
        editor.insert(fold, first)
        if key is not None:
            editor.latents[key] = thin
    bias = editor.bias(number, dense, fold.bias(layer, part), layer.out_features, f"{name}/bias")
    second.inputs = [thin, editor.constant(number, dense, a, f"{name}/A"), bias]
    return editor.name(fold, thin), name


def takes_int4(operator: str, columns: int) -> bool:
    """Whether the runtime has a fast kernel for 4-bit weights of this operator.

    XNNPACK takes FULLY_CONNECTED with an even number of columns. All else runs in LiteRT's own kernels, which unpack
    the weights at every inference and are slower than with 8 bits.
    """
    return operator == "FULLY_CONNECTED" and columns % 2 == 0


def without_activation(operator: Any) -> None:
    """Of what stands in front of another operator, which has the activation that was there."""
    if operator.builtinOptions is not None:
        operator.builtinOptions.fusedActivationFunction = 0
    operator.debugMetadataIndex = -1
