"""The convolutions of an ONNX file as products of matrices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.model.structure import Op, patches

if TYPE_CHECKING:
    import onnx


def convolutions(path: Path) -> tuple[Op, ...]:
    """See `Backend.convolutions`."""
    import onnx

    model = onnx.load(path, load_external_data=False)  # shapes are enough, and with more no message holds a large one
    del model.graph.value_info[:]  # exporters leave wrong ones
    for given in (*model.graph.input, *model.graph.output):
        for dimension in list(given.type.tensor_type.shape.dim)[:1]:
            if not dimension.dim_value:
                dimension.dim_value = 1  # an inference of one example
    inferred = onnx.shape_inference.infer_shapes(model)
    return tuple(_products(inferred.graph))


def _products(graph: onnx.GraphProto) -> Iterator[Op]:
    known = {value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.output)}
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        weight = weights.get(node.input[1]) if node.op_type == "Conv" else None
        places = [int(one.dim_value) for one in list(known.get(node.output[0], ()))[2:]]
        if weight is not None and places and all(places):
            outputs, columns, *kernel = weight
            groups = next((int(one.i) for one in node.attribute if one.name == "group"), 1)
            yield from patches(outputs, columns, kernel, places, groups)
