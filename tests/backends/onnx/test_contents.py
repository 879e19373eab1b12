"""Reading back what a file holds: every matrix that is multiplied, once, and every vector that may be a bias."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from edgepack.backends.onnx.contents import read_contents
from edgepack.backends.onnx.session import session
from edgepack.model.types import Array, Contents
from tests.backends.onnx.graph_models import const, info, normal, proto

node = helper.make_node
X, Y = info("x", ["N", 12]), info("y", ["N", 5])


def contents(tmp_path: Path, *args: object, **options: object) -> Contents:
    path = tmp_path / "m.onnx"
    onnx.save(proto(*args, **options), path)  # type: ignore[arg-type]
    return read_contents(path)


def has(found: Contents, vector: Array) -> bool:
    return any(v.shape == vector.shape and np.allclose(v, vector, rtol=1e-6) for v in found.vectors)


@pytest.mark.parametrize("shape", [(5,), (1, 5)])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_gemm(tmp_path: Path, shape: tuple[int, ...], beta: float) -> None:
    """A bias of two axes is no matrix, and counts with its factor."""
    b = normal(5, seed=1)
    gemm = node("Gemm", ["x", "w", "b"], ["y"], beta=beta)
    found = contents(tmp_path, [gemm], [X], [Y], {"w": normal(12, 5), "b": b.reshape(shape)})
    assert found.weights == ((5, 12, 32),)
    assert has(found, b * beta)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (1, 1, 5)])
def test_matmul_and_add(tmp_path: Path, shape: tuple[int, ...]) -> None:
    b = normal(5, seed=1)
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Add", ["b", "m"], ["y"])]
    found = contents(
        tmp_path, nodes, [info("x", ["N", 2, 12])], [info("y", None)], {"w": normal(12, 5), "b": b.reshape(shape)}
    )
    assert found.weights == ((5, 12, 32),)
    assert has(found, b)


def test_convolutions_count_as_matrices(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w", "b"], ["h"]),
        node("Conv", ["h", "k"], ["d"]),
        node("Conv", ["d", "depthwise"], ["e"], group=5),
        node("Conv", ["e", "grouped"], ["y"], group=5),
    ]
    weights = {"w": normal(5, 12, 1, 1), "b": normal(5, seed=1), "k": normal(5, 5, 3, 3)}
    weights |= {"depthwise": normal(10, 1, 3, 3, seed=2), "grouped": normal(5, 2, 3, 3, seed=3)}
    found = contents(tmp_path, nodes, [info("x", ["N", 12, 8, 8])], [info("y", ["N", 5, 2, 2])], weights)
    assert found.weights == ((5, 12, 32), (5, 45, 32), (9, 10, 32))
    assert has(found, weights["b"])


def test_constant_nodes_views_and_casts(tmp_path: Path) -> None:
    nodes = [
        const("h", normal(5, 12).astype(np.float16)),
        node("Cast", ["h"], ["f"], to=TensorProto.FLOAT),
        node("Transpose", ["f"], ["t"], perm=[1, 0]),
        node("Identity", ["t"], ["w"]),
        node("MatMul", ["x", "w"], ["y"]),
    ]
    assert contents(tmp_path, nodes, [X], [Y]).weights == ((5, 12, 16),)


def test_computed_matrices_are_none_of_the_weights(tmp_path: Path) -> None:
    nodes = [node("Relu", ["w"], ["r"]), node("MatMul", ["x", "r"], ["y"])]
    assert contents(tmp_path, nodes, [X], [Y], {"w": normal(12, 5)}).weights == ()


def test_a_shared_weight_counts_once_and_equal_ones_twice(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("MatMul", ["m", "w"], ["n"]), node("MatMul", ["n", "v"], ["y"])]
    weights = {"w": normal(12, 12), "v": normal(12, 12)}
    found = contents(tmp_path, nodes, [X], [info("y", ["N", 12])], weights)
    assert found.weights == ((12, 12, 32), (12, 12, 32))


def test_other_operators_do_not_count(tmp_path: Path) -> None:
    nodes = [node("Gather", ["table", "i"], ["x2"]), node("Mul", ["x2", "scale"], ["y"])]
    weights = {"table": normal(100, 5), "scale": normal(1, 5)}
    assert contents(tmp_path, nodes, [info("i", ["N"], TensorProto.INT64)], [Y], weights).weights == ()


def test_branches_and_functions(tmp_path: Path) -> None:
    def branch(name: str, seed: int) -> onnx.GraphProto:
        nodes = [const(f"w_{name}", normal(12, 5, seed=seed)), node("MatMul", ["x", f"w_{name}"], [f"y_{name}"])]
        return helper.make_graph(nodes, name, [], [info(f"y_{name}", ["N", 5])])

    block = helper.make_function(
        "local", "Block", ["i"], ["o"], [const("c", normal(5, 7)), node("MatMul", ["i", "c"], ["o"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    nodes = [
        node("If", ["flag"], ["h"], then_branch=branch("then", 0), else_branch=branch("else", 1)),
        node("Block", ["h"], ["y"], domain="local"),
    ]
    found = contents(
        tmp_path,
        nodes,
        [X, info("flag", [], TensorProto.BOOL)],
        [info("y", ["N", 7])],
        functions=[block],
        domains=["local"],
    )
    assert found.weights == ((5, 7, 32), (5, 12, 32), (5, 12, 32))


def test_integer_weights_and_biases(tmp_path: Path) -> None:
    """A bias in int32 steps comes back as the floats it stands for."""
    scales, bias = np.full(5, 0.25, np.float32), np.arange(5, dtype=np.int32)
    nodes = [
        node("DequantizeLinear", ["w8", "s", "z"], ["w"], axis=1),
        node("DequantizeLinear", ["b32", "s", "z32"], ["b"], axis=0),
        node("Gemm", ["x", "w", "b"], ["y"]),
    ]
    weights = {
        "w8": np.ones((12, 5), np.int8), "s": scales, "z": np.zeros(5, np.int8), "b32": bias,
        "z32": np.zeros(5, np.int32),
    }  # fmt: skip
    found = contents(tmp_path, nodes, [X], [Y], weights)
    assert found.weights == ((5, 12, 8),)
    assert has(found, bias * 0.25)


def test_four_bit_weights(tmp_path: Path) -> None:
    w = ir.Value(
        name="w4", const_value=ir.Tensor(np.zeros((12, 5), ir.DataType.INT4.numpy()), dtype=ir.DataType.INT4, name="w4")
    )
    x, s = (
        ir.Value(name="x", shape=ir.Shape([1, 12]), type=ir.TensorType(ir.DataType.FLOAT)),
        ir.Value(name="s", const_value=ir.tensor(np.float32(1), name="s")),
    )
    decoded = ir.node("DequantizeLinear", [w, s])
    product = ir.node("MatMul", [x, decoded.outputs[0]])
    product.outputs[0].name = "y"
    graph = ir.Graph([x], product.outputs, nodes=[decoded, product], initializers=[w, s], opset_imports={"": 21})
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "m.onnx")
    assert read_contents(tmp_path / "m.onnx").weights == ((5, 12, 4),)


def test_external_data(tmp_path: Path) -> None:
    made = proto([node("MatMul", ["x", "w"], ["y"])], [X], [Y], {"w": normal(12, 5)})
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert read_contents(tmp_path / "m.onnx").weights == ((5, 12, 32),)


def test_what_the_runtime_folds_is_seen(tmp_path: Path) -> None:
    """Two constant matrices that are multiplied with each other become one: the runtime's graph says so."""
    nodes = [node("MatMul", ["a", "b"], ["w"]), node("MatMul", ["x", "w"], ["y"])]
    made = proto(nodes, [X], [Y], {"a": normal(12, 3), "b": normal(3, 5)})
    onnx.save(made, tmp_path / "m.onnx")
    assert read_contents(tmp_path / "m.onnx").weights == ((3, 5, 32), (3, 12, 32))
    session(tmp_path / "m.onnx", optimized_path=tmp_path / "o.onnx")
    assert read_contents(tmp_path / "o.onnx").weights == ((5, 12, 32),)


@pytest.mark.parametrize("name", ["h", "h.decoded"])
def test_a_name_alone_makes_no_decoded_matrix(tmp_path: Path, name: str) -> None:
    """A stranger's value of that name is what its nodes make of it."""
    nodes = [node("Mul", ["x", "x"], [name]), node("MatMul", [name, "w"], ["y"])]
    assert contents(tmp_path, nodes, [X], [Y], {"w": normal(12, 5)}).weights == ((5, 12, 32),)


def test_scales_that_would_widen_codes_decode_nothing(tmp_path: Path) -> None:
    nodes = [
        node("Cast", ["codes"], ["wide"], to=TensorProto.FLOAT),
        node("Mul", ["wide", "scales"], ["w.decoded"]),
        node("MatMul", ["x", "w.decoded"], ["y"]),
    ]
    weights = {"codes": np.ones((12, 1), np.int8), "scales": normal(1, 5)}
    assert contents(tmp_path, nodes, [X], [Y], weights).weights == ()
    weights = {"codes": np.ones((12, 5), np.int8), "scales": normal(1, 5)}
    assert contents(tmp_path, nodes, [X], [Y], weights).weights == ((5, 12, 8),)


def test_a_chain_of_products_over_one_value_ends(tmp_path: Path) -> None:
    """Each of its forty products takes the one before it twice."""
    chain = [node("Mul", [f"v{step}", f"v{step}"], [f"v{step + 1}"]) for step in range(40)]
    nodes = [*chain, node("MatMul", ["x", "v40"], ["y"])]
    found = contents(tmp_path, nodes, [info("x", ["N", 5])], [info("y", None)], {"v0": normal(5, 5)})
    assert found.weights == ()


def test_weights_that_functions_are_given(tmp_path: Path) -> None:
    body = [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["y"])]
    dense = helper.make_function("own", "Dense", ["x", "w", "b"], ["y"], body, [helper.make_opsetid("", 17)])
    calls = [
        node("Dense", ["x", "w1", "b1"], ["h"], domain="own"),
        node("Dense", ["h", "w2", "b2"], ["y"], domain="own"),
    ]
    weights = {"w1": normal(12, 8), "b1": normal(8, seed=2), "w2": normal(8, 5), "b2": normal(5, seed=3)}
    found = contents(tmp_path, calls, [X], [Y], weights, functions=[dense], domains=["own"])
    assert found.weights == ((5, 8, 32), (8, 12, 32))
    assert has(found, weights["b1"])
