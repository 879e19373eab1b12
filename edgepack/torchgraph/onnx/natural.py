"""Numbers that are known not to be negative: as places in a table they need no counting from the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgepack.torchgraph.onnx.node import Node
from edgepack.torchgraph.onnx.scope import Value

_ALWAYS = frozenset(
    ("Abs", "ArgMax", "ArgMin", "Hardmax", "NonZero", "OneHot", "Relu", "Shape", "Sigmoid", "Size", "Softmax")
)
_AS_FIRST = frozenset(
    (
        *("Cast", "Ceil", "Floor", "Round", "Identity", "Dropout", "CumSum", "TopK", "Compress"),
        *("Expand", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
        *("Gather", "GatherElements", "GatherND", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"),
    )
)
"""Whose results are made of what their first input holds."""
_AS_ALL = frozenset(("Add", "Concat", "Div", "Mean", "Min", "Mul", "Sum"))
_UNSIGNED = (torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
_NARROW = (torch.int8, torch.int16)
"""In which larger numbers become negative."""


def is_natural(value: Value | None) -> bool:
    """Whether no element is known to be negative."""
    if value is None:
        return False
    if value.slot is not None:
        return value.natural
    return value.tensor.dtype in _UNSIGNED or bool((value.tensor >= 0).all())


def naturals(node: Node, given: Sequence[Value | None], results: Sequence[Tensor]) -> list[bool]:
    """Which of a node's results are natural."""
    known = [is_natural(value) for value in given]
    match node.operator:
        case "TopK":
            found = [known[0], True]
        case "Where":
            found = [all(known[1:])]
        case "Max":
            found = [any(known)]
        case "Mod":
            found = [known[1] and (known[0] or not node.attributes.get("fmod", 0))]
        case "Clip":
            least = known[1:2] == [True] or float(node.attributes.get("min", -1)) >= 0
            most = given[2:3] in ([], [None]) or known[2]
            found = [(known[0] or least) and most and float(node.attributes.get("max", 0)) >= 0]
        case name if name in _AS_ALL:
            found = [all(known)]
        case name:
            found = [name in _ALWAYS or (name in _AS_FIRST and known[:1] == [True])]
    found += found[-1:] * (len(results) - len(found))
    return [
        tensor.dtype in _UNSIGNED or (each and tensor.dtype not in _NARROW)
        for each, tensor in zip(found, results, strict=False)
    ]
