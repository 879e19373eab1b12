from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepack.backends.onnx import file
from edgepack.backends.onnx import session as session_module
from edgepack.backends.onnx.file import save, to_bytes
from edgepack.backends.onnx.session import run, session
from edgepack.errors import ModelError
from tests.backends.onnx.graph_models import factored, info, model, normal


def gemm():
    weights = {"W": normal(16, 16), "b": normal(16)}
    return model(
        [helper.make_node("Gemm", ["x", "W", "b"], ["y"])], [info("x", (2, 16))], [info("y", (2, 16))], weights
    )


def test_from_memory_bytes_and_file_alike(tmp_path):
    made, feed = gemm(), {"x": normal(2, 16)}
    save(made, tmp_path / "m.onnx")
    results = [session(source).run(None, feed)[0] for source in (made, to_bytes(made), tmp_path / "m.onnx")]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_more_weights_than_one_message_holds(monkeypatch):
    made, feed = gemm(), {"x": normal(2, 16)}
    expected = session(made).run(None, feed)[0]
    for module in (file, session_module):
        monkeypatch.setattr(module, "EXTERNAL_BYTES", 100)
    np.testing.assert_array_equal(session(made).run(None, feed)[0], expected)


def test_options(tmp_path):
    opened = session(gemm(), threads=2, optimized_path=tmp_path / "o.onnx")
    options = opened.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert opened.get_providers() == ["CPUExecutionProvider"]
    assert onnx.load(tmp_path / "o.onnx").graph.node


def test_a_pair_is_still_two_matmuls_after_optimisation(tmp_path):
    session(factored(gemm()), optimized_path=tmp_path / "o.onnx")
    graph = onnx.load(tmp_path / "o.onnx").graph
    assert len([n for n in graph.node if n.op_type in ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")]) == 2


@pytest.mark.parametrize(("op", "domain"), [("Strange", "mine"), ("NoSuchOp", "com.microsoft")])
def test_unknown_operators_are_named(op, domain):
    nodes = [helper.make_node(op, ["x"], ["y"], domain=domain)]
    made = model(nodes, [info("x", (1,))], [info("y", (1,))], domains=[domain])
    with pytest.raises(ModelError, match=op) as caught:
        session(made)
    assert domain in caught.value.message
    assert caught.value.hint


def test_operators_without_a_kernel_for_their_types_are_no_unknown_ones():
    """Codes in int8 by weights in uint8: the runtime knows the operator, and cannot run it so."""
    steps = {"xs": np.float32(0.1), "xz": np.int8(0), "w": np.ones((3, 2), np.uint8), "wz": np.uint8(0)}
    constants = {name: np.asarray(value) for name, value in steps.items()}
    taken = ["x", "xs", "xz", "w", "xs", "wz", "xs", "wz"]
    made = model(
        [helper.make_node("QLinearMatMul", taken, ["y"])],
        [info("x", (1, 3), TensorProto.INT8)], [info("y", (1, 2), TensorProto.UINT8)], constants,
    )  # fmt: skip
    with pytest.raises(ModelError, match="cannot run QLinearMatMul with the types that it has") as caught:
        session(made)
    assert "uint8" in str(caught.value.hint)


def test_inputs_that_do_not_fit_are_told_with_the_option_to_give():
    made = model(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "W"], ["y"])],
        [info("x", (1, "h", "w"))], [info("y", (1, 2))], {"W": normal(12, 2)},
    )  # fmt: skip
    with pytest.raises(ModelError, match="does not run on inputs of shape") as caught:
        run(session(made), None, {"x": normal(1, 4, 4)})
    assert str(caught.value.hint).endswith("--input x=1x4x4")


def test_graph_that_the_runtime_refuses():
    made = model(
        [helper.make_node("Add", ["x", "W"], ["y"])], [info("x", (2, 3))], [info("y", None)], {"W": normal(4, 5)}
    )
    with pytest.raises(ModelError, match="onnxruntime cannot open"):
        session(made)


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(ModelError):
        session(tmp_path / "none.onnx")


def test_a_sequence_of_tensors_is_one_row_of_its_numbers(tmp_path):
    end = helper.make_tensor_sequence_value_info("both", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("SequenceConstruct", ["r", "s"], ["both"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
    made = helper.make_model(
        helper.make_graph(nodes, "g", [x], [end]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(made, tmp_path / "m.onnx")
    (answer,) = run(session(tmp_path / "m.onnx"), None, {"x": np.array([[1, -2, 4]], np.float32)})
    np.testing.assert_array_equal(answer, [[1, 0, 4, 3]])
