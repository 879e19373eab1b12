"""Recurrent layers in TFLite: the runtime's fused LSTM operators, in which every gate has tensors of its own, and GRUs
as one product over all steps in front of a loop.

Low-rank factors are a FULLY_CONNECTED in front of the fused operator, whose gates take what that gives, or two of them
in the place of the product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgepack.backends.tflite.kinds.kind import Operands
from edgepack.backends.tflite.kinds.linear import TfliteLinearKind
from edgepack.backends.tflite.matching import Fold, Found, Wanted, bias_of
from edgepack.backends.tflite.schemes import FP32, INT8_DYNAMIC, INT8_STATIC
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.kinds.recurrent import units_of
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.structure import Structure
from edgepack.model.types import Array
from edgepack.torchgraph.recurrent import ORDER

if TYPE_CHECKING:
    from edgepack.backends.tflite.rewrite import Editor

GATES = 4
"""Input, forget, cell and output gate, each with tensors of its own."""
PER_DIRECTION = 17
"""Inputs of a direction: weights, three of the cell for its gates, biases, weights and bias of a projection."""
STATES = 2
"""Of a direction: its output and its cell."""
_BIASES = 2 * GATES + 3
_BESIDE = (*range(2 * GATES, _BIASES), *range(_BIASES + GATES, PER_DIRECTION))
"""Weights of the cell for its gates, and those of a projection."""


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

    @property
    def matrices(self) -> tuple[int, ...]:
        """Which of its inputs multiply x or the state."""
        return (*self.gates(0), *self.gates(GATES))

    @property
    def states(self) -> range:
        """Which of its inputs are what it keeps from one step to the next."""
        first = 1 + PER_DIRECTION * self.directions
        return range(first, first + STATES * self.directions)

    def is_plain(self, inputs: Sequence[int]) -> bool:
        """Whether an operator with these inputs has all gates, and none of what such operators may have beside them:
        weights of the cell for its gates, projections, norms, a second input."""
        if len(inputs) < self.states.stop:
            return False
        beside = [1 + PER_DIRECTION * way + place for way in range(self.directions) for place in _BESIDE]
        others = [inputs[place] for place in beside] + [*inputs[self.states.stop :]]
        return all(inputs[place] >= 0 for place in self.matrices) and all(tensor < 0 for tensor in others)


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


_LINEAR = TfliteLinearKind()


class TfliteRecurrentKind:
    """See `TfliteKind`. RNN comes out unrolled: it has no operator, and no loop."""

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
        if operator not in _FILED:
            return None if structure.is_dense else f"a recurrent layer of {operator} is unrolled in a TFLite file"
        if structure.is_constexpr:
            return "a recurrent layer is not written in code"
        if operator == "GRU":
            return _LINEAR.refuses(layer, structure, scheme)
        if scheme not in (FP32, INT8_DYNAMIC, INT8_STATIC):
            return f"a recurrent layer has 8 bits and integer products in LiteRT, or neither, not {scheme}"
        return None

    def wanted(self, layer: Layer, part: Replacement | None) -> tuple[Wanted, ...]:
        """The weights of all gates, or those behind the ones in front of them."""
        if layer.geometry.operator not in _FILED:
            return ()
        return _LINEAR.wanted(_as_filed(layer), None if part is None else _part_as_filed(layer, part))

    def fold(self, found: Found, layer: Layer, shifts: Mapping[int, Array]) -> Fold | None:
        """Nothing is folded into a fused operator. Its biases are those of input and state together."""
        if layer.geometry.operator == "GRU":
            return _LINEAR.fold(found, _as_filed(layer), shifts)
        plain = found.sure and found.plain_columns and bool((found.rows == 1.0).all())
        return Fold(found.op, found.rows, found.columns, found.rows, None) if plain else None

    def split(self, editor: Editor, fold: Fold, layer: Layer, part: Replacement) -> tuple[str, ...]:
        """The operator with other weights and the same states, for low-rank factors behind a product."""
        layer, part = _as_filed(layer), _part_as_filed(layer, part)
        if fold.op.op not in FUSED:
            return _LINEAR.split(editor, fold, layer, part)
        operator, operands = editor.operator(fold), self.operators[fold.op.op]
        dense, name, number = operator.inputs[operands.weights[0]], fold.op.output, fold.op.subgraph
        like, is_pair = editor.tensor(fold, dense), part.structure.is_low_rank
        written: tuple[str, ...] = (name,)
        if is_pair:
            thin = editor.latent(fold, part.rank)
            front = editor.constant(number, like, part.B.astype(np.float32), f"{name}/B")
            product = editor.fully_connected(number, [operator.inputs[operands.x], front, -1], thin)
            written = editor.insert(fold, product), name
            operator.inputs[operands.x] = thin
        change = bias_of(part.bias, layer) - bias_of(layer.bias, layer)
        biases = (change if fold.op.bias is None else fold.op.bias + change).astype(np.float32)
        weights = (part.A if is_pair else part.weight).astype(np.float32)
        for role, places, values in (("A", operands.weights, weights), ("bias", operands.biases, biases)):
            for place, gate in zip(places, np.split(values, len(places)), strict=True):
                operator.inputs[place] = editor.constant(number, like, np.ascontiguousarray(gate), f"{name}/{role}")
        return written


_FILED = ("LSTM", "GRU")
"""Those of which a file has the matrix of a layer."""


def _as_filed(layer: Layer) -> Layer:
    """The product of a layer, its gates in the order of a file: that of torch."""
    bias = None if layer.bias is None else _by_gates(layer, layer.bias)
    return linear_layer(layer.name, _by_gates(layer, layer.weight), bias, uses=layer.uses)


def _part_as_filed(layer: Layer, part: Replacement) -> Replacement:
    tensors = {role: tensor if role == "B" else _by_gates(layer, tensor) for role, tensor in part.tensors.items()}
    return replace(part, tensors=tensors, bias=None if part.bias is None else _by_gates(layer, part.bias))


def _by_gates(layer: Layer, rows: Array) -> Array:
    """Rows (directions · gates · units, …) of a layer, the gates of each direction in the order of a file."""
    order = ORDER[layer.geometry.operator]
    gates = rows.reshape(-1, len(order), units_of(layer), *rows.shape[1:])
    return np.ascontiguousarray(gates[:, order]).reshape(rows.shape)


def of_gates(rows: Array, units: int) -> Array:
    """Rows of a fused operator's gates in the order of a layer."""
    gates = rows.reshape(-1, GATES, units, *rows.shape[1:])
    return np.ascontiguousarray(gates[:, np.argsort(ORDER["LSTM"])]).reshape(rows.shape)
