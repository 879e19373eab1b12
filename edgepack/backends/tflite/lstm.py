"""The runtime's fused LSTM operators: where their weights stand, and how those get 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.backends.tflite.file import File, Writing, drop_codes, drop_unused, packed, text, whole
from edgepack.quantize.grids import quantize_weight

GATES = 4
"""Input, forget, cell and output gate, each with tensors of its own."""
ABSENT = -1
"""Stands for an input that is left out."""
_WEIGHTS = 2 * GATES
"""Of a direction: of the input, then of the state, by gates."""
_PER_DIRECTION = 17
"""Inputs of a direction: weights, three of the cell for its gates, biases, weights and bias of a projection."""
_HYBRID_VERSION = 2
_FLOAT, _INT8 = 0, 9  # schema.fbs, TensorType


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

    @property
    def weights(self) -> tuple[int, ...]:
        """Which of its inputs are matrices."""
        starts = [1 + _PER_DIRECTION * direction for direction in range(self.directions)]
        return tuple(start + at for start in starts for at in range(_WEIGHTS))


OPERATORS: Mapping[str, Operator] = {
    operator.name: operator
    for operator in (
        Operator("UNIDIRECTIONAL_SEQUENCE_LSTM", "UnidirectionalSequenceLSTM", {}, 1, 0),
        Operator("BIDIRECTIONAL_SEQUENCE_LSTM", "BidirectionalSequenceLSTM", {"mergeOutputs": True}, 2, 9),
    )
}
"""By name."""


def operator_for(directions: int) -> Operator:
    """The one of so many directions."""
    return next(each for each in OPERATORS.values() if each.directions == directions)


def in_int8(path: Path) -> None:
    """Give the fused operators of a file weights of 8 bits, in place: a symmetric grid a gate, as kernels want it.

    What they multiply by these is rounded to 8 bits at run time; all else of them stays in float32. Those that have no
    float32 for every gate, or a projection, stay as they are.
    """
    model = whole(path)
    if not any(_operator(model, op) for graph in model.subgraphs for op in graph.operators):
        return
    file = File(model)
    for number, graph in enumerate(model.subgraphs):
        writing = Writing(file, number)
        for op in graph.operators:
            operator = _operator(model, op)
            if operator is not None and _is_plain(writing, operator, op):
                op.opcodeIndex = file.operator_code(operator.name, _HYBRID_VERSION)
                for at in operator.weights:
                    op.inputs[at] = _rounded(writing, op.inputs[at])
    drop_codes(model)
    drop_unused(model)
    path.write_bytes(packed(model))


def _is_plain(writing: Writing, operator: Operator, op: Any) -> bool:
    """Whether all matrices are there in float32, and no projection: kernels want all of an operator alike."""
    tensors = writing.graph.tensors
    projections = [op.inputs[_PER_DIRECTION * (way + 1) - 1] for way in range(operator.directions)]
    held = [op.inputs[at] for at in operator.weights]
    return all(at == ABSENT for at in projections) and all(
        at != ABSENT and writing.holds(at) and tensors[at].type == _FLOAT for at in held
    )


def on_states(path: Path) -> list[str]:
    """What operators write that set states or read them: a quantizer must leave these alone."""
    names = []
    for graph in whole(path).subgraphs:
        states = {at for at, tensor in enumerate(graph.tensors) if tensor.isVariable}
        touching = (op for op in graph.operators if states & {*op.inputs, *op.outputs})
        names += [text(graph.tensors[op.outputs[0]].name) for op in touching]
    return names


def _operator(model: Any, op: Any) -> Operator | None:
    from ai_edge_litert import schema_py_generated as schema

    code = model.operatorCodes[op.opcodeIndex].builtinCode
    return next((each for each in OPERATORS.values() if getattr(schema.BuiltinOperator, each.name) == code), None)


def _rounded(writing: Writing, tensor: int) -> int:
    from ai_edge_litert import schema_py_generated as schema

    matrix = writing.value(tensor)
    codes, scales = quantize_weight(matrix.reshape(1, -1))
    made = writing.tensor(matrix.shape, _INT8, "", writing.file.buffer(codes.tobytes()))
    grid = schema.QuantizationParametersT()
    grid.scale, grid.zeroPoint = scales, np.zeros(1, np.int64)
    writing.graph.tensors[made].quantization = grid
    return made
