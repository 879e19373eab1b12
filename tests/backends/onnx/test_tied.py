"""A table that is the weight of a layer as well is stored once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends.onnx.emit import to_schemes
from edgepack.backends.onnx.rewrite import with_factors
from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, INT8_STATIC, NBITS4, NBITS8, WEIGHTS4, WEIGHTS8
from edgepack.backends.onnx.session import run, session
from edgepack.backends.onnx.sites import find_sites
from edgepack.backends.onnx.tied import share, tied_tables
from edgepack.cost.sizes import table_bytes
from edgepack.metrics.values import sqnr_db
from edgepack.model.replacement import low_rank
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array

TOKENS, WIDTH = 96, 64
IDS = np.array([[0, 95, 7, 7, 20, 1]])


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model(width: int = WIDTH, *, tokens: int = TOKENS) -> ir.Model:
    """`rows` = table[ids], and `scores` = a product of these with the table, as the head of a language model."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["hidden"]),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["hidden", "turned"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, list(IDS.shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("rows", "scores")],
        [
            numpy_helper.from_array(normal(tokens, width), "table"),
            numpy_helper.from_array(normal(width, width, seed=1) / 8, "w"),
        ],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))


RANGES = {"table": (-30.0, 30.0), "w": (-5.0, 5.0)}


def stored(source: ir.Model, scheme: Scheme, schemes: Mapping[str, Scheme] | None = None) -> ir.Model:
    """The model with its layers in a scheme and its table looked up there."""
    tied = tied_tables(find_sites(source.clone()))
    made = to_schemes(source, scheme, ranges=RANGES, schemes=schemes)
    share(made, tied, others=not scheme.is_float)
    return made


def sizes(made: ir.Model) -> dict[str, int]:
    values = made.graph.initializers.items()
    return {name: value.const_value.nbytes for name, value in values if value.const_value is not None}


def test_the_layer_of_a_table_is_tied() -> None:
    assert {site.layer.name: site.layer.tied for site in find_sites(model())} == {"w": False, "table": True}


@pytest.mark.parametrize(
    "scheme", [WEIGHTS8, WEIGHTS4, INT8_DYNAMIC, INT8_STATIC, NBITS8, NBITS4], ids=lambda scheme: scheme.name
)
def test_rows_are_looked_up_in_the_codes_of_the_layer(scheme: Scheme) -> None:
    source = model()
    made = stored(source, scheme)
    alone = to_schemes(source, scheme, ranges=RANGES)
    held = sizes(alone)
    assert held.pop("table") == 4 * TOKENS * WIDTH, "the table as it is beside the codes"
    assert sum(sizes(made).values()) <= sum(held.values()) + 16
    found, wanted = (run(session(one), None, {"ids": IDS}) for one in (made, source))
    for one, other in zip(found, wanted, strict=True):
        assert sqnr_db(one, other) > scheme.min_sqnr_db


@pytest.mark.parametrize("scheme", [WEIGHTS8, WEIGHTS4, NBITS8], ids=lambda scheme: scheme.name)
def test_every_row_is_what_the_layer_multiplies_by(scheme: Scheme) -> None:
    made = stored(model(), scheme, {"w": FP32})
    made.graph.initializers["w"].const_value = ir.tensor(np.eye(WIDTH, dtype=np.float32))
    rows, scores = run(session(made), None, {"ids": IDS})
    np.testing.assert_allclose(scores[0], rows[0] @ _table(made).T, rtol=0.02, atol=0.5)
    np.testing.assert_array_equal(rows[0, 2], rows[0, 3])


def _table(made: ir.Model) -> Array:
    ids = np.arange(TOKENS).reshape(-1, IDS.size)
    return np.concatenate([run(session(made), None, {"ids": part[None]})[0][0] for part in ids])


def test_factors_leave_the_table_rows_of_its_own() -> None:
    source = model()
    tied = tied_tables(find_sites(source.clone()))
    thin = with_factors(source, {"table": low_rank(normal(TOKENS, 8), normal(8, WIDTH, seed=2), None)})
    made = to_schemes(thin, INT8_DYNAMIC)
    share(made, tied, others=True)
    found, held = run(session(made), None, {"ids": IDS})[0], sizes(made)
    assert "table" not in held
    (head,) = (site.layer for site in find_sites(source) if site.layer.tied)
    assert (
        held["table.rows.int8"] + held["table.rows.scale"]
        == table_bytes(INT8_DYNAMIC, head) - INT8_DYNAMIC.bytes_per_op
    )
    assert sqnr_db(found, normal(TOKENS, WIDTH)[IDS]) > 35


@pytest.mark.parametrize(
    ("scheme", "width", "tokens"), [(NBITS4, WIDTH + 8, TOKENS), (INT8_DYNAMIC, WIDTH, WIDTH)], ids=["blocks", "square"]
)
def test_codes_whose_rows_cannot_be_told_are_not_looked_up(scheme: Scheme, width: int, tokens: int) -> None:
    made = stored(model(width, tokens=tokens), scheme)
    assert sizes(made)["table.rows.int8"] == width * tokens
    ids = IDS % tokens
    assert sqnr_db(run(session(made), None, {"ids": ids})[0], normal(tokens, width)[ids]) > 35


def test_in_float32_the_table_stays_shared() -> None:
    assert sizes(stored(model(), FP32)) == sizes(model())
