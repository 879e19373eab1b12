"""What MODEL names, and how it is called afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepack.errors import ModelError, UsageError
from edgepack.sources import model_name, open_model, source_of


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("model.onnx", "onnx"),
        ("some where/MODEL.ONNX", "onnx"),
        ("model.pt2", "pt2"),
        ("file.py:make", "recipe"),
        ("package.module:make", "recipe"),
        (r"C:\models\file.py:make", "recipe"),
    ],
)
def test_kinds(spec: str, kind: str) -> None:
    assert source_of(spec).name == kind


@pytest.mark.parametrize("spec", ["", ":", "model", "model.tflite", "file.py", "file.py:", ":make", "file.py:a b"])
def test_anything_else_is_a_usage_error(spec: str) -> None:
    with pytest.raises(UsageError, match="cannot tell what") as caught:
        source_of(spec)
    assert caught.value.message.endswith("expected model.onnx, model.pt2, file.py:function or package.module:function")
    assert caught.value.hint == (
        "export a torch module with torch.export.save, or write a function that returns an edgepack Recipe"
    )


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("bench/models/mnist_mlp.py:recipe", "mnist-mlp"),
        ("package.models.small_net:make", "small-net"),
        ("standard_v3/model.onnx", "standard-v3"),
        ("Points.onnx", "points"),
        ("a.b.onnx", "a.b"),
        ("standard_v3/MODEL.ONNX", "model"),
        ("standard_v3/Points.ONNX", "points"),
    ],
)
def test_names(spec: str, name: str) -> None:
    assert model_name(spec) == name


def test_errors_of_the_graph_name_the_file(tmp_path: Path) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.full((3, 3), np.nan, np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "broken.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    with pytest.raises(ModelError, match=r"broken\.onnx: the weight 'w' holds NaN") as caught:
        open_model(str(path), tmp_path)
    assert caught.value.hint
