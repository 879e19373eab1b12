"""Embedding tables in blocks of 4 bits: the operator GatherBlockQuantized of ONNX Runtime.

Only the rows that are looked up are ever decoded, so the table stays in 4 bits in memory as well. Of a small language
model the table is most of the bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.emit.onnx_nbits import DOMAIN
from edgepack.emit.onnx_rest import MIN_ELEMENTS, add_initializer
from edgepack.quantize.blocks import BLOCK, pack, quantize_blocks

if TYPE_CHECKING:
    import onnx_ir as ir

BITS = 4


def has_tables(model: ir.Model) -> bool:
    """Whether `to_int4_tables` would change the model."""
    graphs = (model.graph, *model.graph.subgraphs())
    return any(_is_table(value) for graph in graphs for value in graph.initializers.values())


def to_int4_tables(model: ir.Model) -> tuple[str, ...]:
    """Store every float32 table that only Gather reads, row by row, in 4 bits and a scale per 32 numbers, in place.

    Each block is rounded to nearest on the better of two grids (`quantize_blocks`). A table whose rows are no multiple
    of 32 numbers wide is left as it is.

    Returns:
        The names that the tables had.
    """
    changed = []
    for graph in (model.graph, *model.graph.subgraphs()):
        for name, value in list(graph.initializers.items()):
            if _is_table(value):
                _replace(graph, name, value)
                changed.append(name)
    if changed:
        model.opset_imports.setdefault(DOMAIN, 1)
    return tuple(changed)


def _is_table(value: ir.Value) -> bool:
    import onnx_ir as ir

    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2 or tensor.size < MIN_ELEMENTS:
        return False
    if tensor.numpy().shape[1] % BLOCK or value.is_graph_input() or value.is_graph_output():
        return False
    uses = value.uses()
    return bool(uses) and all(
        index == 0 and node.op_type == "Gather" and node.domain == "" and node.attributes.get_int("axis", 0) == 0
        for node, index in uses
    )


def _replace(graph: ir.Graph, name: str, value: ir.Value) -> None:
    import onnx_ir as ir

    tensor = value.const_value
    if tensor is None:
        return
    codes, scales = quantize_blocks(tensor.numpy(), BITS, BLOCK)
    data = add_initializer(graph, f"{name}.int{BITS}", pack(codes, BITS).reshape(len(codes), -1))
    steps = add_initializer(graph, f"{name}.scale", scales)
    attributes = {"bits": BITS, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
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
