"""Write a .tflite file's objects back: without what nothing uses, constants aligned as LiteRT's own writer has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

_ALIGNMENT = 16


def drop_unused(model: Any) -> None:
    """Remove tensors that nothing uses and buffers that no tensor holds."""
    for number, graph in enumerate(model.subgraphs):
        signatures = [s for s in model.signatureDefs or [] if s.subgraphIndex == number]
        named = [entry for s in signatures for entry in [*(s.inputs or []), *(s.outputs or [])]]
        used = {*graph.inputs, *graph.outputs, *(entry.tensorIndex for entry in named)}
        for op in graph.operators:
            used.update(index for part in _operands(op) for index in part)
        kept = sorted(used - {-1})
        new = {-1: -1, **{old: index for index, old in enumerate(kept)}}
        graph.tensors = [graph.tensors[old] for old in kept]
        graph.inputs, graph.outputs = [new[i] for i in graph.inputs], [new[i] for i in graph.outputs]
        for entry in named:
            entry.tensorIndex = new[entry.tensorIndex]
        for op in graph.operators:
            for part in _operands(op):
                part[:] = [new[index] for index in part]
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    holders = [*tensors, *(model.metadata or [])]
    others = set(model.metadataBuffer) if model.metadataBuffer is not None else set()
    kept = sorted({0, *others, *(holder.buffer for holder in holders)})
    moved = {old: index for index, old in enumerate(kept)}
    model.buffers = [model.buffers[old] for old in kept]
    for holder in holders:
        holder.buffer = moved[holder.buffer]
    if model.metadataBuffer is not None:
        model.metadataBuffer = [moved[old] for old in model.metadataBuffer]


def _operands(operator: Any) -> Iterable[list[int]]:
    for part in (operator.inputs, operator.outputs, operator.intermediates):
        if part is not None:
            yield part


def packed(model: Any) -> bytes:
    """The file, constants at multiples of 16 bytes."""
    import flatbuffers

    class Aligned(flatbuffers.Builder):  # type: ignore[misc]
        def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:
            return super().StartVector(elemSize, numElems, max(alignment, _ALIGNMENT if numElems >= 64 else 1))

    size = 0
    for buffer in model.buffers:
        if buffer.data is not None and not isinstance(buffer.data, np.ndarray):
            buffer.data = np.frombuffer(buffer.data, np.uint8)  # anything else is packed byte by byte
        size += 0 if buffer.data is None else len(buffer.data)
    builder = Aligned(size + (1 << 20))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def text(name: bytes | str) -> str:
    """A name as the schema's objects hold it, before or after packing."""
    return name.decode() if isinstance(name, bytes) else name
