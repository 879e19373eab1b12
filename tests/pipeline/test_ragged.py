"""Samples of different lengths: layers are looked at, answers judged and formats left out as they allow it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.helper import make_node

from edgepack.backends.runtime import answers
from edgepack.data import Ragged, Samples
from edgepack.errors import UsageError
from edgepack.model.model import Model
from edgepack.model.types import Array
from edgepack.natives import native
from edgepack.pipeline.activations import observe
from edgepack.pipeline.prepare import of_any_shape
from edgepack.sources import open_model
from edgepack.workspace import Cache, Workspace
from tests.backends.onnx.graph_models import info, normal, proto
from tests.pipeline.small_builds import options

ROWS: list[Array] = [normal(length, 6, seed=length) for length in (3, 1, 5, 2)]
SAMPLES = Samples(
    {"x": Ragged(np.concatenate([row.reshape(-1) for row in ROWS]), np.array([row.shape for row in ROWS]))}
)


@pytest.fixture
def opened(tmp_path: Path) -> Model:
    """The mean over time of a linear layer."""
    nodes = [make_node("MatMul", ["x", "w"], ["a"]), make_node("ReduceMean", ["a"], ["y"], axes=[1], keepdims=0)]
    made = proto(nodes, [info("x", ["n", "t", 6])], [info("y", ["n", 4])], {"w": normal(6, 4)})
    onnx.save(made, tmp_path / "model.onnx")
    return open_model(str(tmp_path / "model.onnx"), tmp_path)


def test_every_row_of_every_sample_counts_once(opened: Model, tmp_path: Path) -> None:
    seen = observe(opened, ["w"], SAMPLES, Workspace(Cache(tmp_path / "cache"), tmp_path))["w"]
    rows = np.concatenate(ROWS).astype(np.float64)
    assert seen.count == len(rows)
    np.testing.assert_allclose(seen.mean, rows.mean(axis=0), atol=1e-6)


def test_answers_are_one_a_sample(opened: Model) -> None:
    (found,) = answers(native("onnx").session(opened.content, {}, threads=1), SAMPLES)
    weight = opened.layers[0].weight
    np.testing.assert_allclose(found, [(row @ weight.T).mean(axis=0) for row in ROWS], rtol=1e-4, atol=1e-5)


def test_files_of_fixed_shapes_are_left_out_and_said(tmp_path: Path) -> None:
    workspace = Workspace(Cache(tmp_path / "cache"), tmp_path)
    asked = replace(options(Path("m.onnx")), formats=None)
    assert of_any_shape(asked, workspace).chosen_formats == ("onnx",)
    assert workspace.warnings == ("no TFLite file: its files have fixed shapes, and the samples differ in theirs",)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"formats": ("tflite",)}, "TFLite files have fixed ones"),
     ({"formats": ("onnx", "tflite")}, "TFLite files have fixed ones"),
     ({"formats": ("onnx",), "method": "fisher"}, "--method fisher takes samples of one shape"),
     ({"formats": ("onnx",), "distill": object()}, "--distill takes samples of one shape")],
)  # fmt: skip
def test_what_wants_samples_of_one_shape(changes: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        of_any_shape(replace(options(Path("m.onnx")), **changes), Workspace(Cache(tmp_path / "c"), tmp_path))
