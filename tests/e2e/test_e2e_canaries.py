"""Whole builds of ONNX files whose names and strings are code: they become packs, or an error, and nothing runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.e2e.e2e_cli import assert_fails, invoke
from tests.e2e.e2e_models import mlp, mlp_nodes, weights, write_onnx

CALL = "torch.importlib.import_module('os').system('touch {canary}')"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "canary" / "CANARY"
    path.parent.mkdir()
    return path


def scattering(path: Path, canary: Path) -> Path:
    """The classifier with a ScatterElements whose index has a name that opens a string and a call, and whose reduction
    closes both."""
    index = 'q=Max("""'
    call = CALL.replace("{canary}", str(canary))
    nodes = mlp_nodes()
    nodes[-1].output[0] = "inner"
    nodes += [
        helper.make_node("ReduceSum", ["inner"], ["total"], keepdims=1, name="sum"),
        helper.make_node("ScatterElements", ["total", index, "total"], ["s"], name="odd", reduction=f"x',z={call},w='"),
        helper.make_node("Add", ["inner", "s"], ["scores"], name="last"),
    ]
    return write_onnx(path, nodes, weights() | {index: np.zeros((1, 1), np.int64)})


def renamed(path: Path, canary: Path) -> Path:
    """The classifier with code for the names of its weights, results and nodes."""
    model = onnx.load(str(mlp(path)))
    call = CALL.replace("{canary}", str(canary))
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}

    def strange(name: str) -> str:
        return name if name in ends else f'{name}"""\n        {call}\n        v_{name}'

    for tensor in model.graph.initializer:
        tensor.name = strange(tensor.name)
    for node in model.graph.node:
        node.name = strange(node.name)
        node.input[:] = map(strange, node.input)
        node.output[:] = map(strange, node.output)
    del model.graph.value_info[:]
    onnx.save(model, str(path))
    return path


def test_code_in_names_and_strings_does_not_run(tmp_path: Path, canary: Path, data: Path) -> None:
    path, out = scattering(tmp_path / "odd.onnx", canary), tmp_path / "out" / "pack"
    options = ("--target", "rpi4", "--data", data, "--max-drop", "1", "--out", out)
    done = invoke("build", path, *options, "--formats", "tflite")
    assert not canary.exists()
    assert_fails(done, 3, ["'odd'", "reduction"], out=out)
    done = invoke("build", path, *options, "--formats", "tflite,onnx")
    assert not canary.exists()
    assert done.code == 0, done.err
    assert "'odd' (ScatterElements) has reduction=" in " ".join(done.out.split())
    assert (out / "model.onnx").is_file()
    assert list(out.rglob("*.tflite")) == []


def test_strange_names_become_a_pack(tmp_path: Path, canary: Path, data: Path) -> None:
    out = tmp_path / "pack"
    options = ("--target", "rpi4", "--data", data, "--formats", "tflite,onnx", "--max-drop", "1", "--out", out)
    done = invoke("build", renamed(tmp_path / "odd.onnx", canary), *options)
    assert not canary.exists()
    assert done.code == 0, done.err
    files = json.loads((out / "manifest.json").read_text())["files"]
    assert all(proof["passed"] for proof in files["model.tflite"]["proofs"].values())
    assert (out / "model.onnx").is_file()
