"""Scores of classes: how labels fit outputs, and what each score says by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack.metrics.classes import accuracy, agreement, f1, layout, no_top5, threshold, top5
from edgepack.model.types import Array


def scores(*winners: int, classes: int = 3) -> Array:
    return np.eye(classes, dtype=np.float32)[list(winners)] * 4 + 1


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_accuracy_and_agreement_per_sample() -> None:
    outputs, reference, labels = scores(0, 1, 2, 0), scores(0, 1, 1, 1), np.array([0, 2, 2, 1])
    assert accuracy(outputs, reference, labels).tolist() == [100, 0, 100, 0]
    assert agreement(outputs, reference, None).tolist() == [100, 100, 0, 0]


def test_scores_of_sequences_are_shares_of_positions() -> None:
    outputs = np.stack([scores(0, 1, 2, 0), scores(1, 1, 1, 1)])
    reference = np.stack([scores(0, 1, 2, 2), scores(0, 0, 1, 1)])
    labels = np.array([[0, 1, 2, 0], [0, 0, 0, 1]])
    assert agreement(outputs, reference, None).tolist() == [75, 50]
    assert accuracy(outputs, reference, labels).tolist() == [100, 25]


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize("labels", [np.array([0, 1, 1, 0]), np.array([[0], [1], [1], [0]], np.float32)])
def test_one_sigmoid(shape: tuple[int, ...], labels: Array) -> None:
    reference = np.array([0.2, 0.9, 0.6, 0.4], np.float32).reshape(shape)
    outputs = np.array([0.2, 0.4, 0.6, 0.7], np.float32).reshape(shape)
    assert accuracy(reference, reference, labels).tolist() == [100, 100, 100, 100]
    assert accuracy(outputs, reference, labels).tolist() == [100, 0, 100, 0]
    assert agreement(outputs, reference, None).tolist() == [100, 0, 100, 0]


def test_one_logit_is_decided_at_0() -> None:
    reference = np.array([[-3.0], [0.4], [2.0]], np.float32)
    assert threshold(reference) == 0
    assert accuracy(reference, reference, np.array([0, 1, 1])).tolist() == [100, 100, 100]


def test_labels_in_a_column_and_one_hot() -> None:
    reference = scores(0, 1, 2)
    for labels in (np.array([[0], [1], [1]]), np.eye(3, dtype=int)[[0, 1, 1]], np.eye(3, dtype=np.float32)[[0, 1, 1]]):
        assert accuracy(reference, reference, labels).tolist() == [100, 100, 0]


def test_class_numbers() -> None:
    reference = np.array([3, 7, 7], np.int64)
    assert accuracy(reference, reference, np.array([3, 7, 2])).tolist() == [100, 100, 0]
    assert agreement(np.array([3, 7, 2]), reference, None).tolist() == [100, 100, 0]


def test_maps_of_classes() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (2, 4, 5))
    reference = np.moveaxis(np.eye(3, dtype=np.float32)[labels], -1, 1)
    assert reference.shape == (2, 3, 4, 5)
    assert accuracy(reference, reference, labels).tolist() == [100, 100]


@pytest.mark.parametrize(
    ("outputs", "labels"),
    [
        (normal(5, 3), np.array([0.5, 1.5, 2.5, 0.1, 0.2])),  # a regression
        (normal(5, 3), np.array([0, 1, np.nan, 0, 1])),
        (normal(5, 3), np.array([0, 1, 3, 0, 1])),  # more classes than scores
        (normal(5, 3), np.array([0, 1, -1, 0, 1])),
        (normal(5, 7, 3), np.array([0, 1, 2, 0, 1])),
        (normal(5, 1), np.array([0, 1, 2, 0, 1])),
        (np.arange(5), np.array([[0, 1], [1, 1], [0, 0], [1, 0], [1, 1]])),
    ],
)
def test_labels_that_are_no_classes(outputs: Array, labels: Array) -> None:
    assert layout(outputs, labels) is None
    with pytest.raises(ValueError, match="name no classes"):
        accuracy(outputs, outputs, labels)


def test_f1_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(3)
    labels, outputs = rng.integers(0, 4, 200), normal(200, 4)
    outputs[np.arange(200), labels] += 1
    expected = 100 * f1_score(labels, outputs.argmax(axis=1), average="macro")
    assert f1(outputs, outputs, labels).mean() == pytest.approx(expected)

    several = (rng.random((200, 5)) < 0.3).astype(int)
    answers = several * 1.0 + normal(200, 5) - 0.5
    expected = 100 * f1_score(several, answers > 0, average="macro")
    assert f1(answers, answers, several).mean() == pytest.approx(expected)

    one, score = several[:, 0], answers[:, :1]
    assert f1(score, score, one).mean() == pytest.approx(100 * f1_score(one, score[:, 0] > 0))


def test_f1_expansion_has_the_variance_of_f1() -> None:
    """The spread of F1 over many draws of the samples is what one draw's scores say."""
    rng = np.random.default_rng(1)
    drawn, said = [], []
    for _ in range(300):
        labels = (rng.random(400) < 0.2).astype(int)
        answers = (np.where(rng.random(400) < 0.8, labels, 1 - labels) - 0.5)[:, None]
        found = f1(answers, answers, labels)
        drawn.append(found.mean())
        said.append(found.std() / 20)
    assert np.std(drawn) == pytest.approx(np.mean(said), rel=0.15)


def test_top5() -> None:
    outputs = np.tile(np.arange(8, dtype=np.float32), (3, 1))
    assert top5(outputs, outputs, np.array([7, 3, 2])).tolist() == [100, 100, 0]
    assert "more than 5 classes" in str(no_top5(scores(0, 1), np.array([0, 1])))
