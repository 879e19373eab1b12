"""Layers inside If, Loop and Scan bodies and local functions: found, rewritten, observed."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from edgepack.backends.onnx.activations import with_observed_inputs
from edgepack.backends.onnx.session import session
from edgepack.backends.onnx.sites import find_sites
from edgepack.errors import ModelError
from tests.backends.onnx.graph_models import assert_factored_same, const, info, model, normal, run

node = helper.make_node


def body(nodes, inputs, outputs, weights=None):
    initializers = [onnx.numpy_helper.from_array(a, n) for n, a in (weights or {}).items()]
    return helper.make_graph(nodes, "body", inputs, outputs, initializers)


def if_model(where: str) -> ir.Model:
    """y = c ? relu(x) W + b : x V, with the weights outside, as local initializers or as Constant nodes."""
    w, b, v = normal(4, 5, seed=1), normal(5, seed=2), normal(4, 5, seed=3)
    then = [node("Relu", ["x"], ["r"]), node("MatMul", ["r", "W"], ["t0"]), node("Add", ["t0", "b"], ["t"])]
    other = [node("MatMul", ["x", "V"], ["e"])]
    local = where == "local"
    if where == "constant":
        then, other = [const("W", w), const("b", b), *then], [const("V", v), *other]
    branches = {
        "then_branch": body(then, [], [info("t", None)], {"W": w, "b": b} if local else None),
        "else_branch": body(other, [], [info("e", None)], {"V": v} if local else None),
    }
    outer = {"W": w, "b": b, "V": v} if where == "outer" else {}
    inputs = [info("c", (), TensorProto.BOOL), info("x", ("n", 4))]
    return model([node("If", ["c"], ["y"], **branches)], inputs, [info("y", ("n", 5))], outer)


@pytest.mark.parametrize("where", ["outer", "local", "constant"])
def test_if(where):
    source, x = if_model(where), normal(3, 4)
    assert {site.layer.name for site in find_sites(source)} == {"W", "V"}
    for taken in (True, False):
        thin = assert_factored_same(source, {"c": np.array(taken), "x": x})
    home = thin.graph if where == "outer" else thin.graph.node(0).attributes["then_branch"].as_graph()
    assert {"W.A", "W.B", "W.bias"} <= set(home.initializers)
    for old in ("W", "V"):
        assert all(old not in graph.initializers for graph in thin.graphs())

    watched, observed = with_observed_inputs(source, ["W", "V"])
    for taken in (True, False):
        fetched = fetch(watched, {"c": np.array(taken), "x": x})
        rows = {name: seen.rows(*(fetched[o] for o in seen.outputs)) for name, seen in observed.items()}
        np.testing.assert_array_equal(rows["W"], np.maximum(x, 0) if taken else np.zeros((0, 4)))
        np.testing.assert_array_equal(rows["V"], x)  # the graph's own input, there whichever branch is taken


def fetch(source: ir.Model, feed):
    opened = session(source)
    return dict(zip((o.name for o in opened.get_outputs()), opened.run(None, feed), strict=True))


@pytest.mark.parametrize("captured", [True, False])
def test_loop(captured):
    """h ← tanh(h W + b), three times; the scan output is the layer's output."""
    w, b = normal(4, 4, seed=1), normal(4, seed=2)
    nodes = [
        node("MatMul", ["h", "W"], ["m"]),
        node("Add", ["m", "b"], ["z"]),
        node("Tanh", ["z"], ["h2"]),
        node("Identity", ["c"], ["c2"]),
    ]
    weights = {"W": w, "b": b}
    inputs = [info("i", (), TensorProto.INT64), info("c", (), TensorProto.BOOL), info("h", (2, 4))]
    outputs = [info("c2", (), TensorProto.BOOL), info("h2", (2, 4)), info("z", (2, 4))]
    inner = body(nodes, inputs, outputs, None if captured else weights)
    loop = node("Loop", ["n", "", "h0"], ["hn", "zs"], body=inner)
    outer = {"n": np.array(3), **(weights if captured else {})}
    source = model([loop], [info("h0", (2, 4))], [info("hn", (2, 4)), info("zs", (3, 2, 4))], outer)
    feed = {"h0": normal(2, 4)}
    (site,) = find_sites(source)
    assert site.layer.bias is not None
    assert_factored_same(source, feed)

    watched, observed = with_observed_inputs(source, ["W"])
    fetched = fetch(watched, feed)
    expected = [feed["h0"]]
    for _ in range(2):
        expected.append(np.tanh(expected[-1] @ w + b))
    rows = observed["W"].rows(*(fetched[o] for o in observed["W"].outputs))
    np.testing.assert_allclose(rows, np.concatenate(expected), atol=1e-5)
    np.testing.assert_array_equal(fetched["zs"], run(source, feed)[1])


def test_loop_that_never_runs_gives_no_rows():
    nodes = [node("Gemm", ["h", "W"], ["h2"]), node("Identity", ["c"], ["c2"])]
    inputs = [info("i", (), TensorProto.INT64), info("c", (), TensorProto.BOOL), info("h", (2, 4))]
    inner = body(nodes, inputs, [info("c2", (), TensorProto.BOOL), info("h2", (2, 4))], {"W": normal(4, 4)})
    loop = node("Loop", ["n", "", "h0"], ["y"], body=inner)
    ends = [info("h0", (2, 4)), info("n", (), TensorProto.INT64)]
    watched, observed = with_observed_inputs(model([loop], ends, [info("y", (2, 4))]), ["W"])
    fetched = fetch(watched, {"h0": normal(2, 4), "n": np.array(0)})
    assert observed["W"].rows(fetched[observed["W"].outputs[0]]).shape == (0, 4)


@pytest.mark.parametrize("axes", [False, True])
def test_scan(axes):
    """A scan over the sequence axis with a layer on each step; `axes` states where the outputs are stacked."""
    w = normal(4, 5, seed=1)
    nodes = [node("MatMul", ["x", "W"], ["y"]), node("Identity", ["s"], ["s2"])]
    inner = body(nodes, [info("s", (1,)), info("x", (2, 4))], [info("s2", (1,)), info("y", (2, 5))])
    options = {"scan_output_axes": [0], "scan_output_directions": [1]} if axes else {}
    scan = node("Scan", ["s0", "xs"], ["sn", "ys"], body=inner, num_scan_inputs=1, **options)
    outputs = [info("sn", (1,)), info("ys", (3, 2, 5))]
    source = model([scan], [info("s0", (1,)), info("xs", (3, 2, 4))], outputs, {"W": w})
    feed = {"s0": np.zeros(1, np.float32), "xs": normal(3, 2, 4)}
    assert_factored_same(source, feed)
    watched, observed = with_observed_inputs(source, ["W"])
    rows = observed["W"].rows(*(fetch(watched, feed)[o] for o in observed["W"].outputs))
    np.testing.assert_array_equal(rows, feed["xs"].reshape(-1, 4))


def test_convolution_in_an_if_in_a_loop():
    conv = node("Conv", ["r", "K"], ["t"])
    nodes = [node("Relu", ["h"], ["r"]), conv]
    branches = {
        "then_branch": body(nodes, [], [info("t", None)]),
        "else_branch": body([node("Neg", ["h"], ["e"])], [], [info("e", None)]),
    }
    steps = [
        node("Cast", ["i"], ["even"], to=TensorProto.BOOL),
        node("If", ["even"], ["h2"], **branches),
        node("Identity", ["c"], ["c2"]),
    ]
    shape = (1, 3, 2, 2)
    inputs = [info("i", (), TensorProto.INT64), info("c", (), TensorProto.BOOL), info("h", shape)]
    inner = body(steps, inputs, [info("c2", (), TensorProto.BOOL), info("h2", shape)])
    loop = node("Loop", ["n", "", "h0"], ["y"], body=inner)
    weights = {"n": np.array(2), "K": normal(3, 3, 1, 1, seed=1)}
    source = model([loop], [info("h0", shape)], [info("y", shape)], weights)
    feed = {"h0": normal(*shape)}
    assert_factored_same(source, feed)
    # The branch is taken in the second round only: the rounds give different numbers of rows.
    watched, observed = with_observed_inputs(source, ["K"])
    fetched = fetch(watched, feed)
    expected = np.moveaxis(np.maximum(-feed["h0"], 0), 1, -1).reshape(-1, 3)
    np.testing.assert_allclose(observed["K"].rows(fetched[observed["K"].outputs[0]]), expected, atol=1e-6)


FUNCTION_OPSETS = [helper.make_opsetid("", 17)]


def test_function_that_holds_its_weight_stays_a_function():
    w = normal(4, 4, seed=1)
    inside = [const("W", w), const("b", normal(4)), node("MatMul", ["a", "W"], ["m"]), node("Add", ["m", "b"], ["z"])]
    dense = helper.make_function("mine", "Dense", ["a"], ["z"], inside, FUNCTION_OPSETS)
    calls = [node("Dense", ["x"], ["h"], domain="mine"), node("Dense", ["h"], ["y"], domain="mine")]
    source = model(calls, [info("x", (2, 4))], [info("y", (2, 4))], functions=[dense], domains=["mine"])
    feed = {"x": normal(2, 4, seed=3)}
    (site,) = find_sites(source)
    assert (site.layer.name, site.layer.uses) == ("W", 1)
    thin = assert_factored_same(source, feed)
    assert [n.op_type for n in thin.graph] == ["Dense", "Dense"]
    (function,) = thin.functions.values()
    assert sorted(v.name for n in function for v in n.outputs if n.op_type == "Constant") == ["W.A", "W.B", "W.bias"]

    watched, observed = with_observed_inputs(source, ["W"])
    fetched = fetch(watched, feed)
    inputs = np.concatenate([feed["x"], feed["x"] @ w + normal(4)])
    np.testing.assert_allclose(observed["W"].rows(*(fetched[o] for o in observed["W"].outputs)), inputs, atol=1e-5)
    assert source.functions


def test_only_functions_that_are_given_a_weight_are_inlined():
    dense = helper.make_function(
        "mine", "Dense", ["a", "w"], ["z"], [node("MatMul", ["a", "w"], ["z"])], FUNCTION_OPSETS
    )
    outer_nodes = [node("Dense", ["a", "w"], ["d"], domain="mine"), node("Square", ["d"], ["z"], domain="mine")]
    imports = [*FUNCTION_OPSETS, helper.make_opsetid("mine", 1)]
    outer = helper.make_function("mine", "Outer", ["a", "w"], ["z"], outer_nodes, imports)
    square = helper.make_function("mine", "Square", ["a"], ["z"], [node("Mul", ["a", "a"], ["z"])], FUNCTION_OPSETS)
    calls = [
        node("Outer", ["x", "W"], ["h"], domain="mine"),
        node("Identity", ["V"], ["V2"]),
        node("Dense", ["h", "V2"], ["y"], domain="mine"),
    ]
    weights = {"W": normal(4, 5, seed=1), "V": normal(5, 3, seed=2)}
    source = model(
        calls, [info("x", (2, 4))], [info("y", (2, 3))], weights, functions=[dense, outer, square], domains=["mine"]
    )
    feed = {"x": normal(2, 4)}
    expected = run(source.clone(), feed)[0]
    assert [site.layer.name for site in find_sites(source)] == ["W", "V"]
    assert [name for _, name, _ in source.functions] == ["Square"]
    np.testing.assert_allclose(run(source, feed)[0], expected, rtol=1e-6)
    assert_factored_same(source, feed)


def test_function_whose_transposition_is_an_attribute_is_left_alone():
    gemm = node("Gemm", ["a", "W"], ["z"])
    gemm.attribute.append(onnx.AttributeProto(name="transB", ref_attr_name="t", type=onnx.AttributeProto.INT))
    inside = [const("W", normal(4, 4)), gemm]
    dense = helper.make_function("mine", "Dense", ["a"], ["z"], inside, FUNCTION_OPSETS, attributes=["t"])
    call = node("Dense", ["x"], ["y"], domain="mine", t=1)
    source = model([call], [info("x", (2, 4))], [info("y", (2, 4))], functions=[dense], domains=["mine"])
    assert find_sites(source) == ()


def test_layers_that_share_an_input_share_an_output():
    nodes = [
        node("Relu", ["x"], ["h"]),
        node("MatMul", ["h", "q.k"], ["a"]),
        node("MatMul", ["h", "k.k"], ["b"]),
        node("MatMul", ["left.k", "h"], ["c"]),
        node("Gemm", ["h", "t.k"], ["d"], transA=1),
    ]
    weights = {name: normal(4, 4, seed=i) for i, name in enumerate(["q.k", "k.k", "left.k", "t.k"])}
    source = model(nodes, [info("x", (4, 4))], [info(o, (4, 4)) for o in "abcd"], weights)
    watched, observed = with_observed_inputs(source, weights)
    assert observed["q.k"].outputs == observed["k.k"].outputs == ("h",)
    assert observed["left.k"].outputs == observed["t.k"].outputs != ("h",)
    x = normal(4, 4, seed=9)
    fetched = fetch(watched, {"x": x})
    rows = {name: seen.rows(fetched[seen.outputs[0]]) for name, seen in observed.items()}
    np.testing.assert_array_equal(rows["q.k"], np.maximum(x, 0))
    np.testing.assert_array_equal(rows["left.k"], np.maximum(x, 0).T)
    np.testing.assert_array_equal(rows["t.k"], np.maximum(x, 0).T)


@pytest.mark.parametrize("kind", ["rows", "columns", "conv", "gemm-t"])
def test_observed_rows_reproduce_the_layer(kind):
    """Rows · Wᵀ + b is the layer's output with its features last: the two agree on what a row is."""
    cases = {
        "rows": (node("MatMul", ["x", "W"], ["y"]), (2, 3, 4), normal(4, 5, seed=1), -1),
        "columns": (node("MatMul", ["W", "x"], ["y"]), (2, 4, 3), normal(5, 4, seed=1), -2),
        "conv": (node("Conv", ["x", "W"], ["y"]), (2, 4, 3, 3), normal(5, 4, 1, 1, seed=1), 1),
        "gemm-t": (node("Gemm", ["x", "W"], ["y"], transA=1), (4, 6), normal(4, 5, seed=1), -1),
    }
    call, shape, weight, axis = cases[kind]
    source = model([node("Neg", ["x0"], ["x"]), call], [info("x0", shape)], [info("y", None)], {"W": weight})
    (site,) = find_sites(source)
    watched, observed = with_observed_inputs(source, ["W"])
    fetched = fetch(watched, {"x0": normal(*shape)})
    rows = observed["W"].rows(fetched[observed["W"].outputs[0]])
    expected = np.moveaxis(fetched["y"], axis, -1).reshape(-1, 5)
    np.testing.assert_allclose(rows @ site.layer.weight.T, expected, atol=1e-5)


def test_observing_what_is_not_there():
    source = if_model("outer")
    with pytest.raises(ModelError, match="no linear layer 'nothing'"):
        with_observed_inputs(source, ["nothing"])
    _, observed = with_observed_inputs(source, ["W"])
    with pytest.raises(ValueError, match="one for each"):
        observed["W"].rows()


def test_names_of_scopes_do_not_hide_each_other():
    """Two branches with a local weight of the same name give two layers with names of their own."""

    def branch(seed, out):
        nodes = [node("MatMul", ["x", "W"], [out], name=f"mm_{out}")]
        return body(nodes, [], [info(out, None)], {"W": normal(4, 4, seed=seed)})

    call = node("If", ["c"], ["y"], then_branch=branch(1, "t"), else_branch=branch(2, "e"))
    source = model([call], [info("c", (), TensorProto.BOOL), info("x", (2, 4))], [info("y", (2, 4))])
    assert {site.layer.name for site in find_sites(source)} == {"mm_t", "mm_e"}
    for taken in (True, False):
        assert_factored_same(source, {"c": np.array(taken), "x": normal(2, 4)})


def test_rows_of_a_loop_whose_rounds_differ_in_length():
    """h grows by a row in each round: a scan output could not hold it, gathered rows can."""
    nodes = [
        node("MatMul", ["h", "W"], ["m"]),
        node("Concat", ["h", "more"], ["h2"], axis=0),
        node("ReduceSum", ["m"], ["s"], keepdims=0),
        node("Identity", ["c"], ["c2"]),
    ]
    inputs = [info("i", (), TensorProto.INT64), info("c", (), TensorProto.BOOL), info("h", (None, 4))]
    inner = body(nodes, inputs, [info("c2", (), TensorProto.BOOL), info("h2", (None, 4)), info("s", ())])
    loop = node("Loop", ["n", "", "h0"], ["hn", "sums"], body=inner)
    weights = {"n": np.array(3), "W": normal(4, 5, seed=1), "more": normal(1, 4, seed=2)}
    source = model([loop], [info("h0", (2, 4))], [info("hn", (None, 4)), info("sums", (3,))], weights)
    feed = {"h0": normal(2, 4)}
    assert_factored_same(source, feed)
    watched, observed = with_observed_inputs(source, ["W"])
    fetched = fetch(watched, feed)
    rounds = [np.concatenate([feed["h0"], *([weights["more"]] * k)]) for k in range(3)]
    np.testing.assert_array_equal(observed["W"].rows(fetched[observed["W"].outputs[0]]), np.concatenate(rounds))
    for name, expected in zip(("hn", "sums"), run(source, feed), strict=True):
        np.testing.assert_array_equal(fetched[name], expected)


def test_a_branch_in_a_scan_cannot_be_observed():
    then = body([node("Relu", ["x"], ["r"]), node("MatMul", ["r", "W"], ["t"])], [], [info("t", None)])
    other = body([node("Neg", ["x"], ["e"])], [], [info("e", None)])
    nodes = [
        node("ReduceMax", ["x"], ["top"], keepdims=0),
        node("Cast", ["top"], ["c"], to=TensorProto.BOOL),
        node("If", ["c"], ["y"], then_branch=then, else_branch=other),
        node("Identity", ["s"], ["s2"]),
    ]
    inner = body(nodes, [info("s", (1,)), info("x", (2, 4))], [info("s2", (1,)), info("y", (2, 4))])
    scan = node("Scan", ["s0", "xs"], ["sn", "ys"], body=inner, num_scan_inputs=1)
    ends = [info("s0", (1,)), info("xs", (3, 2, 4))]
    source = model([scan], ends, [info("sn", (1,)), info("ys", (3, 2, 4))], {"W": normal(4, 4)})
    feed = {"s0": np.zeros(1, np.float32), "xs": normal(3, 2, 4)}
    assert_factored_same(source, feed)
    watched, observed = with_observed_inputs(source, ["W"])
    assert observed == {}
    np.testing.assert_array_equal(run(watched, feed)[1], run(source, feed)[1])


def test_a_branch_in_a_function():
    then = body([const("W", normal(4, 4)), node("MatMul", ["a", "W"], ["t"])], [], [info("t", None)])
    other = body([node("Neg", ["a"], ["e"])], [], [info("e", None)])
    inside = [node("If", ["c"], ["z"], then_branch=then, else_branch=other)]
    choose = helper.make_function("mine", "Choose", ["c", "a"], ["z"], inside, FUNCTION_OPSETS)
    call = node("Choose", ["c", "x"], ["y"], domain="mine")
    ends = [info("c", (), TensorProto.BOOL), info("x", (2, 4))]
    source = model([call], ends, [info("y", (2, 4))], functions=[choose], domains=["mine"])
    assert [site.layer.name for site in find_sites(source)] == ["W"]
    x = normal(2, 4, seed=3)
    for taken in (True, False):
        assert_factored_same(source, {"c": np.array(taken), "x": x})
    watched, observed = with_observed_inputs(source, ["W"])
    fetched = fetch(watched, {"c": np.array(True), "x": x})
    np.testing.assert_array_equal(observed["W"].rows(*(fetched[o] for o in observed["W"].outputs)), x)
