"""What the accuracy is measured on, by which method and metric."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from edgepack.data import Samples
from edgepack.errors import UsageError
from edgepack.model.model import Model
from edgepack.model.types import Recipe, TensorSpec
from edgepack.pipeline.datasets import Data, choose_method, load_data, with_open_sides
from edgepack.workspace import Cache, open_workspace
from tests.backends.onnx.graph_models import info, model

SPEC = TensorSpec("x", (1, 3), np.dtype(np.float32))
X = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)


def opened(calibration: object = None) -> Model:
    recipe = None if calibration is None else Recipe(None, (), calibration)  # type: ignore[arg-type]
    return Model("m", "onnx", "0" * 64, "onnx", None, (SPEC,), (), {"onnx": Path("m.onnx")}, None, recipe)


def test_the_file_comes_before_the_recipe(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x=X[:50])
    found = load_data(tmp_path / "mine.npz", opened({"x": X}), "spec", 0)
    assert found.origin == "mine.npz"
    assert found.calibration is not None
    assert found.confirmation is None
    assert len(found.calibration) + len(found.validation) == 50


def test_the_recipe_comes_before_nothing() -> None:
    found = load_data(None, opened({"x": X}), "spec", 0)
    assert found.origin == "recipe"
    assert found.calibration is not None
    rows = {row.tobytes() for row in found.calibration.inputs["x"]}
    assert rows.isdisjoint(row.tobytes() for row in found.validation.inputs["x"])
    assert found.confirmation is not None
    assert (len(found.calibration), len(found.validation), len(found.confirmation)) == (33, 33, 34)


def test_without_data_stand_ins_prove_the_file() -> None:
    found = load_data(None, opened(), "spec", 0)
    assert (found.origin, found.calibration, found.digest()) == (None, None, None)
    assert found.validation.inputs["x"].shape == (4, 1, 3)
    again = load_data(None, opened(), "spec", 0)
    np.testing.assert_array_equal(found.validation.inputs["x"], again.validation.inputs["x"])


def test_digest_follows_the_calibration_samples_only() -> None:
    first = load_data(None, opened({"x": X}), "spec", 0)
    assert first.digest() == load_data(None, opened({"x": X.copy()}), "spec", 0).digest()
    assert first.digest() != load_data(None, opened({"x": X}), "spec", 1).digest()
    assert first.digest() == Data("recipe", first.calibration, Samples({"x": X})).digest()


def test_open_sides_are_those_on_which_the_model_runs() -> None:
    frame = model(
        [helper.make_node("Reshape", ["x", "two"], ["y"])],
        [info("x", [None, None])],
        [info("y", [2, 256])],
        {"two": np.array([2, 256])},
    )
    x = replace(SPEC, shape=(None, None))
    with open_workspace(Cache(), seed=0) as workspace:
        found = with_open_sides(replace(opened(), inputs=(x,), content=frame), None, workspace)
        assert found.inputs == (replace(SPEC, shape=(None, 512)),)
        (said,) = workspace.warnings
        assert said == "--input x=1x512 is assumed: the model leaves ?x? open, and there are no data"


def test_methods() -> None:
    with_data, without = load_data(None, opened({"x": X}), "spec", 0), load_data(None, opened(), "spec", 0)
    assert choose_method(None, with_data) == "whitened"
    assert choose_method(None, without) == "svd"
    assert choose_method("svd", with_data) == "svd"
    with pytest.raises(UsageError, match="whitened needs calibration data"):
        choose_method("whitened", without)
    with pytest.raises(UsageError, match="unknown method 'magic'"):
        choose_method("magic", with_data)
