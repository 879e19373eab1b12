"""Node data for Model Explorer: figures at the nodes of a real file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from edgepack.cli import app
from tests.manifests import document

DENSE = {"layer": "last", "out_features": 4, "in_features": 6, "rank": None, "reason": "too small"}
PAIR = {
    "layer": "first", "out_features": 6, "in_features": 8, "rank": 2, "reason": "pays", "scheme": "int8-dynamic",
    "predicted": {"loss": 0.1, "size_bytes": 28, "latency_s": 2e-6},
    "lost_shares": {"truncation": 0.008, "rounding": 0.001, "latent": 0.0},
}  # fmt: skip


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """Three products: those of a pair, and a dense one."""
    weights = [np.ones(sides, np.float32) for sides in ((8, 2), (2, 6), (6, 4))]
    nodes = [helper.make_node("MatMul", [a, f"w{i}"], [b]) for i, (a, b) in enumerate(("xh", "hz", "zy"))]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, side]) for name, side in (("x", 8), ("y", 4)))
    held = [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)]
    graph = helper.make_graph(nodes, "g", [x], [y], held)
    folder = tmp_path / "pack"
    folder.mkdir()
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx"
    )
    entry = {"scheme": "mixed", "size_bytes": 9, "layers": [PAIR, DENSE]}
    (folder / "manifest.json").write_text(json.dumps(document({"files": {"model.onnx": entry}})))
    return folder


def test_figures_stand_at_the_nodes_of_their_layers(pack: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["inspect", str(pack), "--overlay", str(tmp_path / "overlay"), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = {
        path.name.split(".")[2]: json.loads(path.read_text()) for path in (tmp_path / "overlay").glob("*.json")
    }
    assert {figure: each["results"] for figure, each in found.items()} == {
        "bytes": {"z": {"value": 28}},
        "latency_s": {"z": {"value": 2e-6}},
        "rank": {"h": {"value": 2}, "z": {"value": 2}},
        "scheme": {"h": {"value": "int8-dynamic"}, "z": {"value": "int8-dynamic"}},
        "error_share": {"h": {"value": 0.009}, "z": {"value": 0.009}},
    }
    assert [stop["stop"] for stop in found["bytes"]["gradient"]] == [0, 1]
    assert "gradient" not in found["scheme"]


def test_netron_shows_them_at_the_nodes_of_a_copy(pack: Path, tmp_path: Path) -> None:
    before = (pack / "model.onnx").read_bytes()
    assert CliRunner().invoke(app, ["inspect", str(pack), "--overlay", str(tmp_path / "overlay")]).exit_code == 0
    assert (pack / "model.onnx").read_bytes() == before
    copy = onnx.load(tmp_path / "overlay" / "model.netron.onnx")
    onnx.checker.check_model(copy)
    pair = {"edgepack.rank": "2", "edgepack.scheme": "int8-dynamic", "edgepack.error_share": "0.009"}
    ends = {"edgepack.bytes": "28", "edgepack.latency_s": "2e-06"}
    held = {node.output[0]: {each.key: each.value for each in node.metadata_props} for node in copy.graph.node}
    assert held == {"h": pair, "z": pair | ends, "y": {}}


def test_a_model_has_none(pack: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["inspect", str(pack / "model.onnx"), "--overlay", str(tmp_path / "overlay")])
    assert done.exit_code == 2
    assert "--overlay is of a pack, found a model" in done.stderr
