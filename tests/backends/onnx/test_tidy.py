"""Small ONNX files: short names, no notes, one of equal vectors; and the same answers to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends.onnx.file import load, save
from edgepack.backends.onnx.tidy import tidy
from edgepack.backends.runtime import load as start
from edgepack.model.types import Array

node = helper.make_node


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def branching(path: Path) -> Path:
    """Two equal layers with notes, and a branch that takes a value from outside of it; an inner value is called "b"."""
    shape = [2, 8]
    inside = [node("Mul", ["block/layer.0/output", "block/twice"], ["block/then/scaled"], name="block/then/Mul")]
    then = helper.make_graph(
        inside,
        "then",
        [],
        [helper.make_tensor_value_info("block/then/scaled", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.float32([2.0]), "block/twice")],
    )
    other = helper.make_graph(
        [node("Neg", ["block/layer.0/output"], ["block/else/negative"])],
        "else",
        [],
        [helper.make_tensor_value_info("block/else/negative", TensorProto.FLOAT, shape)],
    )
    nodes = [
        node("Gemm", ["x", "block/layer.0/weight", "block/layer.0/bias"], ["block/layer.0/output"], name="block/Gemm"),
        node("If", ["which"], ["block/branch"], then_branch=then, else_branch=other),
        node("Gemm", ["block/branch", "block/layer.1/weight", "block/layer.1/bias"], ["b"], name="block/Gemm_1"),
        node("Add", ["b", "a"], ["scores"], name="block/Add"),
    ]
    nodes[0].doc_string = "where it was in somebody's code"
    nodes[0].metadata_props.add(key="namespace", value="somebody.Module: block")
    weight, bias = normal(8, 8), normal(8, seed=1)
    constants = {
        "block/layer.0/weight": weight,
        "block/layer.1/weight": weight,
        "block/layer.0/bias": bias,
        "block/layer.1/bias": bias,
        "a": np.float32(0.5),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("which", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    model.metadata_props.add(key="labels", value="cat,dog")
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def tidied(tmp_path: Path) -> tuple[Path, Path]:
    before, after = branching(tmp_path / "before.onnx"), tmp_path / "after.onnx"
    model = load(before)
    tidy(model)
    save(model, after)
    return before, after


def test_the_answers_are_the_same(tmp_path: Path) -> None:
    sessions = [start(path, "onnx") for path in tidied(tmp_path)]
    for which in (True, False):
        feed = {"x": normal(2, 8, seed=3), "which": np.asarray(which)}
        (before,), (after,) = (session.run(feed) for session in sessions)
        np.testing.assert_array_equal(before, after)


def test_names_that_people_look_for_stay_and_others_are_short(tmp_path: Path) -> None:
    before, after = tidied(tmp_path)
    model = onnx.load(after)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["x", "which"]
    assert [value.name for value in model.graph.output] == ["scores"]
    matrices, vectors = (
        [tensor.name for tensor in model.graph.initializer if (len(tensor.dims) > 1) == wanted]
        for wanted in (True, False)
    )
    assert matrices == ["block/layer.0/weight", "block/layer.1/weight"]
    assert len(vectors) == 2, "a bias of both layers, and a number"
    inner = vectors + [name for each in model.graph.node for name in each.output if name != "scores"]
    assert all(len(name) == 1 for name in inner)
    assert len(set(inner)) == len(inner)
    assert not any(each.name or each.doc_string or each.metadata_props for each in model.graph.node)
    assert not {value.name for value in model.graph.value_info} & {tensor.name for tensor in model.graph.initializer}
    assert [(each.key, each.value) for each in model.metadata_props] == [("labels", "cat,dog")]
    assert after.stat().st_size < before.stat().st_size


def test_vectors_of_another_type_or_shape_are_not_shared(tmp_path: Path) -> None:
    zeros = {"f": np.zeros(1, np.float32), "i": np.zeros(1, np.int32), "s": np.zeros((), np.float32)}
    nodes = [
        node("Cast", ["i"], ["c"], to=TensorProto.FLOAT),
        node("Sum", ["x", "f", "s", "c"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("x", "y")]
    constants = [numpy_helper.from_array(array, name) for name, array in zeros.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    model = ir.serde.deserialize_model(helper.make_model(graph, ir_version=8))
    before = [value.const_value for value in model.graph.initializers.values()]
    tidy(model)
    kept = [value.const_value for value in model.graph.initializers.values()]
    assert [(each.dtype, each.shape) for each in kept] == [(one.dtype, one.shape) for one in before]
