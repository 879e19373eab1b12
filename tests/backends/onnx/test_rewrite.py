from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from edgepack.backends.onnx.file import to_bytes
from edgepack.backends.onnx.rewrite import Builder, names_after, rewrite, with_factors
from edgepack.backends.onnx.sites import find_sites
from edgepack.errors import ModelError
from edgepack.model.replacement import low_rank, low_rank_correction
from tests.backends.onnx.graph_models import assert_same, const, factored, full_rank, info, model, normal, proto, run

node = helper.make_node


def mlp() -> onnx.ModelProto:
    nodes = [
        node("MatMul", ["x", "w1.k"], ["m1"], name="mm1", doc_string="first"),
        node("Add", ["m1", "b1"], ["a1"], name="add1"),
        node("Relu", ["a1"], ["r1"], name="relu", doc_string="kept"),
        node("Gemm", ["r1", "w2.k", "b2"], ["y"], name="gemm2", transB=1),
    ]
    weights = {
        "w1.k": normal(6, 8, seed=1),
        "b1": normal(8, seed=2),
        "w2.k": normal(4, 8, seed=3),
        "b2": normal(4, seed=4),
    }
    made = proto(nodes, [info("x", ("n", 6))], [info("y", ("n", 4))], weights)
    made.graph.value_info.append(info("a1", ("n", 8)))
    made.metadata_props.add(key="k", value="v")
    made.graph.node[2].metadata_props.add(key="scope", value="relu")
    made.producer_name, made.doc_string, made.graph.doc_string = "maker", "about", "graph"
    return made


def load(made: onnx.ModelProto) -> ir.Model:
    return ir.serde.deserialize_model(made)


def test_everything_else_stays_as_it_was():
    source = load(mlp())
    site = find_sites(source)[0]
    thin = ir.serde.serialize_model(with_factors(source, {site.layer.name: full_rank(site.layer)}))
    before = ir.serde.serialize_model(source)
    assert [n.op_type for n in thin.graph.node] == ["MatMul", "MatMul", "Add", "Relu", "Gemm"]
    assert list(thin.graph.node[3:]) == list(before.graph.node[2:])
    assert thin.graph.node[2].output == ["a1"]
    assert [i.name for i in thin.graph.initializer] == ["w2.k", "b2", "w1.k.B", "w1.k.A", "w1.k.bias"]
    kept = {v.name: v for v in thin.graph.value_info}
    assert kept["a1"] == info("a1", ("n", 8))
    assert set(kept) == {"a1", *(i.name for i in thin.graph.initializer)}  # latents state nothing that could go stale
    for field in ("input", "output", "doc_string", "name"):
        assert getattr(thin.graph, field) == getattr(before.graph, field)
    for field in ("metadata_props", "producer_name", "doc_string", "ir_version", "opset_import"):
        assert getattr(thin, field) == getattr(before, field)


def test_unchanged_tensors_are_shared_and_the_source_is_untouched():
    source = load(mlp())
    before = to_bytes(source)
    first, second = find_sites(source)
    thin = with_factors(source, {second.layer.name: full_rank(second.layer)})
    assert thin.graph.initializers["w1.k"].const_value is source.graph.initializers["w1.k"].const_value
    assert to_bytes(source) == before
    assert [site.layer.name for site in find_sites(thin)] == [first.layer.name, "w2.k.B", "w2.k.A"]


def test_layers_can_be_factored_one_after_the_other_in_any_order():
    source, x = load(mlp()), {"x": normal(3, 6)}
    one, two = (site.layer for site in find_sites(source))
    step = with_factors(with_factors(source, {two.name: full_rank(two)}), {one.name: full_rank(one)})
    once = with_factors(source, {two.name: full_rank(two), one.name: full_rank(one)})
    assert_same(source, step, x)
    assert_same(step, once, x, tol=1e-7)


def test_low_rank_gives_the_product_of_its_factors():
    source, x = load(mlp()), normal(3, 6)
    layer = find_sites(source)[0].layer
    pair = low_rank(normal(8, 2, seed=5), normal(2, 6, seed=6), normal(8, seed=7))
    hidden = np.maximum(x @ (pair.A @ pair.B).T + pair.bias, 0)
    expected = hidden @ normal(4, 8, seed=3).T + normal(4, seed=4)
    np.testing.assert_allclose(
        run(with_factors(source, {layer.name: pair}), {"x": x})[0], expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Columns", "Conv"])
def test_a_bias_may_appear_where_there_was_none(op):
    weight, shape, axis = normal(5, 4), (3, 4), -1
    call = {"MatMul": node("MatMul", ["x", "W"], ["y"]), "Gemm": node("Gemm", ["x", "W"], ["y"], transB=1)}.get(op)
    if op == "MatMul":
        weight = weight.T
    elif op == "Columns":
        call, shape, axis = node("MatMul", ["W", "x"], ["y"]), (2, 4, 3), -2
    elif op == "Conv":
        call, shape, axis, weight = node("Conv", ["x", "W"], ["y"]), (2, 4, 3, 3), 1, weight.reshape(5, 4, 1, 1)
    source = model([call], [info("x", shape)], [info("y", None)], {"W": np.ascontiguousarray(weight)})
    (site,) = find_sites(source)
    bias, x = normal(5, seed=8), normal(*shape, seed=9)
    pair = full_rank(site.layer)
    shifted = run(with_factors(source, {"W": low_rank(pair.A, pair.B, bias)}), {"x": x})[0]
    expected = np.moveaxis(np.moveaxis(run(source, {"x": x})[0], axis, -1) + bias, -1, axis)
    np.testing.assert_allclose(shifted, expected, atol=1e-4)


def test_bias_none_keeps_the_layers_own():
    source, x = load(mlp()), {"x": normal(3, 6)}
    pairs = {s.layer.name: full_rank(s.layer) for s in find_sites(source)}
    assert_same(source, with_factors(source, {n: low_rank(p.A, p.B, None) for n, p in pairs.items()}), x)


def test_factors_that_do_not_fit():
    source = load(mlp())
    with pytest.raises(ModelError) as caught:
        with_factors(source, {"w1.kk": low_rank(normal(8, 2), normal(2, 6), None)})
    assert caught.value.hint == "did you mean 'w1.k'?"
    for pair in (
        low_rank(normal(6, 2), normal(2, 8), None),
        low_rank(normal(8, 2), normal(3, 6), None),
        low_rank(normal(8, 2), normal(2, 6), normal(9)),
    ):
        with pytest.raises(ModelError, match=r"'w1\.k'"):
            with_factors(source, {"w1.k": pair})


def product(builder: Builder, x: ir.Value, placement: object, weight: np.ndarray, name: str = "new") -> ir.Value:
    return builder.op("MatMul", [x, builder.constant(np.ascontiguousarray(weight.T), name)])


def test_builder_with_several_outputs_attributes_and_a_custom_domain():
    source = load(mlp())
    site = find_sites(source)[1]

    def build(builder, x, placement):
        assert builder.opset == 17
        halves = builder.op("Split", [x, builder.constant(np.array([3, 5]), "sizes")], {"axis": 1}, outputs=2)
        assert len(halves) == 2
        joined = builder.op("Concat", halves, {"axis": 1})
        scaled = builder.op("QuickGelu", [joined], {"alpha": 1.0}, domain="com.microsoft")
        y = builder.op("Gemm", [joined, builder.constant(site.layer.weight, "again")], {"transB": 1})
        return builder.op("Add", [y, builder.op("ReduceSum", [builder.op("Sub", [scaled, scaled])])])

    bare = load(mlp())
    rewrite(source, site, build)
    assert source.opset_imports["com.microsoft"] == 1
    expected = run(bare, {"x": normal(2, 6)})[0] - normal(4, seed=4)
    np.testing.assert_allclose(run(source, {"x": normal(2, 6)})[0], expected, atol=1e-5)
    assert source.graph.outputs[0].name == "y"
    names = [v.name for n in source.graph for v in n.outputs]
    assert len(set(names)) == len(names)


def test_new_names_avoid_the_old_ones():
    weights = {"W": normal(4, 4), "W.B": normal(4, seed=1)}
    nodes = [node("MatMul", ["x", "W"], ["h"]), node("Mul", ["h", "W.B"], ["y"])]
    source = model(nodes, [info("x", (2, 4))], [info("y", (2, 4))], weights)
    thin = factored(source)
    assert_same(source, thin, {"x": normal(2, 4)})
    assert list(thin.graph.initializers) == ["W.B", "W.B_2", "W.A"]


@pytest.mark.parametrize("answer", ["input", "constant", "other output"])
def test_build_may_return_a_value_that_is_not_its_own(answer):
    nodes = [node("Abs", ["x"], ["p"]), node("MatMul", ["p", "W"], ["y"]), node("Neg", ["y"], ["z"])]
    outputs = [info("p", (4, 4)), info("y", (4, 4)), info("z", (4, 4))]
    source = model(nodes, [info("x", (4, 4))], outputs, {"W": normal(4, 4)})
    eye = np.eye(4, dtype=np.float32)

    def build(builder, x, placement):
        return {"input": x, "constant": builder.constant(eye, "eye"), "other output": source.graph.outputs[0]}[answer]

    rewrite(source, find_sites(source)[0], build)
    x = normal(4, 4, seed=2)
    p, y, z = run(source, {"x": x})
    np.testing.assert_array_equal(y, eye if answer == "constant" else np.abs(x))
    np.testing.assert_array_equal(z, -y)
    np.testing.assert_array_equal(p, np.abs(x))
    assert [v.name for v in source.graph.outputs] == ["p", "y", "z"]


def test_an_output_that_a_branch_captures_is_replaced_there_too():
    branch = helper.make_graph([node("Relu", ["h"], ["t"])], "b", [], [info("t", None)])
    other = helper.make_graph([node("Neg", ["h"], ["e"])], "b", [], [info("e", None)])
    nodes = [node("MatMul", ["x", "W"], ["h"]), node("If", ["c"], ["y"], then_branch=branch, else_branch=other)]
    inputs = [info("c", (), TensorProto.BOOL), info("x", (2, 4))]
    source = model(nodes, inputs, [info("y", (2, 4))], {"W": normal(4, 4)})
    for taken in (True, False):
        assert_same(source, factored(source), {"c": np.array(taken), "x": normal(2, 4)})


def test_views_and_constants_that_led_to_the_weight_go_with_it():
    nodes = [
        const("w0", normal(4, 4)),
        const("s", np.array([4, 4])),
        node("Reshape", ["w0", "s"], ["w1"]),
        node("Identity", ["w1"], ["w2"]),
        node("MatMul", ["x", "w2"], ["h"]),
        node("Reshape", ["h", "s"], ["y"]),
    ]
    source = model(nodes, [info("x", (4, 4))], [info("y", (4, 4))])
    thin = factored(source)
    assert [n.op_type for n in thin.graph] == ["Constant", "MatMul", "MatMul", "Reshape"]  # the shape is still in use
    assert_same(source, thin, {"x": normal(4, 4)})


def test_a_site_is_rewritten_once():
    source = load(mlp())
    site = find_sites(source)[0]
    rewrite(source, site, lambda b, x, p: product(b, x, p, site.layer.weight))
    with pytest.raises(ValueError, match="earlier rewrite"):
        rewrite(source, site, lambda b, x, p: product(b, x, p, site.layer.weight))


def executed(work: Callable[[], object]) -> int:
    """Instructions of the interpreter: the same in every run, whatever else the machine does."""
    count = 0

    def trace(frame: FrameType, event: str, value: object) -> Any:
        nonlocal count
        count += 1
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def test_work_grows_with_the_layers_and_not_with_their_square():
    def instructions(layers):
        nodes = [node("MatMul", [f"h{i}", f"w{i}.k"], [f"h{i + 1}"]) for i in range(layers)]
        weights = {f"w{i}.k": normal(4, 4, seed=i) for i in range(layers)}
        source = model(nodes, [info("h0", (1, 4))], [info(f"h{layers}", (1, 4))], weights)
        pairs = {site.layer.name: full_rank(site.layer) for site in find_sites(source)}
        assert len(with_factors(source, pairs).graph) == 2 * layers
        return executed(lambda: with_factors(source, pairs))

    assert instructions(1000) < 11 * instructions(100)


def test_what_layers_are_called_afterwards():
    source = load(mlp())
    first, second = (site.layer for site in find_sites(source.clone()))
    pair = full_rank(first)
    for given, count in ((pair, 2), (low_rank_correction(pair.A, pair.B, pair.bias, first.weight), 3)):
        thin = with_factors(source, {first.name: given})
        names = names_after(source, thin, {first.name: given})
        assert len(names[first.name]) == count
        assert names[second.name] == (second.name,)
        found = [site.layer.name for site in find_sites(thin.clone())]
        assert found == [*names[first.name], *names[second.name]]
