"""What a pack tells those who find it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgepack.backends.runtime import load
from edgepack.pack.card import CARD, SCRIPT, write_card
from edgepack.workspace import shipped
from tests.manifests import whole

LAYERS = [{"layer": "fc1", "rank": 24, "out_features": 64, "in_features": 784, "reason": "rank 24: 1.3× faster"}]
PACKED = {"format": "onnx", "scheme": "mixed", "size_bytes": 52_400, "layers": LAYERS}
DENSE = {"format": "onnx", "scheme": "fp32", "size_bytes": 1_630_000}
RECORD = whole({"files": {"model.onnx": PACKED, "baseline/fp32.onnx": DENSE}})


@pytest.fixture
def folder(tmp_path: Path, onnx_model: Path, tflite_models: Path) -> Path:
    """A pack's card, script and models, which take inputs of their own here."""
    (tmp_path / "model.onnx").write_bytes(onnx_model.read_bytes())
    (tmp_path / "model.tflite").write_bytes((tflite_models / "fp32.tflite").read_bytes())
    for fmt, name in (("onnx", "example_inputs.npz"), ("tflite", "example_inputs.tflite.npz")):
        specs = load(tmp_path / f"model.{fmt}", fmt).inputs
        shapes = {spec.name: [side or 1 for side in spec.shape] for spec in specs}
        np.savez(tmp_path / name, **{key: np.ones(shape, np.float32) for key, shape in shapes.items()})
    write_card(tmp_path, RECORD)
    return tmp_path


def test_the_script_runs_both_models_without_edgepack(folder: Path) -> None:
    assert "edgepack" not in (folder / SCRIPT).read_text()
    done = subprocess.run([sys.executable, "-I", folder / SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model.onnx takes") == done.stdout.count("model.tflite takes") == 1
    assert done.stdout.count("  gives") == 2


def test_the_card_says_what_the_manifest_says(folder: Path) -> None:
    text, record = (folder / CARD).read_text(), RECORD
    assert text.startswith(f"# {record.model.name} for {record.target.name}\n")
    assert record.model.sha256 in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(record.files)
    assert all(name in text for name in record.versions)
    assert "License: not stated." in text


def test_strange_names_are_no_markup(tmp_path: Path) -> None:
    strange = replace(RECORD, model=replace(RECORD.model, name="<b>|a\n# b", source="[x](http://y)"))
    write_card(tmp_path, strange)
    text = (tmp_path / CARD).read_text()
    assert text.splitlines()[0] == f"# \\<b\\>\\|a \\# b for {RECORD.target.name}"
    assert "[x](" not in text
    assert (tmp_path / SCRIPT).read_text() == shipped("runtimes/run_pack.py").read_text()
