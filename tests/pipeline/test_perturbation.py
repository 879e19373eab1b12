"""What noise in each layer does to the answers, where torch cannot run the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgepack.data import Samples
from edgepack.model.model import Model
from edgepack.pipeline import perturbation
from edgepack.pipeline.activations import Subject
from edgepack.pipeline.analysis import Question, analyze
from edgepack.pipeline.perturbation import measured_weights
from edgepack.sources import open_model
from edgepack.workspace import Cache, Workspace
from tests.backends.tflite.given_files import mlp

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 24)).astype(np.float32)


def opened(folder: Path, scale: float) -> Model:
    """24-32-16-4 as TFLite, without activations that cut; the rows of the first weight have `scale`."""
    shapes = (32, 24), (16, 32), (4, 16)
    weights = [(RNG.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32) for shape in shapes]
    weights[0] *= np.float32(scale)
    biases = [np.full(shape[0], 5 if place < 2 else 0, np.float32) for place, shape in enumerate(shapes)]
    path = mlp(list(zip(weights, biases, strict=True))).save(folder / "m.tflite")
    return open_model(str(path), folder)


def subject(model: Model) -> Subject:
    return Subject(model, Samples({model.inputs[0].name: X}), "k")


def question(metric: str = "r2") -> Question:
    return Question("whitened", metric, 127, {}, "key")


def test_it_is_what_errors_of_a_layer_cost_in_the_answers(tmp_path: Path) -> None:
    """Of a linear network that is known: the mean gain from a layer's output to the answers, by their variance."""
    model = opened(tmp_path, 1.0)
    workspace = Workspace(Cache(tmp_path / "cache"), tmp_path)
    found = analyze(subject(model), subject(model), None, question(), workspace).sensitivity
    assert (found.known, found.by) == (True, "measured noise")
    moments = {name: curvature.moment for name, curvature in found.curvatures.items()}
    assert all(np.array_equal(one, one[0, 0] * np.eye(len(one))) for one in moments.values())
    spectra = analyze(subject(model), subject(model), None, question(), workspace).spectra
    draws = [measured_weights(subject(model), spectra, "key", replace(workspace, seed=seed)) for seed in range(8)]
    assert draws[0] == {name: one[0, 0] for name, one in moments.items()}
    weights = [layer.weight.astype(np.float64) for layer in model.layers]
    answers = X[: perturbation.SAMPLES] @ weights[0].T @ weights[1].T @ weights[2].T
    spread = answers.var(axis=0)
    for place, layer in enumerate(model.layers):
        behind = np.eye(4) if place == 2 else weights[2] if place == 1 else weights[2] @ weights[1]
        gain = (np.square(behind).sum(axis=1) / spread).mean() / layer.out_features
        measured = np.mean([draw[layer.name] for draw in draws])
        assert gain / 3 < measured < 3 * gain, layer.name


@pytest.mark.parametrize("change", ["no data", "too large", "no effect"])
def test_nothing_is_known_where_it_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    model = opened(tmp_path, 0.0 if change == "no effect" else 1.0)
    workspace = Workspace(Cache(tmp_path / "cache"), tmp_path)
    own = subject(model)
    spectra = analyze(own, own, None, question(), workspace).spectra
    if change == "too large":
        monkeypatch.setattr(perturbation, "MOST_MACS", 3 * 1343)
    if change == "no data":
        own = Subject(model, None, "k")
    assert measured_weights(own, spectra, f"other {change}", workspace) == {}
