from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgepack.backends.onnx.sites import find_sites
from edgepack.backends.onnx.values import is_meaningful
from tests.backends.onnx.graph_models import assert_factored_same, const, info, model, normal, run

OPSETS = [11, 12, 13, 16, 18, 21, 23]
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def names(source: ir.Model) -> list[str]:
    return [site.layer.name for site in find_sites(source)]


@quick
@given(
    m=st.integers(1, 4),
    k=st.integers(1, 6),
    n=st.integers(1, 6),
    flags=st.tuples(st.booleans(), st.booleans()),
    left=st.booleans(),
    alpha=st.sampled_from([1.0, 0.5, -2.0]),
    beta=st.sampled_from([1.0, 0.0, 0.25]),
    c=st.sampled_from(["none", "()", "(1)", "(n)", "(1,n)", "(m,1)", "(m,n)", "dynamic"]),
    opset=st.sampled_from(OPSETS),
)
def test_gemm_with_every_option(m, k, n, flags, left, alpha, beta, c, opset):
    a, b = normal(*((k, m) if flags[0] else (m, k)), seed=1), normal(*((n, k) if flags[1] else (k, n)), seed=2)
    shapes = {"()": (), "(1)": (1,), "(n)": (n,), "(1,n)": (1, n), "(m,1)": (m, 1), "(m,n)": (m, n), "dynamic": (m, n)}
    weights, inputs = ({"W": a}, [info("x", b.shape)]) if left else ({"W": b}, [info("x", a.shape)])
    feed = {"x": b if left else a}
    third = []
    if c != "none":
        third = ["c"]
        array = normal(*shapes[c], seed=3)
        if c == "dynamic":
            inputs, feed = [*inputs, info("c", array.shape)], {**feed, "c": array}
        else:
            weights = {**weights, "c": array}
    ends = ["W", "x"] if left else ["x", "W"]
    node = helper.make_node(
        "Gemm", ends + third, ["y"], alpha=alpha, beta=beta, transA=int(flags[0]), transB=int(flags[1])
    )
    source = model([node], inputs, [info("y", (m, n))], weights, opset=opset)
    (site,) = find_sites(source)
    expected = alpha * (a.T if flags[0] else a) if left else alpha * (b if flags[1] else b.T)
    np.testing.assert_allclose(site.layer.weight, expected, rtol=1e-6)
    assert site.placements[0].kind == ("columns" if left else "rows")
    assert_factored_same(source, feed)


@quick
@given(
    rank=st.integers(1, 4),
    left=st.booleans(),
    chain=st.sampled_from(["plain", "identity", "transpose", "constant", "reshape", "cast", "unsqueeze", "deep"]),
    bias=st.sampled_from(["none", "scalar", "vector", "column", "row", "matrix", "first"]),
    stated=st.booleans(),
    opset=st.sampled_from(OPSETS),
)
def test_matmul_behind_views_with_biases(rank, left, chain, bias, stated, opset):
    n, k, steps = 5, 3, 4
    w = normal(n, k, seed=1) if left else normal(k, n, seed=1)
    nodes, weights = _chain(chain, w, opset)
    if rank == 1:
        shape: tuple[int, ...] = (k,)
    else:
        shape = (*(2, 3)[: rank - 2], k, steps) if left else (*(2, 3)[: rank - 2], steps, k)
    nodes.append(helper.make_node("MatMul", ["W", "x"] if left else ["x", "W"], ["h"], name="mm"))
    out = "h"
    shapes = {"scalar": (), "vector": (n,), "column": (n, 1), "row": (1, n), "matrix": (n, steps), "first": (1, 1, n)}
    if bias != "none" and _broadcasts(shapes[bias], shape, left, n, steps):
        weights["b"] = normal(*shapes[bias], seed=2)
        nodes.append(helper.make_node("Add", ["b", "h"] if stated else ["h", "b"], ["y"], name="add"))
        out = "y"
    source = model(nodes, [info("x", shape if stated else [None] * rank)], [info(out, None)], weights, opset=opset)
    (site,) = find_sites(source)
    np.testing.assert_allclose(site.layer.weight, w if left else w.T, rtol=1e-3)
    assert_factored_same(source, {"x": normal(*shape, seed=4)}, tol=5e-3 if chain in ("cast", "deep") else 2e-4)


def _broadcasts(bias, x, left, n, steps):
    y = (n,) if len(x) == 1 else (*x[:-2], n, steps) if left else (*x[:-1], n)
    try:
        np.broadcast_shapes(bias, y)
    except ValueError:
        return False
    return True


def _chain(chain, w, opset):
    """Nodes and initializers that make the value W equal to `w`."""
    node = helper.make_node
    if chain == "constant":
        return [const("W", w)], {}
    if chain == "identity":
        return [node("Identity", ["w0"], ["W"])], {"w0": w}
    if chain == "transpose":
        return [node("Transpose", ["w0"], ["W"], perm=[1, 0])], {"w0": np.ascontiguousarray(w.T)}
    if chain == "reshape":
        return [node("Reshape", ["w0", "s"], ["W"])], {"w0": w.ravel(), "s": np.array([w.shape[0], -1])}
    if chain == "cast":
        return [node("Cast", ["w0"], ["W"], to=TensorProto.FLOAT)], {"w0": w.astype(np.float16)}
    if chain == "unsqueeze":
        weights = {"w0": w}
        if opset < 13:
            return [node("Unsqueeze", ["w0"], ["w1"], axes=[0]), node("Squeeze", ["w1"], ["W"], axes=[0])], weights
        weights["ax"] = np.array([0])
        return [node("Unsqueeze", ["w0", "ax"], ["w1"]), node("Squeeze", ["w1", "ax"], ["W"])], weights
    if chain == "deep":
        nodes = [const("w0", w.T.astype(np.float16)), node("Identity", ["w0"], ["w1"])]
        nodes += [node("Transpose", ["w1"], ["w2"]), node("Cast", ["w2"], ["W"], to=TensorProto.FLOAT)]
        return nodes, {}
    return [], {"W": w}


@quick
@given(
    spatial=st.integers(1, 3),
    own=st.booleans(),
    add=st.sampled_from(["none", "channel", "scalar", "full"]),
    opset=st.sampled_from(OPSETS),
)
def test_pointwise_convolutions(spatial, own, add, opset):
    ones, size = (1,) * spatial, (3,) * spatial
    weights = {"K": normal(6, 4, *ones, seed=1)}
    if own:
        weights["kb"] = normal(6, seed=2)
    nodes = [helper.make_node("Conv", ["x", "K", *(["kb"] if own else [])], ["h"], name="conv")]
    out = "h"
    if add != "none":
        shape = {"channel": (6, *ones), "scalar": (1,), "full": (6, *size)}[add]
        weights["b"] = normal(*shape, seed=3)
        nodes.append(helper.make_node("Add", ["h", "b"], ["y"]))
        out = "y"
    source = model(nodes, [info("x", (2, 4, *size))], [info(out, (2, 6, *size))], weights, opset=opset)
    (site,) = find_sites(source)
    absorbed = own or add in ("channel", "scalar")
    assert (site.layer.bias is not None) == absorbed
    assert site.placements[0].kind == "conv"
    assert_factored_same(source, {"x": normal(2, 4, *size)})


@pytest.mark.parametrize(
    "options", [{"strides": [2, 2]}, {"pads": [1, 1, 1, 1]}, {"kernel": (6, 4, 3, 1)}, {"auto_pad": "SAME_LOWER"}]
)
def test_other_convolutions_are_layers_of_their_own_kind(options):
    kernel = options.pop("kernel", (6, 4, 2, 2) if "auto_pad" in options else (6, 4, 1, 1))
    node = helper.make_node("Conv", ["x", "K"], ["y"], **options)
    source = model([node], [info("x", (1, 4, 5, 5))], [info("y", None)], {"K": normal(*kernel)})
    (site,) = find_sites(source)
    assert (site.layer.kind, site.layer.weight.shape) == ("conv", (6, 4 * kernel[2] * kernel[3]))
    assert_factored_same(source, {"x": normal(1, 4, 5, 5)})


@pytest.mark.parametrize(
    ("kernel", "group"), [((6, 2, 1, 1), 2), ((6, 2, 3, 3), 2), ((4, 1, 3, 3), 4), ((6, 4, 2, 2, 2), 1)]
)
def test_grouped_and_deeper_convolutions_are_no_layers(kernel, group):
    node = helper.make_node("Conv", ["x", "K"], ["y"], group=group)
    x = info("x", (1, 4, *(5,) * (len(kernel) - 2)))
    assert names(model([node], [x], [info("y", None)], {"K": normal(*kernel)})) == []


def test_a_kernel_that_is_used_in_two_ways_is_two_layers():
    nodes = [
        helper.make_node("Conv", ["x", "K"], ["a"], name="plain", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "K"], ["b"], name="again", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b", "K"], ["c"], name="strided", strides=[2, 2]),
        helper.make_node("Add", ["c", "bias"], ["y"]),
    ]
    weights = {"K": normal(4, 4, 3, 3), "bias": normal(4, 1, 1, seed=1)}
    source = model(nodes, [info("x", (1, 4, 7, 7))], [info("y", None)], weights)
    first, second = find_sites(source)
    assert [(site.layer.name, site.layer.uses) for site in (first, second)] == [("plain", 2), ("strided", 1)]
    assert first.layer.bias is None
    np.testing.assert_array_equal(second.layer.bias, weights["bias"].ravel())
    assert_factored_same(source, {"x": normal(1, 4, 7, 7)})


def test_automatic_padding_of_a_pointwise_kernel_is_none():
    node = helper.make_node("Conv", ["x", "K"], ["y"], auto_pad="SAME_UPPER")
    source = model([node], [info("x", (1, 4, 5, 5))], [info("y", None)], {"K": normal(6, 4, 1, 1)})
    assert names(source) == ["K"]
    assert_factored_same(source, {"x": normal(1, 4, 5, 5)})


def test_things_that_are_not_layers():
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "W"], ["custom"], domain="mine", name="custom"),
        node("MatMul", ["x", "x"], ["square"], name="square"),
        node("MatMul", ["W", "W"], ["constant"], name="constant"),
        node("MatMul", ["x", "V"], ["vector"], name="vector"),
        node("MatMul", ["x", "T"], ["stack"], name="stack"),
        node("DequantizeLinear", ["Q", "scale"], ["W8"]),
        node("MatMul", ["x", "W8"], ["quantized"], name="quantized"),
        node("Cast", ["Q"], ["Wq"], to=TensorProto.FLOAT),
        node("MatMul", ["x", "Wq"], ["cast"], name="cast"),
    ]
    weights = {
        "W": normal(4, 4),
        "V": normal(4),
        "T": normal(2, 4, 4),
        "Q": np.ones((4, 4), np.int8),
        "scale": np.float32(0.1) * np.ones((), np.float32),
    }
    outputs = ["custom", "square", "constant", "vector", "stack", "quantized", "cast"]
    source = model(nodes, [info("x", (4, 4))], [info(o, None) for o in outputs], weights, domains=["mine"])
    assert names(source) == []


def test_one_weight_in_several_nodes_is_one_site_stored_once():
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "W"], ["a"], name="one"),
        node("Add", ["a", "b"], ["a2"]),
        node("Identity", ["W"], ["Wi"]),
        node("MatMul", ["a2", "Wi"], ["c"], name="two"),
        node("Add", ["c", "b"], ["y"]),
    ]
    source = model(nodes, [info("x", (2, 4))], [info("y", (2, 4))], {"W": normal(4, 4), "b": normal(4, seed=1)})
    (site,) = find_sites(source)
    assert (site.layer.name, site.layer.uses, len(site.placements)) == ("W", 2, 2)
    assert site.layer.bias is not None
    thin = assert_factored_same(source, {"x": normal(2, 4, seed=2)})
    assert sorted(thin.graph.initializers) == ["W.A", "W.B", "W.bias"]


@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Conv"])
def test_shared_weight_with_different_biases_keeps_them_apart(op):
    node = helper.make_node
    weights = {"b1": normal(4, seed=1), "b2": normal(4, seed=2), "W": normal(4, 4)}
    if op == "MatMul":
        nodes = [node(op, ["x", "W"], ["h1"]), node("Add", ["h1", "b1"], ["h"]), node(op, ["h", "W"], ["h2"])]
        nodes.append(node("Add", ["h2", "b2"], ["y"]))
        shape: tuple[int, ...] = (3, 4)
    elif op == "Gemm":
        nodes = [node(op, ["x", "W", "b1"], ["h"], beta=0.5), node(op, ["h", "W", "b2"], ["y"])]
        shape = (3, 4)
    else:
        weights["W"] = normal(4, 4, 1, 1)
        nodes, shape = [node(op, ["x", "W", "b1"], ["h"]), node(op, ["h", "W", "b2"], ["y"])], (1, 4, 2, 3)
    source = model(nodes, [info("x", shape)], [info("y", shape)], weights)
    (site,) = find_sites(source)
    assert site.layer.bias is None
    assert_factored_same(source, {"x": normal(*shape, seed=3)})


def test_tied_embedding_keeps_its_table():
    node = helper.make_node
    nodes = [
        node("Gather", ["E", "ids"], ["h"], name="embed"),
        node("Transpose", ["E"], ["Et"], perm=[1, 0]),
        node("MatMul", ["h", "Et"], ["y"], name="head"),
    ]
    source = model(nodes, [info("ids", (2, 3), TensorProto.INT64)], [info("y", (2, 3, 9))], {"E": normal(9, 4)})
    thin = assert_factored_same(source, {"ids": np.arange(6).reshape(2, 3)})
    assert "E" in thin.graph.initializers
    assert [n.op_type for n in thin.graph] == ["Gather", "MatMul", "MatMul"]


def test_both_orientations_of_one_weight_are_two_sites():
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "W"], ["h"], name="up"),
        node("Transpose", ["W"], ["Wt"]),
        node("MatMul", ["h", "Wt"], ["y"], name="down"),
    ]
    source = model(nodes, [info("x", (2, 4))], [info("y", (2, 4))], {"W": normal(4, 6)})
    assert names(source) == ["up", "down"]
    thin = assert_factored_same(source, {"x": normal(2, 4, seed=2)})
    assert "W" not in thin.graph.initializers


def test_middle_value_that_others_see_keeps_its_add_apart():
    node = helper.make_node
    nodes = [node("MatMul", ["x", "W"], ["h"]), node("Add", ["h", "b"], ["y"]), node("Relu", ["h"], ["r"])]
    weights = {"W": normal(4, 5), "b": normal(5)}
    source = model(nodes, [info("x", (2, 4))], [info("y", None), info("r", None)], weights)
    (site,) = find_sites(source)
    assert site.layer.bias is None
    assert site.placements[0].absorbed == (site.placements[0].node,)
    assert_factored_same(source, {"x": normal(2, 4)})
    as_output = model(nodes[:2], [info("x", (2, 4))], [info("h", None), info("y", None)], weights)
    assert find_sites(as_output)[0].layer.bias is None
    assert_factored_same(as_output, {"x": normal(2, 4)})


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_stay_what_they_are(dtype):
    node, code = helper.make_node, helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [node("Gemm", ["x", "W", "b"], ["h"], alpha=2.0), node("MatMul", ["h", "V"], ["y"])]
    weights = {"W": normal(4, 5, dtype=dtype), "b": normal(5, dtype=dtype), "V": normal(5, 3, dtype=dtype)}
    source = model(nodes, [info("x", (2, 4), code)], [info("y", (2, 3), code)], weights)
    assert {site.dtype for site in find_sites(source)} == {np.dtype(dtype)}
    assert {site.layer.weight.dtype for site in find_sites(source)} == {np.dtype(np.float32)}
    tol = 2e-2 if dtype == np.float16 else 1e-6
    thin = assert_factored_same(source, {"x": normal(2, 4, dtype=dtype)}, tol)
    assert {v.const_value.numpy().dtype for v in thin.graph.initializers.values()} == {np.dtype(dtype)}


def test_weight_stored_as_half_behind_a_cast_stays_stored_as_half():
    nodes = [helper.make_node("Cast", ["W"], ["W32"], to=1), helper.make_node("MatMul", ["x", "W32"], ["y"])]
    source = model(nodes, [info("x", (2, 4))], [info("y", (2, 5))], {"W": normal(4, 5, dtype=np.float16)})
    (site,) = find_sites(source)
    assert (site.dtype, site.stored_dtype) == (np.float32, np.float16)
    thin = assert_factored_same(source, {"x": normal(2, 4)}, tol=5e-3)
    assert {v.const_value.numpy().dtype for v in thin.graph.initializers.values()} == {np.dtype(np.float16)}


def test_initializers_listed_as_inputs_before_ir_version_4():
    nodes = [helper.make_node("Gemm", ["x", "W", "b"], ["y"])]
    weights = {"W": normal(4, 5), "b": normal(5)}
    inputs = [info("x", (2, 4)), info("W", (4, 5)), info("b", (5,))]
    source = model(nodes, inputs, [info("y", (2, 5))], weights, opset=8, ir_version=3)
    assert names(source) == ["W"]
    thin = assert_factored_same(source, {"x": normal(2, 4)})
    assert [v.name for v in thin.graph.inputs] == ["x"]


def test_overridable_initializers_count_as_constants():
    inputs = [info("x", (2, 4)), info("W", (4, 5))]
    source = model([helper.make_node("MatMul", ["x", "W"], ["y"])], inputs, [info("y", (2, 5))], {"W": normal(4, 5)})
    assert names(source) == ["W"]
    assert_factored_same(source, {"x": normal(2, 4)})


def test_names_fall_back_from_weight_to_node_to_output():
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "fc.weight"], ["a"], name="n1"),
        node("MatMul", ["a", "onnx::MatMul_12"], ["b"], name="/enc/fc/MatMul"),
        node("MatMul", ["b", "val_7"], ["c"]),
        node("MatMul", ["c", "val_8"], ["y"], name="fc.weight"),
    ]
    weights = {name: normal(4, 4, seed=i) for i, name in enumerate(["fc.weight", "onnx::MatMul_12", "val_7", "val_8"])}
    source = model(nodes, [info("x", (2, 4))], [info("y", (2, 4))], weights)
    expected = ["fc.weight", "/enc/fc/MatMul", "c", "fc.weight_2"]
    assert names(source) == expected == names(source.clone())


@pytest.mark.parametrize(
    "name", ["fc1.weight", "W", "W1", "dense_1/kernel", "w_2", "val_3.B", "/a/Constant.A", "embed"]
)
def test_meaningful_names(name):
    assert is_meaningful(name)


@pytest.mark.parametrize(
    "name", ["onnx::MatMul_12", "val_7", "a/b/Const_24:0", "/x/Constant_3_output_0", "17", "const_fold_opt__9"]
)
def test_counted_names(name):
    assert not is_meaningful(name)


def test_weights_are_views_not_copies():
    w = normal(64, 32)
    source = model([helper.make_node("MatMul", ["x", "W"], ["y"])], [info("x", (2, 64))], [info("y", None)], {"W": w})
    array = np.frombuffer(w.tobytes(), np.float32).reshape(w.shape)
    source.graph.initializers["W"].const_value = ir.Tensor(array, name="W")
    (site,) = find_sites(source)
    assert np.shares_memory(site.layer.weight, array)


def test_bias_of_a_row_is_taken_only_where_the_rank_allows_it():
    """(1, 5) added to a vector gives a matrix, so the rank decides; shape inference finds it where it is unstated."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("MatMul", ["r", "W"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["y"]),
    ]
    weights = {"W": normal(4, 5), "b": normal(1, 5)}
    matrix = model(nodes, [info("x", (2, 4))], [info("y", None)], weights)
    vector = model(nodes, [info("x", (4,))], [info("y", None)], weights)
    assert find_sites(matrix)[0].layer.bias is not None
    assert find_sites(vector)[0].layer.bias is None
    assert run(vector, {"x": normal(4)})[0].shape == (1, 5)
    assert_factored_same(matrix, {"x": normal(2, 4)})
    assert_factored_same(vector, {"x": normal(4)})
    assert all(v.shape is None for n in matrix.graph for v in n.outputs[:1] if v.name in ("r", "h"))


def test_graph_order():
    nodes = [helper.make_node("MatMul", [f"h{i}", f"w{i}.k"], [f"h{i + 1}"]) for i in range(6)]
    weights = {f"w{i}.k": normal(3, 3, seed=i) for i in reversed(range(6))}
    assert names(model(nodes, [info("h0", (1, 3))], [info("h6", None)], weights)) == [f"w{i}.k" for i in range(6)]


def test_opset_range_reaches_the_newest_that_the_runtime_knows():
    assert max(OPSETS) <= onnx.defs.onnx_opset_version()
