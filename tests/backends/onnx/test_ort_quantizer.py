"""The runtime's own quantizer behind one door."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends.onnx.ort_quantizer import REST_OP_TYPES, quantize
from edgepack.backends.onnx.schemes import INT8_DYNAMIC, INT8_STATIC
from edgepack.backends.runtime import load
from edgepack.errors import ModelError
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array
from tests.backends.onnx.onnx_layers import kernels


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def convnet() -> onnx.ModelProto:
    """Conv 3×3 → Relu → Flatten → Gemm, with a wrong note on a shape as exporters leave it."""
    weights = {"k": normal(8, 3, 3, 3) / 5, "w": normal(128, 10) / 11, "b": normal(10, seed=1)}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "k"], ["c"], name="conv"),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Flatten", ["r"], ["f"]),
            helper.make_node("Gemm", ["f", "w", "b"], ["y"], name="head"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
        value_info=[helper.make_tensor_value_info("f", TensorProto.FLOAT, ["N", 784])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


FEEDS = [{"x": normal(4, 3, 6, 6, seed=i)} for i in range(4)]


def weights(path: Path) -> dict[tuple[int, ...], str]:
    """{shape: dtype} of the large constants."""
    arrays = [numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    return {a.shape: a.dtype.name for a in arrays if a.size > 100}


@pytest.mark.parametrize("qmax", [127, 63])
@pytest.mark.parametrize("scheme", [INT8_DYNAMIC, INT8_STATIC], ids=str)
def test_all_weights_in_int8_and_the_same_answers(scheme: Scheme, qmax: int, tmp_path: Path) -> None:
    source, out = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    made = convnet()
    del made.graph.value_info[:]
    onnx.save(made, source)
    quantize(convnet(), out, scheme, FEEDS, qmax=qmax)
    assert weights(out) == {(8, 3, 3, 3): "int8", (128, 10): "int8"}
    codes = [numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer if t.data_type == TensorProto.INT8]
    assert max(int(np.abs(c.astype(int)).max()) for c in codes if c.size > 100) <= qmax + 1
    reference, found = (load(path, "onnx").run(FEEDS[0])[0] for path in (source, out))
    assert np.abs(found - reference).max() < 0.06 * np.abs(reference).max()
    assert not {"Gemm", "MatMul"} & set(kernels(out))


@pytest.mark.parametrize("scheme", [INT8_DYNAMIC, INT8_STATIC], ids=str)
def test_only_what_was_asked_for(scheme: Scheme, tmp_path: Path) -> None:
    quantize(convnet(), tmp_path / "a.onnx", scheme, FEEDS, op_types=REST_OP_TYPES[scheme])
    assert weights(tmp_path / "a.onnx") == {(8, 3, 3, 3): "int8", (128, 10): "float32"}
    quantize(convnet(), tmp_path / "b.onnx", scheme, FEEDS, exclude=["conv"])
    assert weights(tmp_path / "b.onnx") == {(8, 3, 3, 3): "float32", (128, 10): "int8"}


def test_a_model_that_it_cannot_treat(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="onnxruntime's int8-static-qdq quantizer cannot treat this model"):
        quantize(convnet(), tmp_path / "o.onnx", INT8_STATIC, [{"wrong": FEEDS[0]["x"]}])
    with pytest.raises(ModelError, match="quantizer cannot treat this model") as caught:
        quantize(convnet(), tmp_path / "o.onnx", INT8_STATIC, [])
    assert caught.value.__cause__ is not None
    assert not (tmp_path / "o.onnx").exists()


def test_it_is_quiet_and_leaves_logging_as_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = logging.getLogger()
    level = root.level
    quantize(convnet(), tmp_path / "o.onnx", INT8_DYNAMIC, [])
    with pytest.raises(ModelError):
        quantize(convnet(), tmp_path / "o.onnx", INT8_STATIC, [])
    assert root.level == level
    assert caplog.records == []
