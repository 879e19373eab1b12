"""Tables whose rows are looked up and that are the weight of a layer as well, as the head of a language model: a file
holds them once, in the codes of the layer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgepack.backends.onnx.decoded import SUFFIX
from edgepack.backends.onnx.kinds.embedding import find_tables
from edgepack.backends.onnx.other_ops import add_initializer, to_int8_rows
from edgepack.backends.onnx.schemes import DOMAIN
from edgepack.backends.onnx.values import Names, take_over
from edgepack.quantize.grids import BLOCK

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepack.backends.onnx.sites import Site


def tied_tables(sites: Collection[Site]) -> dict[str, tuple[str, ...]]:
    """The tables that are weights of layers, with the names of these layers."""
    found: dict[str, tuple[str, ...]] = {}
    for site in sites:
        if site.root.name and site.layer.tied:
            found[site.root.name] = (*found.get(site.root.name, ()), site.layer.name)
    return found


def share(model: ir.Model, tied: Mapping[str, tuple[str, ...]], *, others: bool) -> None:
    """Look up the rows of tied tables in the codes that their layers have by now, in place.

    A table that a layer still multiplies by as it is stays. One whose layer holds no codes of it, as low-rank factors
    do not, or none of which rows can be decoded, gets int8 rows of its own.

    Args:
        model: with its layers in their schemes.
        tied: of `tied_tables`.
        others: whether a table gets int8 rows where no codes of it are held.
    """
    names = Names(model)
    for graph, name, table in list(find_tables(model)):
        if name not in tied:
            continue
        held = next((one for layer in tied[name] if (one := _held(graph, layer, table)) is not None), None)
        if held is not None and all(_rank(node) is not None for node, _ in table.uses()):
            for node, _ in list(table.uses()):
                _look_up(model, graph, node, held, names)
            del graph.initializers[name]
        elif others:
            to_int8_rows(graph, table, names.unique(f"{name}.rows"))


@dataclass(frozen=True)
class _Held:
    """A table as a layer holds it.

    Attributes:
        matrix: (rows, columns) or (columns, rows), float32 that is decoded at load, or int8; or codes in blocks, (rows,
            blocks, bytes) uint8.
        axis: of the rows.
        scales: of integers, float32: one, or one a row on an axis that broadcasts against the codes; of blocks (rows,
            blocks).
        bits: of codes in blocks; 0 for others.
    """

    matrix: ir.Value
    axis: int
    scales: ir.Value | None = None
    bits: int = 0


def _held(graph: ir.Graph, layer: str, table: ir.Value) -> _Held | None:
    rows, columns = sides = _sides(table)
    decoded = {value.name: value for node in graph for value in node.outputs}
    scales = graph.initializers.get(f"{layer}.scale")
    for bits in (8, 4):
        matrix = decoded.get(f"{layer}.int{bits}{SUFFIX}")
        if matrix is not None and matrix.shape is not None:
            return _turned(matrix, tuple(int(side) for side in matrix.shape.numpy()), sides)
        codes = graph.initializers.get(f"{layer}.int{bits}")
        if codes is None or scales is None:
            continue
        if len(_sides(codes)) == 3:
            whole = columns % BLOCK == 0 and _sides(scales) == (rows, columns // BLOCK)
            return _Held(codes, 0, scales, bits) if whole else None
        found = _turned(codes, _sides(codes), sides)
        fits = {(), (rows, 1)} if found is not None and found.axis == 0 else {(), (rows,), (1, rows)}
        return None if found is None or _sides(scales) not in fits else replace(found, scales=scales)
    return None


def _turned(matrix: ir.Value, found: tuple[int, ...], sides: tuple[int, ...]) -> _Held | None:
    """None where sides do not tell its rows from its columns."""
    if sides[0] == sides[1] or found not in (sides, sides[::-1]):
        return None
    return _Held(matrix, found.index(sides[0]))


def _sides(value: ir.Value) -> tuple[int, ...]:
    return () if value.const_value is None else tuple(int(side) for side in value.const_value.shape.numpy())


def _rank(node: ir.Node) -> int | None:
    """Of the numbers of rows."""
    shape = None if node.inputs[1] is None else node.inputs[1].shape
    return None if shape is None else len(shape)


def _look_up(model: ir.Model, graph: ir.Graph, node: ir.Node, held: _Held, names: Names) -> None:
    owner, old = node.graph, node.outputs[0]
    if owner is None:
        return
    nodes = list(_in_blocks(graph, node, held, names) if held.bits else _by_rows(node, held))
    if held.bits:
        model.opset_imports.setdefault(DOMAIN, 1)
    for made in nodes:
        for value in made.outputs:
            value.name = made.name = names.unique(f"{old.name}/{made.op_type}")
    owner.insert_before(node, nodes)
    new = nodes[-1].outputs[0]
    take_over(old, new)
    old.name = None
    owner.remove(node, safe=True)


def _in_blocks(graph: ir.Graph, node: ir.Node, held: _Held, names: Names) -> Iterator[ir.Node]:
    """The operator that decodes what it looks up; a runtime flattens the codes at load."""
    import onnx_ir as ir

    flat = np.array([_sides(held.matrix)[0], -1], np.int64)
    shape = add_initializer(graph, names.unique(f"{held.matrix.name}.rows"), flat)
    rows = ir.node("Reshape", [held.matrix, shape])
    yield rows
    attributes = {"bits": held.bits, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
    inputs = [rows.outputs[0], node.inputs[1], held.scales]
    yield ir.node("GatherBlockQuantized", inputs, attributes, domain=DOMAIN)


def _by_rows(node: ir.Node, held: _Held) -> Iterator[ir.Node]:
    """What is looked up, times its scales; where the table lies on its side it is turned after that."""
    import onnx_ir as ir

    numbers, rank = node.inputs[1], _rank(node) or 0
    last = ir.node("Gather", [held.matrix, numbers], {"axis": held.axis})
    yield last
    if held.scales is not None:
        last = ir.node("Cast", [last.outputs[0]], {"to": int(ir.DataType.FLOAT)})
        yield last
        scales = held.scales
        if sides := _sides(scales):
            steps = ir.node("Gather", [scales, numbers], {"axis": sides.index(max(sides))})
            yield steps
            scales = steps.outputs[0]
        last = ir.node("Mul", [last.outputs[0], scales])
        yield last
    if held.axis == 1:
        yield ir.node("Transpose", [last.outputs[0]], {"perm": [*range(1, rank + 1), 0]})
