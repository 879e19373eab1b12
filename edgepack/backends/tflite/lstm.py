"""How the weights of the runtime's fused LSTM operators get 8 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.backends.tflite.file import File, Writing, drop_codes, drop_unused, packed, text, whole
from edgepack.backends.tflite.kinds.recurrent import FUSED, GATES, Operator
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array
from edgepack.quantize.grids import quantize_matrix, quantize_weight

ABSENT = -1
"""Stands for an input that is left out."""
_HYBRID_VERSION = 2
_FLOAT, _INT8 = 0, 9  # schema.fbs, TensorType


def in_int8(path: Path, scheme: Scheme, single: Mapping[str, Scheme]) -> None:
    """Give the fused operators of a file weights of 8 bits, in place: a symmetric grid a gate, as kernels want it.

    What they multiply by these is rounded to 8 bits at run time; all else of them stays in float32. Those that have no
    float32 for every gate, or more than gates, stay as they are.

    Args:
        path: the file.
        scheme: of the file; operators in float32 stay as they are.
        single: of single operators, by the name of the tensor that they write.
    """
    model = whole(path)
    file, found = File(model), False
    for number, graph in enumerate(model.subgraphs):
        writing = Writing(file, number)
        for op in graph.operators:
            operator = _operator(model, op)
            if operator is None or single.get(text(graph.tensors[op.outputs[0]].name), scheme).is_float:
                continue
            if _is_plain(writing, operator, op):
                found = True
                op.opcodeIndex = file.operator_code(operator.name, _HYBRID_VERSION)
                for places in (operator.gates(0), operator.gates(GATES)):
                    _round(writing, op, places)
    if not found:
        return
    drop_codes(model)
    drop_unused(model)
    path.write_bytes(packed(model))


def _is_plain(writing: Writing, operator: Operator, op: Any) -> bool:
    """Whether all matrices are there in float32, and nothing beside them: kernels want all of an operator alike."""
    tensors = writing.graph.tensors
    held = [op.inputs[at] for at in operator.matrices]
    return operator.is_plain(op.inputs) and all(writing.holds(at) and tensors[at].type == _FLOAT for at in held)


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
    return next((each for each in FUSED.values() if getattr(schema.BuiltinOperator, each.name) == code), None)


def _round(writing: Writing, op: Any, places: Sequence[int]) -> None:
    """Give the gates one grid where all of them lie on it, else each its own."""
    gates = [writing.value(op.inputs[at]) for at in places]
    whole_codes, scales = quantize_matrix(np.concatenate(gates))
    for at, gate, codes in zip(places, gates, np.split(whole_codes, len(gates)), strict=True):
        own, scale = (codes, scales.reshape(1)) if scales.ndim == 0 else quantize_weight(gate.reshape(1, -1))
        op.inputs[at] = _stored(writing, own.reshape(gate.shape), scale)


def _stored(writing: Writing, codes: Array, scale: Array) -> int:
    from ai_edge_litert import schema_py_generated as schema

    made = writing.tensor(codes.shape, _INT8, "", writing.file.buffer(codes.tobytes()))
    grid = schema.QuantizationParametersT()
    grid.scale, grid.zeroPoint = scale, np.zeros(1, np.int64)
    writing.graph.tensors[made].quantization = grid
    return made
