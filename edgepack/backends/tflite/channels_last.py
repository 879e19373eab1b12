"""Images at the inputs of a file with channels last: the transpose at its start goes, the input has its order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgepack.backends.tflite.decoded import operator_name
from edgepack.backends.tflite.file import drop_codes, drop_unused, objects, packed, text

_TURN = [0, 2, 3, 1]


def take_channels_last(path: Path) -> tuple[str, ...]:
    """Let a file, in place, take images with their channels last where that spares a transpose.

    An input is left as it is where anything but such a transpose reads it, and where its sides are so alike that the
    order could not be told by a shape.

    Args:
        path: of a file in float32 or in integers.

    Returns:
        Names of the inputs that changed.
    """
    model = objects(path.read_bytes())
    if not model.signatureDefs or len(model.subgraphs) > 1:
        return ()
    graph, names = model.subgraphs[0], []
    for entry in model.signatureDefs[0].inputs:
        ends = _turned(model, graph, entry.tensorIndex)
        if ends is None:
            continue
        quantized, turns = ends
        for tensor in {entry.tensorIndex, quantized}:
            held = graph.tensors[tensor]
            held.shape = [held.shape[axis] for axis in _TURN]
            if held.shapeSignature is not None and len(held.shapeSignature):
                held.shapeSignature = [held.shapeSignature[axis] for axis in _TURN]
        gone = {int(op.outputs[0]) for op in turns}
        graph.operators = [op for op in graph.operators if not any(op is turn for turn in turns)]
        for op in graph.operators:
            op.inputs = [quantized if int(each) in gone else int(each) for each in op.inputs]
        names.append(text(entry.name))
    if names:
        drop_codes(model)
        drop_unused(model)
        path.write_bytes(packed(model))
    return tuple(names)


def _turned(model: Any, graph: Any, tensor: int) -> tuple[int, list[Any]] | None:
    """What every reader of an input, or of its integers, turns to channels last, and these readers; None where there is
    another one."""
    shape = graph.tensors[tensor].shape
    if shape is None or len(shape) != len(_TURN) or len({int(side) for side in shape[1:]}) == 1:
        return None
    ends = {int(each) for each in graph.outputs}
    readers = [op for op in graph.operators if tensor in {int(each) for each in op.inputs}]
    if len(readers) == 1 and operator_name(model, readers[0]) == "QUANTIZE":
        tensor = int(readers[0].outputs[0])
        readers = [op for op in graph.operators if tensor in {int(each) for each in op.inputs}]
    turns = all(_is_turn(model, graph, op) and int(op.outputs[0]) not in ends for op in readers)
    return (tensor, readers) if readers and turns and tensor not in ends else None


def _is_turn(model: Any, graph: Any, op: Any) -> bool:
    if operator_name(model, op) != "TRANSPOSE":
        return False
    data = model.buffers[graph.tensors[op.inputs[1]].buffer].data
    return data is not None and np.frombuffer(bytes(data), np.int32).tolist() == _TURN
