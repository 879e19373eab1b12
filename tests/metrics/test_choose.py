"""The metric that fits: every output has a judge, labels are used or refused."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack.errors import DataError, UsageError
from edgepack.metrics.choose import choose
from edgepack.metrics.metric import METRICS, own_metric
from edgepack.model.types import Array


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


LABELS = np.arange(60) % 6
LOGITS = normal(60, 6) + 6 * np.eye(6, dtype=np.float32)[LABELS]
SHARES = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
UNIT = normal(60, 4) / np.linalg.norm(normal(60, 4), axis=1, keepdims=True)
POSITIVE = np.abs(normal(60, 1)) + 1
SIGMOID = 1 / (1 + np.exp(-normal(60, 1)))


def judged(*reference: Array, labels: Array | None = None, asked: str | None = None) -> list[tuple[int, str, bool]]:
    return [(one.output, one.metric.name, one.labelled) for one in choose(reference, labels, asked, [normal(60, 30)])]


@pytest.mark.parametrize(
    ("reference", "metric"),
    [
        (LOGITS, "agreement"),
        (SHARES, "agreement"),
        (UNIT, "cosine"),
        (np.eye(4, dtype=np.float32)[LABELS % 4], "agreement"),  # certain shares have unit length too
        (POSITIVE, "r2"),
        (POSITIVE[:, 0], "r2"),
        (SIGMOID, "r2"),
        (normal(60, 2) * 100, "r2"),  # a pair of coordinates
        (normal(60, 10), "r2"),  # standardized targets
        (normal(60, 6) + np.array([0, 0, 9, 0, 0, 0], np.float32), "r2"),  # always the same column
        (normal(60, 30) * 9, "r2"),  # the shape of an input: a reconstruction
        (normal(60, 7, 3), "r2"),
        (LABELS, "agreement"),
    ],
)
def test_without_labels(reference: Array, metric: str) -> None:
    assert judged(reference) == [(0, metric, False)]


@pytest.mark.parametrize(
    ("reference", "labels", "metric"),
    [
        (LOGITS, LABELS, "accuracy"),
        (LOGITS, LABELS.astype(np.float32), "accuracy"),
        (LOGITS, LABELS[:, None], "accuracy"),
        (LOGITS, np.eye(6)[LABELS], "accuracy"),
        (LOGITS, (normal(60, 6) > 0).astype(int), "f1"),
        (SIGMOID, LABELS % 2, "accuracy"),
        (SIGMOID[:, 0], LABELS[:, None] % 2, "accuracy"),
        (LABELS, LABELS, "accuracy"),
        (normal(60, 5, 3), np.zeros((60, 5), int), "accuracy"),
        (POSITIVE, POSITIVE[:, 0] + 1, "r2"),
        (POSITIVE, LABELS, "r2"),  # whole numbers from 0 to 5 for one value: a count
        (normal(60, 7), normal(60, 7, seed=1), "r2"),
    ],
)
def test_by_labels(reference: Array, labels: Array, metric: str) -> None:
    assert judged(reference, labels=labels) == [(0, metric, True)]


def test_class_numbers_beside_shares() -> None:
    """As scikit-learn's models have it: both are held against the labels."""
    assert judged(LABELS, SHARES, labels=LABELS) == [(0, "accuracy", True), (1, "accuracy", True)]


def test_outputs_that_labels_do_not_fit_are_held_against_the_original() -> None:
    assert judged(LOGITS, UNIT, labels=LABELS) == [(0, "accuracy", True), (1, "cosine", False)]
    assert judged(POSITIVE, LOGITS, labels=LABELS) == [(0, "r2", False), (1, "accuracy", True)]


def test_text_has_no_judge() -> None:
    assert judged(np.array(["a"] * 60), SHARES) == [(1, "agreement", False)]


@pytest.mark.parametrize("labels", [normal(60), LABELS + 1, np.zeros((60, 3)), normal(60, 6, 2)])
def test_labels_that_fit_nothing_are_refused(labels: Array) -> None:
    with pytest.raises(
        DataError, match=r"the labels 'y' .*, from .* to .*\) fit no output of the model \(float32 \(60, 6\)\)"
    ):
        choose([LOGITS], labels, None)


def test_on_request() -> None:
    assert judged(LOGITS, POSITIVE, labels=LABELS, asked="accuracy") == [(0, "accuracy", True), (1, "r2", False)]
    assert judged(LOGITS, POSITIVE, labels=LABELS, asked="cosine") == [(0, "cosine", False), (1, "cosine", False)]
    assert judged(LOGITS, POSITIVE, labels=POSITIVE, asked="mae") == [(0, "mae", False), (1, "mae", True)]
    with pytest.raises(UsageError, match="unknown metric 'x'; there are accuracy, top5, f1"):
        choose([LOGITS], None, "x")
    with pytest.raises(UsageError, match="--metric accuracy needs labels"):
        choose([LOGITS], None, "accuracy")
    with pytest.raises(UsageError, match="--metric accuracy does not fit: labels float32"):
        choose([LOGITS], normal(60), "accuracy")
    with pytest.raises(UsageError, match="--metric top5 does not fit: it needs scores of more than 5 classes"):
        choose([normal(60, 4)], LABELS % 4, "top5")


def test_a_metric_of_the_users() -> None:
    mine = own_metric("m.py:f", lambda outputs, labels: -np.abs(outputs[:, 0] - labels))
    (judge, other) = choose([LOGITS, POSITIVE], LABELS, mine)
    assert (judge.output, judge.metric.name, judge.labelled) == (0, "m.py:f", True)
    assert other.metric.name == "r2"
    expected = -np.abs(LOGITS[:, 0] - LABELS)
    np.testing.assert_allclose(judge.scores([LOGITS], [LOGITS], LABELS), expected)
    wrong = own_metric("m.py:g", lambda outputs, labels: 1.0)
    with pytest.raises(UsageError, match=r"m\.py:g gave scores of shape \(\) for 60 samples"):
        choose([LOGITS], None, wrong)[0].scores([LOGITS], [LOGITS], None)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_whole_for_the_original_itself(name: str) -> None:
    labels = LOGITS.argmax(axis=1)
    judges = choose([LOGITS], labels, None if METRICS[name].labels == "used" else name)
    scores = METRICS[name].scores(LOGITS, LOGITS, labels if judges[0].labelled else None)
    best = {"nrmse": 0, "mse": 0, "mae": 0}.get(name, 100)
    np.testing.assert_allclose(scores, best, atol=1e-4)


def test_shares_in_8_bits_are_shares_of_classes() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(12, 0.2), 40)
    codes = np.clip(np.rint(shares * 256), 0, 255).astype(np.float32) / 256
    (judge,) = choose([codes], None, None)
    assert judge.metric.name == "agreement"
    (other,) = choose([codes / 2], None, None)
    assert other.metric.name == "r2", "they sum to a half"
