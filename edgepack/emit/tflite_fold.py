"""What a converter folded into a linear operator of a .tflite file, from the layer that it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgepack.emit.tflite_match import TOLERANCE, Found
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.tflitegraph.linear import TfliteLinear
from edgepack.types import Array

_LEAST_ROWS = 4
"""Below, a bias is too short to tell one shift from another."""


@dataclass(frozen=True, eq=False)
class Fold:
    """An operator of y = W x + b, written for other values: x = scale · x' + shift, y' = gain · y + …

    Attributes:
        op: the operator.
        rows: (out,) and columns: (in,) float64, the operator's weight is rows[:, None] · W · columns.
        gain: (out,) float64; None where it is not known, then the bias may not change.
        shift: (in,) float64 or None for zeros.
    """

    op: TfliteLinear
    rows: Array
    columns: Array
    gain: Array | None
    shift: Array | None

    def bias(self, layer: Layer, part: Replacement) -> Array | None:
        """(out,) float32: the bias of the operator with W and b replaced by the part's; None for none.

        Raises:
            ValueError: the bias changes and the gain is not known.
        """
        written = None if self.op.bias is None else self.op.bias.astype(np.float64)
        change = _vector(part.bias, layer) - _vector(layer.bias, layer)
        if self.shift is not None:
            change += _product(part, self.shift) - layer.weight.astype(np.float64) @ self.shift
        if not change.any():
            return self.op.bias
        if self.gain is None:
            raise ValueError("the gain is not known")
        changed = self.gain * change
        return np.asarray(changed if written is None else written + changed, dtype=np.float32)

    def takes(self, layer: Layer, part: Replacement) -> bool:
        """Whether `bias` is known for this part, and a rounded weight stays on its grid."""
        if part.structure.is_dense and not (self.columns == 1.0).all():
            return False
        return self.gain is not None or np.array_equal(_vector(part.bias, layer), _vector(layer.bias, layer))


def shifts_by_size(vectors: Sequence[Array]) -> dict[int, Array]:
    """(k, n) float64 by n: the vectors that may have been folded into a bias, such as a layer norm's shift."""
    groups: dict[int, list[Array]] = {}
    for vector in vectors:
        groups.setdefault(vector.size, []).append(vector.reshape(-1).astype(np.float64))
    return {size: np.stack(found) for size, found in groups.items()}


def fold(found: Found, layer: Layer, shifts: Mapping[int, Array]) -> Fold | None:
    """How the layer's bias came into the operator, None where that cannot be told from the two biases.

    With x = scale · x' + shift before the layer, gain behind it, the operator's bias is gain · (b + W shift). One
    shift is looked for among those of the model, and taken only where it gives the operator's bias.

    Args:
        found: the operator.
        layer: with its bias as the source model has it.
        shifts: from `shifts_by_size`, of the source model's constant vectors.
    """
    op, rows, columns = found.op, found.rows, found.columns
    if not found.sure:
        return None
    bias = _vector(layer.bias, layer)
    gain = rows if found.plain_columns else None
    if op.bias is None or not np.any(op.bias):
        return Fold(op, rows, columns, gain, None)
    if gain is not None and _near(op.bias, gain * bias):
        return Fold(op, rows, columns, gain, None)
    if len(bias) < _LEAST_ROWS or np.ptp(rows) > TOLERANCE * np.abs(rows).max():
        return None
    known = shifts.get(layer.in_features, np.zeros((0, layer.in_features)))
    tried = np.concatenate([np.zeros((1, layer.in_features)), known])
    shifted = bias + tried @ layer.weight.astype(np.float64).T
    squares = np.einsum("ij,ij->i", shifted, shifted)
    factors = np.divide(shifted @ op.bias.astype(np.float64), squares, out=np.zeros(len(tried)), where=squares > 0)
    errors = np.linalg.norm(factors[:, None] * shifted - op.bias, axis=1) / np.linalg.norm(op.bias)
    best = int(errors.argmin())
    if errors[best] > TOLERANCE or (gain is not None and not _near(gain[:1], factors[best : best + 1])):
        return None
    return Fold(op, rows, columns, np.full(len(bias), factors[best]), tried[best] if best else None)


def _near(have: Array, want: Array) -> bool:
    return float(np.linalg.norm(have - want)) <= TOLERANCE * float(np.linalg.norm(want))


def _product(part: Replacement, x: Array) -> Array:
    if part.structure.ranks:
        return np.asarray(part.A.astype(np.float64) @ (part.B @ x))
    return np.asarray(part.weight.astype(np.float64) @ x)


def _vector(bias: Array | None, layer: Layer) -> Array:
    return np.zeros(layer.out_features) if bias is None else bias.astype(np.float64)
