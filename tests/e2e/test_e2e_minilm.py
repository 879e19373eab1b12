"""all-MiniLM-L6-v2, a sentence encoder with 36 linear layers: inspected, and its first blocks packed as dense int8."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgepack.backends.runtime import load
from tests.e2e.e2e_cli import invoke, run

MODELS = Path(__file__).parents[2] / "bench" / "models"
BLOCKS, LINEAR = 2, 6
"""Of the transformer, how many are packed, and linear layers of each."""
FEWER = f"""
import sys
sys.path.insert(0, {str(MODELS)!r})
from itertools import islice
import minilm, numpy as np, torch
from edgepack.model.types import Recipe

def recipe():
    example = torch.ones(1, minilm.TOKENS, dtype=torch.int64)
    sentences = list(islice(minilm.docstring_lines(), 96))
    return Recipe(minilm.encoder(), (example, example.clone()), minilm.tokenized(sentences))

def first_blocks():
    fewer = recipe()
    bert, rows = fewer.model.bert, fewer.calibration
    del bert.encoder.layer[{BLOCKS}:]
    known, numbers = np.unique(rows["input_ids"], return_inverse=True)
    rows["input_ids"] = numbers.reshape(rows["input_ids"].shape)
    words = bert.embeddings.word_embeddings.weight.data[torch.from_numpy(known)]
    bert.embeddings.word_embeddings = torch.nn.Embedding.from_pretrained(words)
    return fewer
"""


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with fewer sentences, and its first blocks with their words alone: enough to see that all parts fit."""
    path = tmp_path_factory.mktemp("minilm") / "minilm_quick.py"
    path.write_text(FEWER)
    return path


def test_inspect_shows_every_linear_layer(recipes: Path) -> None:
    done = invoke("inspect", f"{recipes}:recipe", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    shapes = [(layer["out_features"], layer["in_features"]) for layer in report["layers"]]
    assert sorted(shapes) == sorted([(384, 384)] * 24 + [(1536, 384), (384, 1536)] * 6)
    assert all(layer["rows"] == 64 for layer in report["layers"])
    assert report["weight_bytes"] == pytest.approx(90e6, rel=0.02)
    assert report["linear_bytes"] / report["weight_bytes"] == pytest.approx(0.47, abs=0.01)


def test_dense_int8_in_both_formats(recipes: Path, tmp_path: Path) -> None:
    """A share too small for any rank keeps every layer dense."""
    out = tmp_path / "pack"
    options = ("--target", "rpi4", "--precision", "int8", "--rank", "0.001", "--out", out)
    done = run("build", f"{recipes}:first_blocks", *options)
    assert done.code == 0, done.err
    assert done.err == "", "libraries have nothing to say to the user"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["metric"]["name"] == "cosine"
    for fmt in ("onnx", "tflite"):
        entry = manifest["files"][f"model.{fmt}"]
        assert all(proof["passed"] for proof in entry["proofs"].values()), entry["proofs"]
        assert entry["validation"]["emitted"] > 98
        assert entry["size_bytes"] < manifest["files"][f"baseline/fp32.{fmt}"]["size_bytes"] / 3.5
        assert len(entry["layers"]) == BLOCKS * LINEAR
        assert all(layer["rank"] is None and layer["scheme"].startswith("int8") for layer in entry["layers"])
    with np.load(out / "example_inputs.npz") as inputs:
        feed = dict(inputs)
    answers = {}
    for name in ("model.onnx", "model.tflite", "baseline/fp32.onnx"):
        loaded = load(out / name, "onnx" if name.endswith("onnx") else "tflite")
        answers[name] = loaded.run(feed)[0][0]
        assert np.linalg.norm(answers[name]) == pytest.approx(1, abs=0.01)
    for name, answer in answers.items():
        assert answer @ answers["baseline/fp32.onnx"] > 0.98, name
