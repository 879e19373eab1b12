"""The convolutions of a TFLite file as products of matrices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgepack.backends.tflite.read import graphs, op_name, read_file, shape_of
from edgepack.model.structure import Op, patches


def convolutions(path: Path) -> tuple[Op, ...]:
    """See `Backend.convolutions`."""
    return read_file(path, lambda model: tuple(_products(model)))


def _products(model: Any) -> Iterator[Op]:
    for _, graph in graphs(model):
        for index in range(graph.OperatorsLength()):
            operator = graph.Operators(index)
            name = op_name(model, operator)
            if name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
                given, *kernel, last = shape_of(graph.Tensors(operator.Inputs(1)))
                _, *places, outputs = shape_of(graph.Tensors(operator.Outputs(0)))
                channels = shape_of(graph.Tensors(operator.Inputs(0)))[-1]
                if name == "CONV_2D":
                    yield from patches(given, last, kernel, places, max(channels // last, 1))
                else:  # of a single channel it is a convolution as any other
                    yield from patches(outputs, 1, kernel, places, max(channels, 1))
