from __future__ import annotations

import hashlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from edgepack.backends.onnx.file import to_bytes
from edgepack.errors import ModelError
from edgepack.sources import held_bytes
from edgepack.sources.onnx import onnx_model, open_onnx

PROVIDERS = ["CPUExecutionProvider"]


@pytest.fixture
def path(tmp_path):
    weights = {"fc.weight": np.eye(4, 3, dtype=np.float32), "fc.bias": np.ones(3, np.float32)}
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "fc.weight", "fc.bias"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_a_file_becomes_a_source(path):
    source = open_onnx(path)
    assert source.path == path
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [(s.name, s.shape) for s in source.inputs] == [("x", (None, 4))]
    assert [(s.name, s.shape) for s in source.outputs] == [("y", (None, 3))]
    (layer,) = source.layers
    assert (layer.name, layer.geometry.operator, layer.weight.shape) == ("fc.weight", "Gemm", (3, 4))
    np.testing.assert_array_equal(layer.weight, np.eye(3, 4))
    np.testing.assert_array_equal(layer.bias, np.ones(3))


def test_a_bad_file_is_refused_with_a_hint(path):
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ModelError) as caught:
        open_onnx(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_an_old_operator_set_becomes_one_that_can_be_quantized(path):
    model = onnx.load(path)
    model.opset_import[0].version = 9
    model.graph.node.append(helper.make_node("Unsqueeze", ["y"], ["z"], axes=[0]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, "n", 3]))
    onnx.save(model, path)
    source = open_onnx(path)
    assert source.model.opset_imports[""] == 13
    assert source.folded
    (layer,) = source.layers
    assert layer.name == "fc.weight"
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    expected = InferenceSession(str(path), providers=PROVIDERS).run(None, {"x": x})[0]
    found = InferenceSession(to_bytes(source.model), providers=PROVIDERS).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([helper.make_node("QuantizeLinear", ["x", "s"], ["i"]),
          helper.make_node("DequantizeLinear", ["i", "s"], ["a"]),
          helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
          helper.make_node("Gemm", ["a", "w"], ["y"], transA=1)],
         "1 Gemm behind decoded weights"),
        ([helper.make_node("Cast", ["x"], ["a"], to=3), helper.make_node("MatMulInteger", ["a", "q"], ["i"]),
          helper.make_node("Cast", ["i"], ["y"], to=1)], "1 MatMulInteger"),
        ([helper.make_node("MatMul", ["x", "f"], ["y"])], None),
    ],
    ids=["dequantized", "integer", "float"],
)  # fmt: skip
def test_weights_that_are_integers_already_are_named(path, nodes, said, tmp_path):
    model, codes = onnx.load(path), np.ones((4, 3), np.int8)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    known = {"q": codes, "s": np.float32(0.5), "f": codes.astype(np.float32)}
    used = {name for node in nodes for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(known[n]), n) for n in sorted(used & set(known)))
    onnx.save(model, path)
    opened = onnx_model(str(path), "m", "onnx", path, tmp_path)
    assert (opened.left is None) == (said is None)
    assert said is None or f"operators with integer weights stay as they are: {said}; " in str(opened.left)
    assert len(opened.layers) == (said is None)


@pytest.mark.parametrize("name", ["m.weights", "m" * 200 + ".weights"])
def test_weights_in_a_file_of_their_own_count_as_what_the_model_holds(tmp_path, name):
    """What reading it may take is a share of that, and the model itself has a few hundred bytes."""
    weight = np.ones((120, 120), np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, [1, 120]) for end in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "m.onnx"
    onnx.save(made, path, save_as_external_data=True, location=name, size_threshold=0)
    assert held_bytes(path) == path.stat().st_size + weight.nbytes
    (tmp_path / name).rename(tmp_path.parent / f"{tmp_path.name}.weights")
    assert held_bytes(path) == path.stat().st_size
