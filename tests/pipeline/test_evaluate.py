"""The untouched test: any kind of number is taken, and what the recipe does wrong is said in its own terms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.backends.backend import Session
from edgepack.data import Samples
from edgepack.errors import DataError, ModelError
from edgepack.metrics.choose import Judge
from edgepack.metrics.drop import Scale
from edgepack.metrics.metric import METRICS
from edgepack.model.model import Model
from edgepack.model.types import Recipe, TensorSpec
from edgepack.pipeline import evaluate as scores
from edgepack.pipeline import recipe_score
from edgepack.pipeline.evaluate import EvaluationSet

SPEC = TensorSpec("x", (1, 3), np.dtype(np.float32))
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
MODEL = Session((SPEC,), lambda feed: [feed["x"] * 2])


def opened(evaluate: Callable[..., Any] | None) -> Model:
    recipe = Recipe(None, (), None, evaluate)
    return Model("m", "recipe", "0" * 64, "onnx", None, (SPEC,), (), {"onnx": Path("m.onnx")}, None, recipe)


def evaluated(evaluate: Callable[..., Any]) -> float:
    return recipe_score.evaluated(opened(evaluate), MODEL)[0]


def test_predict_takes_any_number_of_samples_and_gives_the_first_output() -> None:
    def evaluate(predict: Callable[..., np.ndarray]) -> float:
        np.testing.assert_array_equal(predict(X), X * 2)
        np.testing.assert_array_equal(predict(X[:1].tolist()), X[:1] * 2)
        return 1.5

    assert evaluated(evaluate) == 1.5


@pytest.mark.parametrize(
    "kind", [int, float, np.float32, np.float64, np.int64, np.array], ids=lambda kind: kind.__name__
)
def test_any_kind_of_number(kind: Callable[[int], Any]) -> None:
    assert evaluated(lambda predict: kind(3)) == 3.0


def test_torch_scalar() -> None:
    import torch

    assert evaluated(lambda predict: torch.tensor(0.5)) == 0.5


@pytest.mark.parametrize("score", [float("nan"), float("inf"), "98 %", None, np.ones(2), [1.0]], ids=repr)
def test_no_number(score: object) -> None:
    with pytest.raises(DataError, match=r"evaluate returned .*, expected a finite number"):
        evaluated(lambda predict: score)


def test_a_compressed_model_that_breaks_the_score_is_the_worst_there_is() -> None:
    answers = iter([3.0, float("nan")])
    found = recipe_score.recipe_score(opened(lambda predict: next(answers)), MODEL)
    assert found.dense == 3.0
    assert found.drop(MODEL).value > 1e5


def test_scores_of_other_samples_have_other_keys() -> None:
    def key(samples: np.ndarray) -> str:
        def evaluate(predict: Callable[..., np.ndarray]) -> float:
            return float(len(predict(samples)))

        return recipe_score.recipe_score(opened(evaluate), MODEL).key

    assert key(X) == key(X.copy()) != key(X + 1)


def test_errors_of_the_recipe_say_where() -> None:
    with pytest.raises(
        ModelError, match=r"evaluate: running it raised KeyError at .*test_evaluate\.py:\d+: 'top1'"
    ) as err:
        evaluated(lambda predict: {}["top1"])
    assert err.value.hint
    assert "predict" in err.value.hint


def test_wrong_inputs_are_the_datas_fault() -> None:
    with pytest.raises(DataError, match="gave predict 2 arrays, the model's inputs are x"):
        evaluated(lambda predict: predict(X, X))
    with pytest.raises(DataError, match=r"'x' has shape \(8, 2\)"):
        evaluated(lambda predict: predict(X[:, :2]))


def test_interrupts_pass() -> None:
    def evaluate(predict: object) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluated(evaluate)


@pytest.mark.parametrize(
    ("metric_name", "labelled", "expected"),
    [("accuracy", True, 50.0), ("accuracy", False, None), ("agreement", True, 75.0), ("cosine", False, 75.0)],
)
def test_the_tests_metric_is_that_of_the_validation_where_it_can_be(
    metric_name: str, labelled: bool, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four samples: the emitted file says 0 0 1 1, the original 0 0 1 0, the labels 0 1 1 0."""
    outputs = {"emitted": np.eye(2)[[0, 0, 1, 1]], "dense": np.eye(2)[[0, 0, 1, 0]]}
    monkeypatch.setattr(scores, "_loaded", lambda path, fmt, validation: path.name)
    monkeypatch.setattr(scores, "answers", lambda name, samples: (outputs[name],))
    test = Samples({"x": X[:4]}, np.array([0, 1, 1, 0]) if labelled else None)
    judge = Judge(0, METRICS[metric_name], metric_name == "accuracy", "asked for")
    validation = EvaluationSet(test, Scale((outputs["dense"],), test.labels, (judge,), {}), True, True)
    paths: Any = {"model.onnx": (Path("emitted"), "onnx"), "baseline/fp32.onnx": (Path("dense"), "onnx")}
    found = scores.final_scores(paths, opened(None), test, validation)
    assert found["baseline/fp32.onnx"] == (75.0 if metric_name == "accuracy" and labelled else 100.0)
    assert found["model.onnx"] == pytest.approx(expected) if expected is not None else found["model.onnx"] < 100


@pytest.mark.parametrize(("positives", "said"), [(1, True), (8, False)])
def test_samples_of_one_class_tell_nothing_of_agreement(positives: int, said: bool) -> None:
    """A wake word that is heard in one of a thousand samples: a file that never hears it loses 0.1 points."""
    answers = np.zeros((1000, 1), np.float32)
    answers[:positives] = 0.9
    judge = Judge(0, METRICS["agreement"], False, "it was asked for")
    samples = Samples({"x": np.zeros((1000, 1), np.float32)})
    validation = EvaluationSet(samples, Scale([answers], None, [judge], {}), True, True)
    line = scores.hardly_told_apart(validation, 0.1)
    assert (line is not None) is said
    if line is not None:
        assert "gives 99.90 % of the samples one class" in line
    assert scores.hardly_told_apart(validation, None) is None
