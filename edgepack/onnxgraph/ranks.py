"""Ranks of values that the file does not state, from shape inference, kept beside the model and never written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.onnxgraph.quiet import quiet

if TYPE_CHECKING:
    import onnx_ir as ir

_RANK = "edgepack.rank"


def known_rank(value: ir.Value | None) -> int | None:
    """Rank of a value where the model states it or `note_ranks` found it."""
    if value is None:
        return None
    rank: int | None = value.meta.get(_RANK) if value.shape is None else len(value.shape)
    return rank


def is_noted(value: ir.Value) -> bool:
    """Whether asking shape inference once more would tell nothing new."""
    return value.shape is not None or _RANK in value.meta


def note_ranks(model: ir.Model) -> None:
    """Infer shapes on a copy and note the ranks at the values of the model, whose own shapes stay as they are."""
    from onnx_ir.passes.common import ShapeInferencePass

    inferred = model.clone()
    with quiet("onnx_ir"):  # it logs what it cannot infer, which is no trouble here
        ShapeInferencePass(check_type=False, strict_mode=False)(inferred)
    for node, twin in zip(model.graph.all_nodes(), inferred.graph.all_nodes(), strict=True):
        for value, found in zip(node.outputs, twin.outputs, strict=True):
            if value.shape is None:
                value.meta[_RANK] = None if found.shape is None else len(found.shape)
