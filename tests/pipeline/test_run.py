"""A pack on a few samples beside its original, both run by the runtime."""

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
from edgepack.errors import DataError, PackError
from edgepack.pipeline.run import run_pack
from tests.manifests import document

DENSE = np.eye(3, dtype=np.float32)
PACKED = np.array([[1, 0, 0], [0, 1, 0], [0, 2, 1]], np.float32)
"""Of the third class it makes the second."""


def write_matmul(path: Path, weight: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "y"))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [numpy_helper.from_array(weight, "w")]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def written(folder: Path, metric: str = "accuracy") -> Path:
    judge = {"output": 0, "metric": metric, "labelled": True, "why": "labels"}
    entry = {"scheme": "int8-dynamic", "size_bytes": 9, "layers": []}
    record = {"metric": {"name": metric, "outputs": [judge]}, "files": {"model.onnx": entry}}
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(document(record)))
    write_matmul(folder / "model.onnx", PACKED)
    write_matmul(folder / "baseline" / "fp32.onnx", DENSE)
    np.savez(folder / "example_inputs.npz", x=np.array([[0, 3, 1]], np.float32))
    return folder


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    path = tmp_path / "samples.npz"
    rows = np.eye(3, dtype=np.float32) * 4 + np.arange(3, dtype=np.float32) / 8
    np.savez(path, x=np.concatenate([rows, rows]), y=np.tile(np.arange(3), 2))
    return path


def test_where_classes_differ(tmp_path: Path, samples: Path) -> None:
    ran = run_pack(written(tmp_path / "p"), samples)
    assert [row.original for row in ran.answers] == [0, 1, 2, 0, 1]
    assert [row.answer for row in ran.answers] == [0, 1, 1, 0, 1]
    assert [row.same for row in ran.answers] == [True, True, False, True, True]
    assert [row.label for row in ran.answers] == [0.0, 1.0, 2.0, 0.0, 1.0]
    (file,) = ran.files
    assert (file.file, file.samples, file.differ) == ("model.onnx", 5, 1)
    assert ran.answers[2].largest_difference == pytest.approx(2 * 4.25)
    assert file.least_sqnr_db == min(row.sqnr_db for row in ran.answers if row.sqnr_db is not None) < 0
    assert file.latency_s > 0


def test_values_are_shown_as_they_are(tmp_path: Path) -> None:
    ran = run_pack(written(tmp_path / "p", "nrmse"))
    (row,) = ran.answers
    assert (row.answer, row.original) == ((0.0, 5.0, 1.0), (0.0, 3.0, 1.0))
    assert (row.same, ran.files[0].differ) == (None, None)


def test_a_pack_without_baselines_has_its_own_answers(tmp_path: Path, samples: Path) -> None:
    pack = written(tmp_path / "p")
    (pack / "baseline" / "fp32.onnx").unlink()
    ran = run_pack(pack, samples, samples=1)
    assert [(row.answer, row.original, row.same, row.sqnr_db) for row in ran.answers] == [(0, None, None, None)]
    assert (ran.files[0].original_s, ran.files[0].differ) == (None, None)


def test_errors_say_what_to_do(tmp_path: Path, samples: Path) -> None:
    pack = written(tmp_path / "p")
    with pytest.raises(PackError, match="it has no model file in tflite"):
        run_pack(pack, samples, ["tflite"])
    bad = tmp_path / "bad.npz"
    np.savez(bad, x=np.zeros((2, 4), np.float32))
    with pytest.raises(DataError, match="x"):
        run_pack(pack, bad)


def test_the_command(tmp_path: Path, samples: Path) -> None:
    pack = written(tmp_path / "p")
    shown = CliRunner().invoke(app, ["run", str(pack), "--data", str(samples), "--json"])
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["files"][0]["differ"] == 1
    text = CliRunner().invoke(app, ["run", str(pack), "--data", str(samples)]).stdout
    assert "1 of 5" in text
    assert "class 2" in text
    assert CliRunner().invoke(app, ["run", str(tmp_path / "nowhere")]).exit_code == 3
