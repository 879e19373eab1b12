"""A method of another distribution: installed by pip, found by its name, built with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgepack.backends.runtime import load
from tests.e2e.e2e_cli import Done, assert_fails, run
from tests.e2e.e2e_models import mlp, samples

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "sixteen-levels"
version = "1.2"

[project.entry-points."edgepack.factorizers"]
sixteen-levels = "sixteen_levels:sixteen_levels"
broken-levels = "sixteen_levels:broken_levels"

[tool.setuptools]
py-modules = ["sixteen_levels"]
"""

MODULE = '''
import numpy as np

from edgepack.model.constexpr import Writer


def sixteen_levels(layer, share, *, seed=0, gradient=None):
    """Every weight as one of sixteen numbers, two of them a byte."""
    if share < 0.5:
        return "sixteen levels take half of the bytes"
    levels = np.linspace(layer.weight.min(), layer.weight.max(), 16, dtype=np.float32)
    codes = np.abs(layer.weight.reshape(-1, 2)[..., None] - levels).argmin(axis=-1)
    w = Writer()
    index = w.step("cast", w.constant("codes", (16 * codes[:, 0] + codes[:, 1]).astype(np.uint8)), to="int32")
    book = np.stack(np.meshgrid(levels, levels, indexing="ij"), axis=-1).reshape(256, 2)
    pairs = w.step("gather", w.constant("book", book), index, axis=0)
    return w.decoded(w.step("reshape", pairs, shape=layer.weight.shape), layer.bias)


def broken_levels(layer, share, *, seed=0, gradient=None):
    w = Writer()
    return w.decoded(w.constant("weight", np.full((2, 3), np.nan, np.float32)), layer.bias)
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the distribution into."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "source").mkdir()
    (folder / "source" / "pyproject.toml").write_text(PROJECT)
    (folder / "source" / "sixteen_levels.py").write_text(MODULE)
    quiet = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q"]
    command = [sys.executable, "-m", "pip", "install", *quiet, "--target", folder / "site", folder / "source"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    samples(folder / "data.npz", labels=True)
    return mlp(folder / "mlp.onnx")


def build(model: Path, site: Path, out: Path, method: str, *more: str) -> Done:
    data = ("--data", model.parent / "data.npz", "--formats", "onnx", "--target", "rpi4")
    env = {
        "PYTHONPATH": f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "EDGEPACK_CACHE": str(out.parent / "c"),
    }
    return run("build", model, *data, "--out", out, "--method", method, *more, env=env)


def test_a_pack_is_built_by_a_method_of_another_distribution(installed: Path, model: Path, tmp_path: Path) -> None:
    done = build(model, installed, tmp_path / "pack", "sixteen-levels", "--rank", "0.5", "--json")
    assert done.code == 0, done.err
    entry = json.loads(done.out)["manifest"]["files"]["model.onnx"]
    methods = {layer["alternative"] and layer["alternative"]["method"] for layer in entry["layers"]}
    assert "sixteen-levels" in methods
    assert all(proof["passed"] for proof in entry["proofs"].values())
    feed = np.load(tmp_path / "pack" / "example_inputs.npz")
    (answer,) = load(tmp_path / "pack" / "model.onnx", "onnx").run(dict(feed))
    assert np.isfinite(answer).all()


def test_a_plugin_that_gives_nonsense_is_named(installed: Path, model: Path, tmp_path: Path) -> None:
    done = build(model, installed, tmp_path / "pack", "broken-levels", "--rank", "0.5")
    says = [r"--method broken-levels: \S+: found \[\(2, 3\)\], expected"]
    assert_fails(done, 2, says, hint=False, out=tmp_path / "pack")


def test_a_method_that_is_not_installed_is_unknown(model: Path, tmp_path: Path) -> None:
    done = build(model, tmp_path, tmp_path / "pack", "sixteen-levels")
    assert_fails(
        done, 2, ["unknown method 'sixteen-levels'; there are svd, whitened"], hint=False, out=tmp_path / "pack"
    )
