"""ONNX models with a node that TFLite has no counterpart for: the ONNX is written, and the node is named."""

from __future__ import annotations

import json
from pathlib import Path

from onnx import TensorProto, helper

from tests.e2e.e2e_cli import assert_fails, invoke
from tests.e2e.e2e_models import mlp_nodes, weights, write_onnx


def with_loop(path: Path) -> Path:
    """The classifier, its scores through a loop whose turns its inputs decide."""
    nodes = mlp_nodes()
    nodes[-1].output[0] = "inner"
    ends = [helper.make_tensor_value_info(*each, []) for each in (("i", TensorProto.INT64), ("on", TensorProto.BOOL))]
    state = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in ("before", "after")]
    step = [helper.make_node("Identity", ["before"], ["after"]), helper.make_node("Identity", ["on"], ["still"])]
    still = helper.make_tensor_value_info("still", TensorProto.BOOL, [])
    body = helper.make_graph(step, "body", [*ends, state[0]], [still, state[1]])
    nodes += [
        helper.make_node("ReduceSum", ["inner"], ["total"], keepdims=0, name="sum"),
        helper.make_node("Cast", ["total"], ["count"], to=TensorProto.INT64, name="round"),
        helper.make_node("Loop", ["count", "", "inner"], ["scores"], name="turn", body=body),
    ]
    return write_onnx(path, nodes, weights())


def with_runtime_operator(path: Path) -> Path:
    """The classifier with an operator that only onnxruntime has."""
    nodes = mlp_nodes()
    nodes[1] = helper.make_node(
        "Imputer",
        ["h1"],
        ["r1"],
        domain="ai.onnx.ml",
        name="fill",
        imputed_value_floats=[0.0],
        replaced_value_float=-9.0,
    )
    return write_onnx(path, nodes, weights(), domains=["ai.onnx.ml"])


def test_onnx_is_written_and_the_node_named(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "out" / "pack"
    path = with_loop(tmp_path / "odd.onnx")
    # No counts are kept for this target, so that a pair of these small layers is not found dearer than the dense layer.
    done = invoke("build", path, "--target", "jetson-nano", "--data", data, "--max-drop", "1", "--out", out)
    assert done.code == 0, done.err
    manifest = json.loads((out / "manifest.json").read_text())
    (warning,) = (w for w in manifest["warnings"] if "TFLite" in w)
    assert f"warning: {warning[:40]}" in done.out
    assert "'turn' (Loop)" in warning
    assert "\n" not in warning
    assert "give the torch model" in warning
    assert (out / "model.onnx").is_file()
    assert list(out.rglob("*.tflite")) == []
    assert all("tflite" not in name for name in manifest["files"])
    layers = {layer["layer"]: layer["rank"] for layer in manifest["files"]["model.onnx"]["layers"]}
    assert layers.keys() == {"w1", "w2", "w3"}
    files = manifest["files"]
    assert files["model.onnx"]["size_bytes"] < files["baseline/int8.onnx"]["size_bytes"]


def test_tflite_alone_fails(tmp_path: Path, data: Path) -> None:
    path = with_runtime_operator(tmp_path / "odd.onnx")
    out = tmp_path / "out" / "pack"
    done = invoke("build", path, "--target", "rpi4", "--data", data, "--formats", "tflite", "--out", out)
    assert_fails(done, 3, ["Imputer"], out=out)
    assert "--formats onnx" in done.err
