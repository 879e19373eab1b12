"""Embedding tables of a TFLite file: what EMBEDDING_LOOKUP reads, row by row.

The runtime decodes the rows that are looked up, of 8 bits and of 4, and no others. A table that is the weight of a
layer as well, as the head of a language model, is stored once as long as both have it in the same scheme.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.backends.tflite.read import graphs, linear_ops, op_name, raw_bytes, read_file, shape_of
from edgepack.backends.tflite.schemes import INT4_DYNAMIC, INT8_DYNAMIC
from edgepack.model.scheme import Scheme

OPERATOR = "EMBEDDING_LOOKUP"
NUMBERS, TABLE = 0, 1
"""Inputs of the operator."""


@dataclass(frozen=True)
class Lookup:
    """One operator that looks up rows of a constant table.

    Attributes:
        output: name of the tensor it writes.
        sides: rows and columns of the table.
        buffer: number of the buffer that holds it; operators may share one.
    """

    output: str
    sides: tuple[int, int]
    buffer: int


def lookups(path: Path) -> tuple[Lookup, ...]:
    """In order of execution.

    Raises:
        ModelError: missing, empty, truncated or foreign file.
    """
    return read_file(path, lambda model: tuple(_lookups(model)))


def _lookups(model: Any) -> Iterator[Lookup]:
    for _, graph in graphs(model):
        for position in range(graph.OperatorsLength()):
            operator = graph.Operators(position)
            if op_name(model, operator) != OPERATOR:
                continue
            table, output = graph.Tensors(operator.Inputs(TABLE)), graph.Tensors(operator.Outputs(0))
            sides = shape_of(table)
            if len(sides) == 2 and raw_bytes(model, table) is not None:
                yield Lookup(output.Name().decode(), (sides[0], sides[1]), int(table.Buffer()))


def untied(path: Path) -> tuple[Lookup, ...]:
    """Those of tables that no layer multiplies by.

    Raises:
        ModelError: missing, empty, truncated or foreign file.
    """
    weights = {op.buffer for op in linear_ops(path)}
    return tuple(one for one in lookups(path) if one.buffer not in weights)


def takes_int4(lookup: Lookup) -> bool:
    """Whether rows in 4 bits are whole bytes."""
    return lookup.sides[1] % 2 == 0


def table_schemes(path: Path, layers: Mapping[str, Scheme], rest: Scheme, bits: int) -> dict[str, Scheme]:
    """The schemes of lookups, by what they write, where they are not that of the rest.

    Args:
        path: of a float32 file.
        layers: schemes of operators that multiply, by what they write, where they are not that of the rest.
        rest: of all other operators.
        bits: 8 or 4, of tables that are no weight of a layer, where the rest is in integers.

    Raises:
        ModelError: missing, empty, truncated or foreign file.
    """
    found = lookups(path)
    weights = {op.buffer: layers.get(op.output, rest) for op in linear_ops(path)} if found else {}
    schemes = {one.output: _of_rows(weights.get(one.buffer), one, rest, bits) for one in found}
    return {output: own for output, own in schemes.items() if own != rest}


def _of_rows(layer: Scheme | None, lookup: Lookup, rest: Scheme, bits: int) -> Scheme:
    """Rows are integers that become floats as they are looked up, also where a layer multiplies by them in integers
    alone. Behind DEQUANTIZE, as other weights are that compute in float, a table would be decoded as a whole."""
    if layer is not None:
        return INT8_DYNAMIC if layer.is_static else layer
    if rest.is_float:
        return rest
    return INT4_DYNAMIC if bits == INT4_DYNAMIC.bits and takes_int4(lookup) else INT8_DYNAMIC
