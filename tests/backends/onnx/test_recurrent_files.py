"""Files of models with recurrent layers: what stands around the fused operator, and what the runtime makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from edgepack.backends.onnx.emit import to_schemes
from edgepack.backends.onnx.kinds import refuses
from edgepack.backends.onnx.other_ops import to_int8_weights
from edgepack.backends.onnx.rewrite import with_factors
from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, WEIGHTS8
from edgepack.backends.onnx.sites import find_sites
from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.metrics.values import sqnr_db
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.model.types import Array
from tests.backends.onnx.graph_models import (
    assert_same,
    const,
    factored,
    full_rank,
    info,
    model,
    normal,
    proto,
    run,
    session,
)

UNITS, INPUTS, STEPS, BATCH = 24, 40, 6, 3
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FEED = {"x": normal(STEPS, BATCH, INPUTS, seed=9)}


def weights(operator: str, prefix: str = "", *, directions: int = 1, inputs: int = INPUTS) -> dict[str, Array]:
    rows = GATES[operator] * UNITS
    return {
        f"{prefix}W": normal(directions, rows, inputs) / 4,
        f"{prefix}R": normal(directions, rows, UNITS, seed=1) / 4,
        f"{prefix}B": normal(directions, 2 * rows, seed=2),
    }


def cell(operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: object) -> object:
    return helper.make_node(
        operator, inputs, outputs, hidden_size=UNITS, name=f"{operator}_{outputs[-1]}", **attributes
    )


X = info("x", [STEPS, BATCH, INPUTS])


def one(operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: object) -> ir.Model:
    known = weights(operator, directions=2 if attributes.get("direction") == "bidirectional" else 1)
    states = [info(name, [1, BATCH, UNITS]) for name in inputs if name in ("h", "c")]
    lengths = [info(name, [BATCH], TensorProto.INT32) for name in inputs if name == "lengths"]
    return model(
        [cell(operator, inputs, outputs, **attributes)],
        [X, *lengths, *states],
        [info(name, None) for name in outputs if name],
        {name: known[name] for name in inputs if name in known},
    )


def operators(source: ir.Model) -> list[str]:
    return [node.op_type for node in source.graph]


@pytest.mark.parametrize("operator", GATES)
def test_without_biases_they_get_one_where_factors_bring_it(operator: str) -> None:
    source = one(operator, ["x", "W", "R"], ["y"])
    (site,) = find_sites(source.clone())
    assert site.layer.bias is None
    assert_same(source, factored(source), FEED)
    moved = np.full(site.layer.out_features, 0.5, np.float32)
    part = full_rank(site.layer.with_weight(site.layer.weight, moved))
    biased = one(operator, ["x", "W", "R", "B"], ["y"])
    of_state = np.zeros_like(moved)
    value = biased.graph.initializers["B"]
    value.const_value = ir.tensor(np.concatenate([moved, of_state])[None], name="B")
    assert_same(biased, with_factors(source, {site.layer.name: part}), FEED)


def test_states_lengths_and_every_output_stay_where_they_are() -> None:
    inputs = ["x", "W", "R", "B", "lengths", "h", "c"]
    source = one("LSTM", inputs, ["", "last", "cell"])
    states = {name: normal(1, BATCH, UNITS, seed=5) for name in "hc"}
    feed = {**FEED, **states, "lengths": np.array([6, 2, 4], np.int32)}
    thin = factored(source)
    assert operators(thin) == ["MatMul", "LSTM"]
    assert [value.name for value in thin.graph.outputs] == ["last", "cell"]
    assert_same(source, thin, feed)
    for made in (to_schemes(source, INT8_DYNAMIC), to_schemes(source, WEIGHTS8)):
        for found, wanted in zip(run(made, feed), run(source, feed), strict=True):
            assert sqnr_db(found, wanted) > 20


@pytest.mark.parametrize("operator", ["LSTM", "GRU"])
def test_a_factored_stream_of_1000_steps_agrees_with_the_whole_sequence(operator: str) -> None:
    states = ["h", "c"][: 2 if operator == "LSTM" else 1]
    inputs, outputs = ["x", "W", "R", "B", "", *states], ["y", "last", "cell"][: 1 + len(states)]
    x = normal(1000, 1, INPUTS, seed=3)

    def over(steps: int) -> ir.Model:
        given = [info("x", [steps, 1, INPUTS]), *(info(name, [1, 1, UNITS]) for name in states)]
        nodes = [cell(operator, inputs, outputs)]
        return model(nodes, given, [info(name, None) for name in outputs], weights(operator))

    held = {name: np.zeros((1, 1, UNITS), np.float32) for name in states}
    expected, *_ = run(over(1000), {"x": x, **held})
    stream = session(factored(over(1)))
    for step, wanted in zip(x, expected, strict=True):
        y, *last = stream.run(None, {"x": step[None], **held})
        held = dict(zip(states, last, strict=True))
        np.testing.assert_allclose(y[0], wanted, atol=1e-5)


def test_eight_bits_with_dynamic_activations_take_the_state_along() -> None:
    source = one("LSTM", ["x", "W", "R", "B"], ["y"], direction="bidirectional")
    decoded = source.clone()
    to_int8_weights(decoded, frozenset((id(node), 1) for node in decoded.graph))
    assert "R.int8" in decoded.graph.initializers
    for each in (source, decoded):
        made = to_schemes(each, INT8_DYNAMIC)
        assert [op for op in operators(made) if "LSTM" in op] == ["DynamicQuantizeLSTM"]
        (found,), (wanted,) = run(made, FEED), run(source, FEED)
        assert sqnr_db(found, wanted) > 20


def test_a_layout_that_is_the_usual_one_stays_behind() -> None:
    """The runtime's own operator does not know the attribute, and refuses the file."""
    source = one("LSTM", ["x", "W", "R", "B"], ["y"], layout=0)
    made = to_schemes(source.clone(), INT8_DYNAMIC)
    assert operators(made)[0] == "DynamicQuantizeLSTM"
    assert sqnr_db(run(made, FEED)[0], run(source, FEED)[0]) > 20


def test_other_operators_have_no_integer_kernel() -> None:
    for operator in ("GRU", "RNN"):
        (site,) = find_sites(one(operator, ["x", "W", "R", "B"], ["y"]))
        reason = refuses(site.layer, INT8_DYNAMIC)
        assert reason is not None
        assert operator in reason


def test_cells_with_equal_weights_and_other_biases_are_layers_of_their_own() -> None:
    shared, other = weights("GRU"), normal(1, 2 * 3 * UNITS, seed=8)

    def both(biases: tuple[str, str]) -> ir.Model:
        nodes = [cell("GRU", ["x", "W", "R", bias], [y]) for bias, y in zip(biases, ("y", "z"), strict=True)]
        return model(nodes, [X], [info("y", None), info("z", None)], {**shared, "other": other})

    (site,) = find_sites(both(("B", "B")))
    assert (site.layer.uses, len(site.placements)) == (2, 2)
    assert [one.layer.uses for one in find_sites(both(("B", "other")))] == [1, 1]
    for source in (both(("B", "B")), both(("B", "other"))):
        assert_same(source, factored(source), FEED)


def test_within_a_branch() -> None:
    held = weights("LSTM")
    inner = [cell("LSTM", ["x", "W", "R", "B"], ["inner"])]
    idle = [helper.make_node("Identity", ["zeros"], ["idle"])]
    branches = {
        "then_branch": helper.make_graph(inner, "then", [], [info("inner", [STEPS, 1, BATCH, UNITS])]),
        "else_branch": helper.make_graph(idle, "else", [], [info("idle", [STEPS, 1, BATCH, UNITS])]),
    }
    source = ir.from_proto(
        proto(
            [
                const("zeros", np.zeros((STEPS, 1, BATCH, UNITS), np.float32)),
                helper.make_node("If", ["on"], ["y"], **branches),
            ],
            [X, info("on", [], TensorProto.BOOL)],
            [info("y", None)],
            held,
        )
    )
    thin = factored(source)
    for on in (True, False):
        assert_same(source, thin, {**FEED, "on": np.array(on)})


def test_what_depends_on_inputs_is_no_layer() -> None:
    known = weights("GRU")
    given = [X, info("W", list(known["W"].shape))]
    assert not find_sites(model([cell("GRU", ["x", "W", "R"], ["y"])], given, [info("y", None)], {"R": known["R"]}))
    given = [X, info("B", list(known["B"].shape))]
    held = {name: known[name] for name in "WR"}
    assert not find_sites(model([cell("GRU", ["x", "W", "R", "B"], ["y"])], given, [info("y", None)], held))


@pytest.mark.parametrize(("own", "kernel"), [(None, "LSTM"), (INT8_DYNAMIC, "DynamicQuantizeLSTM")])
def test_the_weights_of_the_state_go_with_the_rest_of_the_file(own: Scheme | None, kernel: str, tmp_path: Path) -> None:
    source = one("LSTM", ["x", "W", "R", "B"], ["y"])
    writer = OnnxWriter(source, None, qmax=127)
    path = tmp_path / "m.onnx"
    scheme = FileScheme(own or WEIGHTS8, WEIGHTS8)
    written = writer.write({}, scheme, path)
    assert not written.schemes
    stored = onnx.load(path)
    sizes = {array.name: array.data_type for array in stored.graph.initializer if len(array.dims) == 3}
    matrices = [kind for name, kind in sizes.items() if "scale" not in name]
    assert matrices.count(TensorProto.INT8) == 2
    assert kernel in [node.op_type for node in stored.graph.node]
    assert path.stat().st_size < 0.45 * sum(array.nbytes for array in weights("LSTM").values())
    assert writer.rest(FP32)[0].others == WEIGHTS8
