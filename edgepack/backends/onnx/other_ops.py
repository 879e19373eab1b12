"""Int8 weights for operators that are not linear layers: decoded once at load, computed in float as before.

The file shrinks; resident memory and time stay those of fp32. Integer kernels for these operators come from the
runtime's own quantizer (`onnx_standard`); this is the scheme for models that lose too much accuracy there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from edgepack.model.types import Array
from edgepack.quantize.grids import WEIGHT_MAX

if TYPE_CHECKING:
    import onnx_ir as ir

CHANNEL_AXES: dict[str, dict[int, tuple[int, ...]]] = {
    "Conv": {1: (0,)},
    "ConvTranspose": {1: (1,)},
    "LSTM": {1: (0, 1), 2: (0, 1)},
    "GRU": {1: (0, 1), 2: (0, 1)},
    "RNN": {1: (0, 1), 2: (0, 1)},
    "Gather": {0: (0,)},
}
"""Operator → input index of a weight → the axes that get a scale each."""

Places = frozenset[tuple[int, int]]
"""(id of a node, which of its inputs) for every one that holds a layer's weight."""

_Weight = tuple["ir.Graph", "ir.Value", tuple[int, ...], list["ir.Node"]]
"""Owning graph, initializer, its channel axes, its users."""

MIN_ELEMENTS = 1024
"""Smaller weights are not worth two nodes."""


def has_rest(model: ir.Model, layers: Places) -> bool:
    """Whether the model has weights outside of its layers. `layers`: where those of layers are."""
    return any(True for _ in _weights(model, layers))


def to_int8_weights(model: ir.Model, layers: Places) -> None:
    """Store all other weights of operators as int8, in place.

    A weight becomes Cast and Mul in front of its operator, which the runtime folds at load; an embedding table is
    gathered as int8 rows and scaled after.
    """
    for graph, value, axes, users in list(_weights(model, layers)):
        tensor = value.const_value
        if tensor is None:
            continue
        if all(node.op_type == "Gather" for node in users):
            to_int8_rows(graph, value, value.name or "table")
        else:
            _decoded(graph, value, *_grid(tensor.numpy(), axes))


def to_int8_rows(graph: ir.Graph, table: ir.Value, name: str) -> None:
    """Store a float table that only Gather reads, row by row, as int8 rows with a scale each, in place.

    Args:
        name: of the codes and the scales, before their suffixes.
    """
    if table.const_value is None or table.name is None:
        return
    codes, scales = _grid(table.const_value.numpy(), CHANNEL_AXES["Gather"][0])
    q, s = add_initializer(graph, f"{name}.int8", codes), add_initializer(graph, f"{name}.scale", scales)
    for node, _ in list(table.uses()):
        _gathered(node, name, q, s)
    if not table.uses():
        del graph.initializers[table.name]


def _weights(model: ir.Model, layers: Places) -> Iterator[_Weight]:
    """Every float initializer that only operators of `CHANNEL_AXES` use."""
    import onnx_ir as ir

    graphs = {id(graph): graph for graph in (model.graph, *model.graph.subgraphs())}
    for graph in graphs.values():
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if (
                tensor is None
                or tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
                or tensor.size < MIN_ELEMENTS
                or len(tensor.shape) < 2
            ):
                continue
            if value.is_graph_input() or value.is_graph_output():
                continue
            found = [CHANNEL_AXES.get(node.op_type, {}).get(index) for node, index in value.uses()]
            users = [node for node, _ in value.uses()]
            plain = all(node.domain == "" and (id(node), index) not in layers for node, index in value.uses())
            if users and plain and None not in found and len(set(found)) == 1 and found[0] is not None:
                if any(node.op_type == "Gather" and node.attributes.get_int("axis", 0) != 0 for node in users):
                    continue
                yield graph, value, found[0], users


def _grid(weight: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Codes of the weight's shape and scales that broadcast against it, of its type, symmetric, round to nearest."""
    others = tuple(i for i in range(weight.ndim) if i not in axes)
    peak = np.abs(weight).max(axis=others, keepdims=True).astype(np.float32)
    scales = (peak / np.float32(WEIGHT_MAX)).astype(weight.dtype)
    scales[scales == 0] = 1
    codes = np.rint(weight / scales.astype(np.float32))
    return np.clip(codes, -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8), scales


def add_initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """A new constant of a graph."""
    import onnx_ir as ir

    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _node(op: str, inputs: list[ir.Value], name: str, **attributes: int) -> tuple[ir.Node, ir.Value]:
    import onnx_ir as ir

    made = ir.node(op, inputs, attributes=attributes, name=name)
    made.outputs[0].name = name
    return made, made.outputs[0]


def _type(scales: ir.Value) -> int:
    """In which codes are multiplied by them, as Cast has it."""
    import onnx_ir as ir

    return int(scales.dtype or ir.DataType.FLOAT)


def _decoded(graph: ir.Graph, value: ir.Value, codes: Array, scales: Array) -> None:
    name = value.name or "weight"
    q, s = add_initializer(graph, f"{name}.int8", codes), add_initializer(graph, f"{name}.scale", scales)
    cast, wide = _node("Cast", [q], f"{name}.wide", to=_type(s))
    mul, weight = _node("Mul", [wide, s], f"{name}.decoded")
    value.replace_all_uses_with(weight)
    del graph.initializers[name]
    graph.insert_before(graph[0], [cast, mul])


def _gathered(node: ir.Node, name: str, q: ir.Value, s: ir.Value) -> None:
    if node.graph is None:
        return
    indices, out = node.inputs[1], node.outputs[0]
    label = out.name or name
    rows, row_codes = _node("Gather", [q, indices], f"{label}.int8")  # type: ignore[list-item]
    steps, row_scales = _node("Gather", [s, indices], f"{label}.scale")  # type: ignore[list-item]
    cast, wide = _node("Cast", [row_codes], f"{label}.wide", to=_type(s))
    mul, decoded = _node("Mul", [wide, row_scales], f"{label}.decoded")
    node.graph.insert_before(node, [rows, steps, cast, mul])
    decoded.type, decoded.shape = out.type, out.shape
    decoded.name, out.name = out.name, None
    out.replace_all_uses_with(decoded, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)
