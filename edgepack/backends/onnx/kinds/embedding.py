"""Embedding tables: in blocks of 4 bits, by the operator GatherBlockQuantized of ONNX Runtime, and as low-rank factors.

Only the rows that are looked up are ever decoded, so the table stays in 4 bits in memory as well. Of a small language
model the table is most of the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgepack.backends.onnx.other_ops import MIN_ELEMENTS, add_initializer
from edgepack.backends.onnx.schemes import DOMAIN, TABLES
from edgepack.backends.onnx.values import Names, take_over
from edgepack.model.kinds.embedding import embedding_layer
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.quantize.grids import BLOCK, pack, quantize_blocks

if TYPE_CHECKING:
    import onnx_ir as ir


class OnnxEmbedding:
    """See `LookupKind`."""

    schemes: tuple[Scheme, ...] = TABLES

    def find(self, model: ir.Model) -> tuple[Layer, ...]:
        """Every float32 table that only Gather reads, row by row; small ones are not worth another operator."""
        found = {name: value for _, name, value in find_tables(model)}
        return tuple(
            embedding_layer(name, value.const_value.numpy(), len(value.uses()))
            for name, value in found.items()
            if value.const_value is not None
        )

    def refuses(self, layer: Layer, scheme: Scheme) -> str | None:
        """See `LookupKind`."""
        if scheme.granularity == "block" and layer.in_features % BLOCK:
            return f"its rows of {layer.in_features} numbers are no whole blocks of {BLOCK}"
        return None

    def replace(self, model: ir.Model, parts: Mapping[str, Replacement]) -> dict[str, tuple[str, str]]:
        """A lookup in a narrower table, a MatMul and an Add in the place of every lookup; the table is one of this kind
        again, and the product a linear layer."""
        names = Names(model)
        made = {}
        for graph, name, table in list(find_tables(model)):
            if name in parts:
                made[name] = _factored(graph, table, name, parts[name], names)
        return made

    def store(self, model: ir.Model, schemes: Mapping[str, Scheme]) -> None:
        """In blocks: n bits and a scale per 32 numbers of a row, in place.

        Each block is rounded to nearest on the better of two grids (`quantize_blocks`).
        """
        for graph, name, value in list(find_tables(model)):
            if name in schemes:
                _replace(graph, name, value, schemes[name].bits)
                model.opset_imports.setdefault(DOMAIN, 1)


def find_tables(model: ir.Model) -> Iterator[tuple[ir.Graph, str, ir.Value]]:
    """Every float32 table that only Gather reads, row by row, with its graph and its name."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for name, value in graph.initializers.items():
            if _is_table(value):
                yield graph, name, value


def _is_table(value: ir.Value) -> bool:
    import onnx_ir as ir

    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2 or tensor.size < MIN_ELEMENTS:
        return False
    if value.is_graph_input() or value.is_graph_output():
        return False
    uses = value.uses()
    return bool(uses) and all(is_lookup(node, index) for node, index in uses)


def is_lookup(node: ir.Node, index: int) -> bool:
    """Whether a node looks up rows of what it has at an input."""
    return index == 0 and node.op_type == "Gather" and node.domain == "" and node.attributes.get_int("axis", 0) == 0


def _factored(graph: ir.Graph, table: ir.Value, name: str, part: Replacement, names: Names) -> tuple[str, str]:
    """Returns the names of the narrower table and of the matrix behind it."""
    import onnx_ir as ir

    matrices = {"B": part.tensors["B"], "A": np.ascontiguousarray(part.A.T)}
    rows, wide = (add_initializer(graph, names.unique(f"{name}.{role}"), matrix) for role, matrix in matrices.items())
    bias = None if part.bias is None else add_initializer(graph, names.unique(f"{name}.bias"), part.bias)
    for node, _ in list(table.uses()):
        owner, old = node.graph, node.outputs[0]
        if owner is None:
            continue
        nodes = [ir.node("Gather", [rows, node.inputs[1]])]
        nodes.append(ir.node("MatMul", [nodes[-1].outputs[0], wide]))
        if bias is not None:
            nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias]))
        for one in nodes:
            one.outputs[0].name = one.name = names.unique(f"{old.name}/{one.op_type}")
            if old.shape is not None:  # a product of unknown rank may be no layer
                width = len(part.A) if one.op_type != "Gather" else part.A.shape[1]
                one.outputs[0].shape = ir.Shape([*list(old.shape)[:-1], width])
            one.outputs[0].type = old.type
        owner.insert_before(node, nodes)
        take_over(old, nodes[-1].outputs[0])
        old.name = None
        owner.remove(node, safe=True)
    del graph.initializers[name]
    return rows.name or "", wide.name or ""


def _replace(graph: ir.Graph, name: str, value: ir.Value, bits: int) -> None:
    import onnx_ir as ir

    tensor = value.const_value
    if tensor is None:
        return
    codes, scales = quantize_blocks(tensor.numpy(), bits, BLOCK)
    data = add_initializer(graph, f"{name}.int{bits}", pack(codes, bits).reshape(len(codes), -1))
    steps = add_initializer(graph, f"{name}.scale", scales)
    attributes = {"bits": bits, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
    for node, _ in list(value.uses()):
        made = ir.node(
            "GatherBlockQuantized", [data, node.inputs[1], steps], attributes, domain=DOMAIN, name=node.name or None
        )
        old, new = node.outputs[0], made.outputs[0]
        new.type, new.shape = old.type, old.shape
        new.name, old.name = old.name, None
        owner = node.graph
        if owner is None:
            continue
        owner.insert_before(node, made)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        owner.remove(node, safe=True)
    del graph.initializers[name]
