"""Recurrent layers in TFLite: the runtime's fused LSTM operators, in which every gate has tensors of its own.

Low-rank factors are a FULLY_CONNECTED in front of the same operator, whose gates take what that gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.backends.tflite.kinds.kind import Operands
from edgepack.backends.tflite.matching import Fold, Found, Wanted, bias_of
from edgepack.backends.tflite.schemes import FP32, INT8_DYNAMIC, INT8_STATIC
from edgepack.model.kinds.recurrent import units_of
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.structure import Structure
from edgepack.model.types import Array

if TYPE_CHECKING:
    from edgepack.backends.tflite.rewrite import Editor

GATES = 4
"""Input, forget, cell and output gate, each with tensors of its own."""
PER_DIRECTION = 17
"""Inputs of a direction: weights, three of the cell for its gates, biases, weights and bias of a projection."""
_BIASES = 2 * GATES + 3
_ORDER = (0, 2, 3, 1)
"""Of these gates, where they stand in a layer: as in ONNX."""


@dataclass(frozen=True)
class Operator:
    """An operator of the schema.

    Its inputs are x, those of each direction, the two states of each, and some more.

    Attributes:
        options: its table there, without the ending.
        fields: that are set in it whatever the layer.
        directions: one or two.
        more: inputs behind the states.
    """

    name: str
    options: str
    fields: Mapping[str, bool]
    directions: int
    more: int

    def gates(self, start: int) -> tuple[int, ...]:
        """Which of its inputs belong to the gates of all directions, from a place in each direction on."""
        return tuple(1 + PER_DIRECTION * way + start + gate for way in range(self.directions) for gate in range(GATES))

    @property
    def operands(self) -> Operands:
        """Its input, and what that is multiplied by."""
        return Operands(0, self.gates(0), self.gates(_BIASES))


FUSED: Mapping[str, Operator] = {
    operator.name: operator
    for operator in (
        Operator("UNIDIRECTIONAL_SEQUENCE_LSTM", "UnidirectionalSequenceLSTM", {}, 1, 0),
        Operator("BIDIRECTIONAL_SEQUENCE_LSTM", "BidirectionalSequenceLSTM", {"mergeOutputs": True}, 2, 9),
    )
}
"""By name."""


def operator_for(directions: int) -> Operator:
    """The one of so many directions."""
    return next(each for each in FUSED.values() if each.directions == directions)


class TfliteRecurrentKind:
    """See `TfliteKind`. GRU and RNN come out unrolled: they have no operator."""

    operators: Mapping[str, Operands] = {name: operator.operands for name, operator in FUSED.items()}

    def matrix(self, operator: str, weight: Array) -> Array | None:
        """See `TfliteKind`."""
        return weight if weight.ndim == 2 else None

    def laid_out(self, layer: Layer, matrix: Array) -> Array:
        """As it is."""
        return matrix

    def refuses(self, layer: Layer, structure: Structure, scheme: Scheme) -> str | None:
        """See `TfliteKind`."""
        operator = layer.geometry.operator
        if operator != "LSTM":
            return None if structure.is_dense else f"a recurrent layer of {operator} is unrolled in a TFLite file"
        if structure.is_constexpr:
            return "a recurrent layer is not written in code"
        if scheme not in (FP32, INT8_DYNAMIC, INT8_STATIC):
            return f"a recurrent layer has 8 bits and integer products in LiteRT, or neither, not {scheme}"
        return None

    def wanted(self, layer: Layer, part: Replacement | None) -> tuple[Wanted, ...]:
        """The weights of all gates, or those behind the ones in front of them."""
        if layer.geometry.operator != "LSTM":
            return ()
        if part is None:
            return (Wanted(layer.name, by_gates(layer, layer.weight), layer.uses),)
        front, behind = (Wanted(f"{layer.name}\0{role}", part.tensors[role], layer.uses) for role in "BA")
        return front, Wanted(behind.name, by_gates(layer, behind.weight), layer.uses)

    def fold(self, found: Found, layer: Layer, shifts: Mapping[int, Array]) -> Fold | None:
        """Nothing is folded into it. Its biases are those of input and state together."""
        plain = found.sure and found.plain_columns and bool((found.rows == 1.0).all())
        return Fold(found.op, found.rows, found.columns, found.rows, None) if plain else None

    def split(self, editor: Editor, fold: Fold, layer: Layer, part: Replacement) -> tuple[str, ...]:
        """A product in front of the operator, which has other weights and the same states."""
        operator, operands = editor.operator(fold), self.operators[fold.op.op]
        dense, name, number = operator.inputs[operands.weights[0]], fold.op.output, fold.op.subgraph
        like, thin = editor.tensor(fold, dense), editor.latent(fold, part.rank)
        front = editor.constant(number, like, part.B.astype(np.float32), f"{name}/B")
        written = editor.insert(fold, editor.fully_connected(number, [operator.inputs[operands.x], front, -1], thin))
        operator.inputs[operands.x] = thin
        change = bias_of(part.bias, layer) - bias_of(layer.bias, layer)
        of_both = np.zeros(len(change)) if fold.op.bias is None else fold.op.bias
        biases = (of_both + by_gates(layer, change[:, None])[:, 0]).astype(np.float32)
        weights = by_gates(layer, part.A).astype(np.float32)
        for role, places, values in (("A", operands.weights, weights), ("bias", operands.biases, biases)):
            for place, gate in zip(places, np.split(values, len(places)), strict=True):
                operator.inputs[place] = editor.constant(number, like, np.ascontiguousarray(gate), f"{name}/{role}")
        return written, name


def by_gates(layer: Layer, rows: Array) -> Array:
    """Rows of an LSTM (directions · gates · units, n), the gates of each direction in the order of the operators."""
    gates = rows.reshape(-1, GATES, units_of(layer), rows.shape[1])
    return np.ascontiguousarray(gates[:, _ORDER]).reshape(rows.shape)
