from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends.onnx.kinds.embedding import OnnxEmbedding
from edgepack.backends.onnx.schemes import TABLES4
from edgepack.backends.onnx.session import run, session
from edgepack.model.types import Array
from edgepack.quantize.grids import dequantize_blocks, quantize_blocks

ROWS, COLUMNS = 50, 64


def model(table: Array, *, axis: int = 0, more: tuple[onnx.NodeProto, ...] = ()) -> ir.Model:
    """`rows` = table[ids], twice, and what `more` makes of the table."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], axis=axis),
        helper.make_node("Gather", ["table", "ids"], ["again"], axis=axis),
        helper.make_node("Add", ["rows", "again"], ["out"]),
        *more,
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [2, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("rows", "out")],
        [numpy_helper.from_array(table, "table")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    made.ir_version = 9
    return ir.from_proto(made)


def table(columns: int = COLUMNS) -> Array:
    return np.random.default_rng(0).standard_normal((ROWS, columns)).astype(np.float32)


def to_int4_tables(found: ir.Model) -> tuple[str, ...]:
    """Stores every table that can be in 4 bits; their names."""
    kind = OnnxEmbedding()
    names = [layer.name for layer in kind.find(found) if kind.refuses(layer, TABLES4) is None]
    kind.store(found, dict.fromkeys(names, TABLES4))
    return tuple(names)


def test_looked_up_rows_are_those_of_the_rounded_table() -> None:
    ids = np.array([[0, 49, 7], [7, 7, 20]])
    found = model(table())
    assert to_int4_tables(found) == ("table",)
    rows, out = run(session(found), None, {"ids": ids})
    wanted = dequantize_blocks(*quantize_blocks(table(), 4), COLUMNS)[ids]
    np.testing.assert_array_equal(rows, wanted)
    np.testing.assert_array_equal(out, 2 * wanted)
    assert np.abs(wanted - table()[ids]).max() > 0


def test_four_bits_and_a_scale_per_block_are_all_that_is_stored() -> None:
    found = model(table())
    to_int4_tables(found)
    stored = sum(value.const_value.nbytes for value in found.graph.initializers.values() if value.const_value)
    assert stored == ROWS * (COLUMNS // 2 + 4 * COLUMNS // 32)


@pytest.mark.parametrize("axis", [1, -1])
def test_a_table_that_is_read_by_columns_stays(axis: int) -> None:
    found = model(table(), axis=axis)
    assert to_int4_tables(found) == ()
    assert "table" in found.graph.initializers


def test_a_table_that_is_a_weight_as_well_stays() -> None:
    tied = helper.make_node("MatMul", ["rows", "table"], ["scores"])
    assert to_int4_tables(model(table(), more=(tied,))) == ()


def test_rows_that_are_no_whole_blocks_stay() -> None:
    assert to_int4_tables(model(table(COLUMNS + 2))) == ()
