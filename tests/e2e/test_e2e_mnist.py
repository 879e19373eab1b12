"""The README's model: 784-512-10 on real digits, at most 0.3 points lost."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.e2e_cli import invoke, run

RECIPE = Path(__file__).parents[2] / "bench" / "models" / "mnist_mlp.py"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("mnist") / "pack"
    done = run("build", f"{RECIPE}:recipe", "--target", "rpi4", "--max-drop", "0.3", "--out", out)
    assert done.code == 0, done.err
    assert done.err == ""
    read: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    for name, entry in read["files"].items():
        assert entry["size_bytes"] == (out / name).stat().st_size
    return read


@pytest.mark.parametrize(("fmt", "vs_fp32", "vs_int8"), [("onnx", 20, 5), ("tflite", 15, 4)])
def test_small_and_as_good(manifest: dict[str, Any], fmt: str, vs_fp32: int, vs_int8: int) -> None:
    """As far as 4,000 samples can show that no more than 0.3 points are lost."""
    packed, fp32, int8 = (manifest["files"][f"{name}.{fmt}"] for name in ("model", "baseline/fp32", "baseline/int8"))
    assert packed["size_bytes"] * vs_fp32 <= fp32["size_bytes"]
    assert packed["size_bytes"] * vs_int8 <= int8["size_bytes"]
    assert packed["matrix_parameters_share"] <= 0.25
    assert packed["validation"]["bound"] <= 0.3
    assert packed["confirmation"]["bound"] <= 0.3
    assert fp32["test"] > 95
    assert fp32["test"] - packed["test"] <= 1, "the held-out thousand, one standard error of them is 0.5"
    assert all(proof["passed"] for proof in packed["proofs"].values())


def weight_bytes(packed: dict[str, Any]) -> int:
    """Of the packed weights."""
    found = re.search(r"planned, (\d+) bytes", packed["proofs"]["weight-bytes"]["detail"])
    assert found is not None
    return int(found[1])


def beside_the_weights(packed: dict[str, Any]) -> float:
    """Scales, biases, names and tables, over the bytes of the packed weights."""
    return float(packed["size_bytes"] / weight_bytes(packed)) - 1


@pytest.mark.parametrize("fmt", ["onnx", "tflite"])
def test_little_beside_the_weights(manifest: dict[str, Any], fmt: str) -> None:
    """A bias and a scale of each output, in TFLite its zero point in 64 bits too, and what names, tables and operators
    take; in four bits that weighs twice as much as in eight."""
    packed = manifest["files"][f"model.{fmt}"]
    outputs = sum(layer["out_features"] for layer in packed["layers"])
    assert packed["size_bytes"] - weight_bytes(packed) <= {"onnx": 8, "tflite": 16}[fmt] * outputs + 2048


def test_what_was_looked_at(manifest: dict[str, Any]) -> None:
    assert manifest["data"]["calibration_samples"] == 1333
    assert manifest["data"]["validation_samples"] == 1333
    assert manifest["data"]["confirmation_samples"] == 1334
    assert manifest["metric"]["name"] == "accuracy"
    assert manifest["budget_met"] is True


@pytest.fixture(scope="module")
def in_int8(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The files of a build in int8 alone."""
    out = tmp_path_factory.mktemp("mnist-int8") / "pack"
    options = ("--precision", "int8", "--max-drop", "0.3", "--out", out)
    done = invoke("build", f"{RECIPE}:recipe", "--target", "rpi4", *options)
    assert done.code == 0, done.err
    files: dict[str, Any] = json.loads((out / "manifest.json").read_text())["files"]
    return files


@pytest.mark.parametrize(("fmt", "vs_fp32", "vs_int8"), [("onnx", 20, 5), ("tflite", 15, 4)])
def test_in_int8_alone(in_int8: dict[str, Any], fmt: str, vs_fp32: int, vs_int8: int) -> None:
    packed, fp32, int8 = (in_int8[f"{name}.{fmt}"] for name in ("model", "baseline/fp32", "baseline/int8"))
    assert all("int8" in layer["scheme"] for layer in packed["layers"])
    assert packed["size_bytes"] * vs_fp32 <= fp32["size_bytes"]
    assert packed["size_bytes"] * vs_int8 <= int8["size_bytes"]
    assert beside_the_weights(packed) <= 0.08
    assert packed["validation"]["drop"] <= 0.3
