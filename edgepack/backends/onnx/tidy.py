"""Takes out of a model what no runtime needs: long names inside of it, notes, and what is said twice."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from string import ascii_letters
from typing import TYPE_CHECKING

from edgepack.backends.onnx.tensors import all_graphs

if TYPE_CHECKING:
    import onnx_ir as ir


def tidy(model: ir.Model) -> None:
    """Make the file of a model small, in place; what it computes stays the same, to the bit.

    Values between nodes get short names and nodes none, their notes go, and vectors and numbers of equal content are
    stored once, under short names as well. Inputs, outputs, matrices and what is decoded to one at load keep their
    names: by those people and proofs find them. The model's own notes stay, too, which applications read.
    """
    for graph in all_graphs(model):
        _share_vectors(graph)
    outside = {value for graph in all_graphs(model) for value in (*graph.inputs, *graph.initializers.values())}
    outside.update(model.graph.outputs, *map(_folded, all_graphs(model)))
    for function in model.functions.values():
        outside.update(function.outputs)
    names = _unused({value.name for value in outside if value.name} | _constants(model))
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if not value.is_graph_input() and not value.is_graph_output():
                value.type = value.shape = None  # the tensor says so itself
        for value in _vectors(graph):
            value.name = next(names)
        for node in graph:
            node.name, node.doc_string = None, None
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
                if value.name and value not in outside and node.op_type != "Constant":
                    value.name = next(names)


def _folded(graph: ir.Graph) -> Iterator[ir.Value]:
    """What a runtime computes of constants alone and puts into its graph under this name."""
    constant = set(graph.initializers.values())
    for node in graph:
        if node.inputs and all(value in constant for value in node.inputs):
            constant.update(node.outputs)
    for value in constant:
        if value.producer() is not None and not all(set(node.outputs) <= constant for node, _ in value.uses()):
            yield value


def _constants(model: ir.Model) -> set[str]:
    nodes = (node for graph in all_graphs(model) for node in graph if node.op_type == "Constant")
    return {value.name for node in nodes for value in node.outputs if value.name}


def _unused(taken: set[str]) -> Iterator[str]:
    """a … Z, then aa, ba …, but for those that are taken."""
    return (name for name in map(_name, count()) if name not in taken)


def _name(number: int) -> str:
    name = ascii_letters[number % len(ascii_letters)]
    return name if number < len(ascii_letters) else name + _name(number // len(ascii_letters) - 1)


def _share_vectors(graph: ir.Graph) -> None:
    """Matrices are left alone: each belongs to its layer, and is looked for under its name."""
    known: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
    for value in _vectors(graph):
        tensor = value.const_value
        if tensor is None or value.name is None:
            continue
        key = tensor.dtype.name, tuple(tensor.shape.numpy()), tensor.tobytes()
        first = known.setdefault(key, value)
        if first is not value:
            value.replace_all_uses_with(first)
            del graph.initializers[value.name]


def _vectors(graph: ir.Graph) -> list[ir.Value]:
    """Constants of at most one axis, but for those that are inputs or outputs as well."""
    return [
        value
        for value in graph.initializers.values()
        if value.const_value is not None
        and len(value.const_value.shape) <= 1
        and not value.is_graph_input()
        and not value.is_graph_output()
    ]
