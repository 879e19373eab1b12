"""What MODEL names, and how it is called afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepack.errors import ModelError, UsageError
from edgepack.sources import model_name, open_model, source_of

EXPECTED = (
    "expected model.onnx, model.tflite, model.keras, model.h5, model.pt2, file.py:function or package.module:function"
)

ADVICE = "export a torch module with torch.export.save, or write a function that returns an edgepack Recipe"


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("model.onnx", "onnx"),
        ("some where/MODEL.ONNX", "onnx"),
        ("model.pt2", "pt2"),
        ("model.tflite", "tflite"),
        ("a/model.H5", "keras"),
        ("net.keras", "keras"),
        ("file.py:make", "recipe"),
        ("package.module:make", "recipe"),
        (r"C:\models\file.py:make", "recipe"),
    ],
)
def test_kinds(spec: str, kind: str) -> None:
    assert source_of(spec).name == kind


@pytest.mark.parametrize("spec", ["", ":", "model", "a" * 5000, "file.py:", ":make", "file.py:a b"])
def test_anything_else_is_a_usage_error(spec: str) -> None:
    with pytest.raises(UsageError, match="cannot tell what") as caught:
        source_of(spec)
    assert caught.value.message.endswith(EXPECTED)
    assert caught.value.hint == ADVICE


@pytest.mark.parametrize(
    ("spec", "what", "step"),
    [
        ("net.pth", "torch file, which is not unpickled", "file.py:function"),
        ("net.safetensors", "file of weights alone", "Recipe"),
        ("forest.joblib", "pickle, which is not opened", "skl2onnx"),
        ("frozen.pb", "TensorFlow graph", "tf2onnx"),
    ],
)
def test_other_files_are_told_the_step_to_a_model(spec: str, what: str, step: str) -> None:
    with pytest.raises(UsageError) as caught:
        source_of(spec)
    assert caught.value.message == f"{spec!r} is a {what}: {EXPECTED}"
    assert step in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("held", "what", "step"),
    [
        ("config.json", "folder of Hugging Face", "optimum-cli"),
        ("saved_model.pb", "folder with a TensorFlow model", "TFLiteConverter"),
        ("manifest.json", "pack, not a model", "what it was built from"),
        ("net.onnx", "folder", "net.onnx"),
    ],
)
def test_folders_are_told_the_step_to_a_model(tmp_path: Path, held: str, what: str, step: str) -> None:
    (tmp_path / held).touch()
    with pytest.raises(UsageError) as caught:
        source_of(str(tmp_path))
    assert caught.value.message == f"{str(tmp_path)!r} is a {what}: {EXPECTED}"
    assert step in (caught.value.hint or "")


def test_functions_of_a_python_file_are_named_and_nothing_runs(tmp_path: Path) -> None:
    path = tmp_path / "recipes.py"
    path.write_text("raise SystemExit(9)\ndef small(): ...\ndef _own(): ...\ndef sized(n): ...\ndef large(n=4): ...\n")
    with pytest.raises(UsageError) as caught:
        source_of(str(path))
    assert caught.value.hint == f"give one of its functions: {path}:small, {path}:large"
    for content in ("x = 1", "def ("):
        path.write_text(content)
        with pytest.raises(UsageError) as caught:
            source_of(str(path))
        assert "write a function that returns an edgepack Recipe" in (caught.value.hint or "")


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
