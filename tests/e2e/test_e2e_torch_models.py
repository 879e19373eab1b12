"""A transformer encoder layer and a small CNN from torch: both formats, and the same answers from both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgepack.backends.runtime import load
from tests.e2e.e2e_cli import invoke

HEAD = """import numpy as np, torch
from torch import nn
from edgepack.model.types import Recipe

def filled(model):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.15 * torch.randn(parameter.shape, generator=generator)
    return model.eval()

def given(model, *shape):
    x = np.random.default_rng(1).normal(size=(300, *shape)).astype(np.float32)
    return Recipe(model, (torch.zeros(1, *shape),), {"x": x})
"""
RECIPES = {
    "encoder": """
def recipe():
    return given(filled(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)), 6, 64)
""",
    "cnn": """
def recipe():
    return given(filled(nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10),
    )), 3, 8, 8)
""",
}
LAYERS = {"encoder": 4, "cnn": 4}


@pytest.mark.parametrize("name", RECIPES)
def test_both_formats_answer_alike(tmp_path: Path, name: str) -> None:
    (tmp_path / "net.py").write_text(HEAD + RECIPES[name])
    out = tmp_path / "pack"
    done = invoke("build", f"{tmp_path / 'net.py'}:recipe", "--target", "rpi4", "--rank", "8", "--out", out)
    assert done.code == 0, done.err
    entries = json.loads((out / "manifest.json").read_text())["files"]
    for fmt in ("onnx", "tflite"):
        entry = entries[f"model.{fmt}"]
        assert all(proof["passed"] for proof in entry["proofs"].values()), entry["proofs"]
        assert len(entry["layers"]) == LAYERS[name]
        assert {layer["rank"] for layer in entry["layers"]} == {8}
        assert entry["size_bytes"] < entries[f"baseline/fp32.{fmt}"]["size_bytes"]
    shape = (20, 6, 64) if name == "encoder" else (20, 3, 8, 8)
    x = np.random.default_rng(7).normal(size=shape).astype(np.float32)
    dense = [answers(out / "baseline" / f"fp32.{fmt}", x) for fmt in ("onnx", "tflite")]
    np.testing.assert_allclose(dense[1], dense[0], atol=1e-4 * np.abs(dense[0]).max())
    packed = [answers(out / f"model.{fmt}", x) for fmt in ("onnx", "tflite")]
    assert cosine(packed[0], packed[1]) > 0.98  # each format has a plan of its own
    assert cosine(packed[0], dense[0]) > 0.5, "a rank-8 pair of a random matrix keeps some of it"


RECURRENT = """
class Last(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn = getattr(nn, kind)(12, 48, batch_first=True)
        self.head = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 5))

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])

def recipe():
    torch.manual_seed(0)
    return given(Last("KIND").eval(), 7, 12)
"""


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_models_come_out_in_both_formats(tmp_path: Path, kind: str) -> None:
    """In TFLite an LSTM is the fused operator, a GRU a product and loops."""
    (tmp_path / "net.py").write_text(HEAD + RECURRENT.replace("KIND", kind))
    out = tmp_path / "pack"
    done = invoke("build", f"{tmp_path / 'net.py'}:recipe", "--target", "rpi4", "--rank", "8", "--out", out)
    assert done.code == 0, done.err
    entries = json.loads((out / "manifest.json").read_text())["files"]
    x = np.random.default_rng(7).normal(size=(20, 7, 12)).astype(np.float32)
    for fmt in ("onnx", "tflite"):
        entry = entries[f"model.{fmt}"]
        assert all(proof["passed"] for proof in entry["proofs"].values()), entry["proofs"]
        assert "low-rank" in {layer["structure"] for layer in entry["layers"]}
        assert entry["size_bytes"] < entries[f"baseline/fp32.{fmt}"]["size_bytes"]
    dense = [answers(out / "baseline" / f"fp32.{fmt}", x) for fmt in ("onnx", "tflite")]
    np.testing.assert_allclose(dense[1], dense[0], atol=1e-4 * np.abs(dense[0]).max())
    packed = [answers(out / f"model.{fmt}", x) for fmt in ("onnx", "tflite")]
    assert cosine(packed[0], packed[1]) > 0.98  # each format has a plan of its own
    assert cosine(packed[0], dense[0]) > 0.9


def answers(path: Path, x: np.ndarray) -> np.ndarray:
    """First output for each sample, alone."""
    loaded = load(path, "onnx" if path.suffix == ".onnx" else "tflite")
    name = loaded.inputs[0].name
    return np.concatenate([loaded.run({name: row[None]})[0] for row in x])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt(np.square(a).sum() * np.square(b).sum()))
