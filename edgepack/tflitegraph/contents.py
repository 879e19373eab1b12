"""What a .tflite file holds: its operators by name, its constants, the bytes of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgepack.tflitegraph.tables import (
    DTYPES,
    constant,
    graphs,
    op_name,
    raw_bytes,
    read_file,
    scales_of,
    shape_of,
)
from edgepack.types import Array


def operators(path: Path | str) -> list[str]:
    """Names of all operators, in order of execution.

    Raises:
        ModelError: missing, empty, truncated or foreign file.
    """
    return read_file(
        path, lambda m: [op_name(m, g.Operators(i)) for _, g in graphs(m) for i in range(g.OperatorsLength())]
    )


def weight_bytes(path: Path | str) -> int:
    """Bytes of all constant tensors of two or more dimensions: the weights, without biases, scales and shapes.

    Raises:
        ModelError: missing, empty, truncated or foreign file.
    """
    return read_file(path, _weight_bytes)


def _weight_bytes(model: Any) -> int:
    seen: dict[int, int] = {}
    for _, graph in graphs(model):
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            raw = raw_bytes(model, tensor) if len(shape_of(tensor)) >= 2 else None
            if raw is not None:
                seen[int(tensor.Buffer())] = raw.size
    return sum(seen.values())


def constant_vectors(path: Path | str) -> list[Array]:
    """Every numeric constant along one axis, all others 1, as float64 vector; quantized ones scaled back.

    Raises:
        ModelError: not a TFLite file, or a damaged one.
    """
    return list(read_file(path, _constant_vectors))


def _constant_vectors(model: Any) -> list[Array]:
    found: dict[tuple[int, int], Array] = {}
    for index, graph in graphs(model):
        for position in range(graph.TensorsLength()):
            tensor = graph.Tensors(position)
            shape = shape_of(tensor)
            if not shape or tensor.Type() not in DTYPES or int(np.prod(shape)) != max(shape):
                continue
            value = constant(model, tensor)
            if value is not None:
                scales, _ = scales_of(tensor)
                found[index, position] = value.reshape(-1).astype(np.float64) * (scales if scales.size else 1.0)
    return list(found.values())
