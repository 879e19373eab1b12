"""Embedding tables of a TFLite file: what EMBEDDING_LOOKUP reads, row by row.

The runtime decodes the rows that are looked up, of 8 bits and of 4, and no others. A table that is the weight of a
layer as well, as the head of a language model, is stored once as long as both have it in the same scheme. Low-rank
factors in a table's place are a narrower one and a FULLY_CONNECTED behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.backends.tables import EmbeddingTable
from edgepack.backends.tflite.file import KEEPS_AXES, File, Writing, drop_unused, packed, text, whole
from edgepack.backends.tflite.lstm import ABSENT
from edgepack.backends.tflite.read import graphs, linear_ops, op_name, raw_bytes, read_file, shape_of
from edgepack.backends.tflite.runtime import interpreter, session
from edgepack.backends.tflite.schemes import INT8_DYNAMIC
from edgepack.data import Samples, feeds, rename
from edgepack.model.kinds.embedding import embedding_layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array

OPERATOR = "EMBEDDING_LOOKUP"
NUMBERS, TABLE = 0, 1
"""Inputs of the operator."""
_FLOAT = 0  # schema.fbs, TensorType


@dataclass(frozen=True)
class Lookup:
    """One operator that looks up rows of a constant table.

    Attributes:
        output: name of the tensor it writes.
        sides: rows and columns of the table.
        buffer: number of the buffer that holds it; operators may share one.
        graph: number of the subgraph it stands in.
        numbers: tensor with the numbers of the rows.
        fixed: whether these are constant.
        floats: whether the table is in float32.
    """

    output: str
    sides: tuple[int, int]
    buffer: int
    graph: int
    numbers: int
    fixed: bool
    floats: bool


def lookups(path: Path) -> tuple[Lookup, ...]:
    """In order of execution.

    Raises:
        ModelError: missing, empty, truncated or foreign file.
    """
    return read_file(path, lambda model: tuple(_lookups(model)))


def _lookups(model: Any) -> Iterator[Lookup]:
    for number, graph in graphs(model):
        for position in range(graph.OperatorsLength()):
            operator = graph.Operators(position)
            if op_name(model, operator) != OPERATOR:
                continue
            table, output = graph.Tensors(operator.Inputs(TABLE)), graph.Tensors(operator.Outputs(0))
            sides = shape_of(table)
            if len(sides) == 2 and raw_bytes(model, table) is not None:
                numbers = int(operator.Inputs(NUMBERS))
                fixed = raw_bytes(model, graph.Tensors(numbers)) is not None
                yield Lookup(
                    output=output.Name().decode(),
                    sides=(sides[0], sides[1]),
                    buffer=int(table.Buffer()),
                    graph=number,
                    numbers=numbers,
                    fixed=fixed,
                    floats=table.Type() == _FLOAT,
                )


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


def table_schemes(path: Path, layers: Mapping[str, Scheme], rest: Scheme) -> dict[str, Scheme]:
    """The schemes of lookups, by what they write, where they are not that of the rest.

    Args:
        path: of a float32 file.
        layers: schemes of operators that multiply, and of lookups, by what they write, where they are not that of the
            rest.
        rest: of all other operators.

    Raises:
        ModelError: missing, empty, truncated or foreign file.
    """
    found = lookups(path)
    weights = {op.buffer: layers.get(op.output, rest) for op in linear_ops(path)} if found else {}
    schemes = {one.output: _of_rows(weights.get(one.buffer), layers.get(one.output), rest) for one in found}
    return {output: own for output, own in schemes.items() if own != rest}


def _of_rows(layer: Scheme | None, own: Scheme | None, rest: Scheme) -> Scheme:
    """Rows are integers that become floats as they are looked up, also where a layer multiplies by them in integers
    alone. Behind DEQUANTIZE, as other weights are that compute in float, a table would be decoded as a whole."""
    if layer is not None:
        return INT8_DYNAMIC if layer.is_static else layer
    if own is not None or rest.is_float:
        return own or rest
    return INT8_DYNAMIC


def embedding_tables(path: Path, samples: Samples | None) -> tuple[EmbeddingTable, ...]:
    """The tables that no layer multiplies by, each named by what its first lookup writes, as the samples look them up;
    without those of which the file says itself which rows are taken.

    Raises:
        ModelError: missing, empty, truncated or foreign file, or one that does not run on the samples.
    """
    groups = {name: own for name, own in grouped(path).items() if not all(one.fixed for one in own)}
    if not groups:
        return ()
    counts = {name: np.zeros(own[0].sides[0], np.int64) for name, own in groups.items()}
    runs = 0
    for seen in _numbers(path, groups, samples):
        runs += 1
        for name, rows in seen.items():
            counts[name] += np.bincount(rows, minlength=len(counts[name]))
    held = whole(path)
    return tuple(
        EmbeddingTable(
            embedding_layer(name, _table(held, own[0]), len(own)),
            counts[name],
            max(1, round(int(counts[name].sum()) / (len(own) * max(runs, 1)))),
        )
        for name, own in groups.items()
    )


def grouped(path: Path) -> dict[str, tuple[Lookup, ...]]:
    """The lookups of each float32 table that no layer multiplies by, by what the first of them writes.

    Raises:
        ModelError: missing, empty, truncated or foreign file.
    """
    found: dict[int, tuple[Lookup, ...]] = {}
    for one in untied(path):
        if not one.floats:
            continue
        found[one.buffer] = (*found.get(one.buffer, ()), one)
    return {own[0].output: own for own in found.values()}


def _numbers(path: Path, groups: Mapping[str, Sequence[Lookup]], samples: Samples | None) -> Iterator[dict[str, Array]]:
    """By table, the numbers of all rows that one run looks up; of lookups in the main graph."""
    if samples is None:
        return
    watched = interpreter(path, watched=True)
    opened = session(watched)
    for feed, _ in feeds(rename(samples, opened.inputs), opened.inputs):
        opened.run(feed)
        yield {
            name: np.concatenate([watched.get_tensor(one.numbers).reshape(-1) for one in own if one.graph == 0])
            for name, own in groups.items()
            if any(one.graph == 0 for one in own)
        }


def _table(model: Any, lookup: Lookup) -> Array:
    data = bytes(model.buffers[lookup.buffer].data)
    return np.frombuffer(data, np.float32).reshape(lookup.sides)


def with_factors(source: Path, path: Path, parts: Mapping[str, Replacement]) -> dict[str, tuple[str, ...]]:
    """Write a float32 file with low-rank factors in the place of tables.

    Args:
        source: the file, whose tables are named as those of `embedding_tables`.
        path: where to write.
        parts: by table.

    Returns:
        By table: what the lookups write now. The product behind each writes what the lookup wrote.
    """
    outputs = {one.output: name for name, own in grouped(source).items() if name in parts for one in own}
    file = File(whole(source))
    rows: dict[str, tuple[str, ...]] = {}
    for number, graph in enumerate(file.model.subgraphs):
        writing = Writing(file, number)
        for op in list(graph.operators):
            name = outputs.get(text(graph.tensors[op.outputs[0]].name))
            if name is not None:
                thin = _narrow(writing, op, parts[name])
                rows[name] = (*rows.get(name, ()), thin)
    drop_unused(file.model)
    path.write_bytes(packed(file.model))
    return rows


def _narrow(writing: Writing, lookup: Any, part: Replacement) -> str:
    """Returns the name of what the lookup writes."""
    graph, (wide,) = writing.graph, lookup.outputs
    given = graph.tensors[wide]
    thin = writing.tensor([*given.shape[:-1], part.rank], given.type, f"{text(given.name)}/rows")
    lookup.inputs[TABLE] = writing.constant(part.tensors["B"], f"{text(given.name)}/B")
    lookup.outputs = [thin]
    bias = ABSENT if part.bias is None else writing.constant(part.bias, f"{text(given.name)}/bias")
    inputs = [thin, writing.constant(part.A, f"{text(given.name)}/A"), bias]
    writing.add("FULLY_CONNECTED", inputs, [wide], "FullyConnected", {"keepNumDims": True}, KEEPS_AXES)
    graph.operators.insert(graph.operators.index(lookup) + 1, writing.made.pop())
    return text(graph.tensors[thin].name)
