"""Guard metrics: a score per sample, the metric that fits the data, and the paired error of a drop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import UsageError
from edgepack.metrics import METRICS, accuracy, agreement, choose, cosine, drop, sqnr_db
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


def test_cosine_by_hand() -> None:
    a = np.array([[1, 0], [1, 1], [2, 0], [0, 0], [0, 0], [1, 0]], np.float32)
    b = np.array([[1, 0], [1, 0], [-1, 0], [0, 0], [1, 0], [0, 0]], np.float32)
    np.testing.assert_allclose(cosine(a, b, None), [100, 100 / np.sqrt(2), -100, 100, 0, 0], atol=1e-6)


@given(st.integers(1, 6), st.integers(1, 5), st.floats(0.01, 100), st.integers(0, 99))
def test_cosine_does_not_see_scale(count: int, features: int, factor: float, seed: int) -> None:
    a = normal(count, features, 2, seed=seed)
    np.testing.assert_allclose(cosine(a * np.float32(factor), a, None), 100, atol=1e-4)
    np.testing.assert_allclose(cosine(-a, a, None), -100, atol=1e-4)


def test_cosine_of_broken_outputs_is_no_agreement() -> None:
    broken = normal(3, 4)
    broken[1, 2] = np.nan
    assert cosine(broken, normal(3, 4), None)[1] == 0


def test_accuracy_needs_labels() -> None:
    with pytest.raises(UsageError, match="--metric accuracy needs labels") as caught:
        accuracy(scores(0), scores(0), None)
    assert "array `y`" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("outputs", "labels"),
    [
        (normal(3, 3), np.eye(3, dtype=int)),  # one-hot: would broadcast into nonsense where N = classes
        (normal(5, 1), np.array([0, 1, 0, 1, 1])),  # one column: its arg max is always 0
        (normal(5), np.array([0, 1, 0, 1, 1])),
        (normal(5, 3), np.array([0.5, 1.5, 2.5, 0.1, 0.2])),  # a regression
        (normal(5, 3), np.array([0, 1, np.nan, 0, 1])),
        (normal(5, 7, 3), np.array([0, 1, 2, 0, 1])),
    ],
)
def test_labels_that_are_no_class_numbers(outputs: Array, labels: Array) -> None:
    """Chosen by the data, accuracy would be a constant that no damage could move."""
    assert choose(outputs, labels, None) != "accuracy"
    with pytest.raises(UsageError, match="one class number per score vector"):
        choose(outputs, labels, "accuracy")


UNIT = normal(6, 4) / np.linalg.norm(normal(6, 4), axis=1, keepdims=True)
CERTAIN = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 1]]


@pytest.mark.parametrize(
    ("reference", "labels", "expected"),
    [
        (scores(0, 1, 2), np.array([0, 1, 2]), "accuracy"),
        (scores(0, 1, 2), np.array([0.0, 1.0, 2.0]), "accuracy"),
        (normal(2, 7, 3), np.zeros((2, 7), int), "accuracy"),
        (scores(0, 1, 2), None, "agreement"),
        (UNIT, None, "cosine"),
        (UNIT * 2, None, "agreement"),
        (CERTAIN, None, "agreement"),
        (normal(5, 1), None, "cosine"),
        (normal(5), None, "cosine"),
        (normal(5, 7, 3), None, "cosine"),
    ],
)
def test_choice_by_the_data(reference: Array, labels: Array | None, expected: str) -> None:
    assert choose(reference, labels, None) == expected


def test_choice_on_request() -> None:
    for name in METRICS:
        assert choose(scores(0, 1, 2), np.array([0, 1, 2]), name) == name
    with pytest.raises(UsageError, match="unknown metric 'f1'; there are accuracy, agreement, cosine"):
        choose(scores(0), None, "f1")
    with pytest.raises(UsageError, match="needs labels"):
        choose(scores(0), None, "accuracy")


def test_drop_is_paired() -> None:
    """Both err on other samples than they share: the standard error is that of the differences, not of the means."""
    labels = np.arange(200) % 3
    reference, outputs = scores(*labels), scores(*labels)
    reference[:40] = scores(*((labels[:40] + 1) % 3))
    outputs[:44] = scores(*((labels[:44] + 1) % 3))
    found = drop("accuracy", outputs, reference, labels)
    assert (found.dense, found.emitted, found.samples) == (80.0, 78.0, 200)
    assert found.value == pytest.approx(2.0)
    differences = np.zeros(200)
    differences[40:44] = 100
    assert found.standard_error == pytest.approx(differences.std(ddof=1) / np.sqrt(200))
    unpaired = np.sqrt(2) * 100 * np.sqrt(0.8 * 0.2 / 200)
    assert found.standard_error < unpaired / 2


def test_drop_of_the_same_outputs_is_nothing() -> None:
    for name in ("agreement", "cosine"):
        found = drop(name, normal(20, 5), normal(20, 5), None)
        assert found.value == pytest.approx(0.0, abs=1e-12)
        assert found.standard_error == pytest.approx(0.0, abs=1e-12)
        assert found.dense == pytest.approx(100.0)


def test_a_better_file_has_a_negative_drop() -> None:
    assert drop("accuracy", scores(0, 1), scores(0, 0), np.array([0, 1])).value == -50.0


def test_one_sample_has_no_standard_error() -> None:
    assert np.isnan(drop("agreement", scores(0), scores(0), None).standard_error)


@given(st.floats(-60, 60))
def test_sqnr(level: float) -> None:
    signal, noise = normal(4000), normal(4000, seed=1)
    noise *= np.linalg.norm(signal) / np.linalg.norm(noise) * 10 ** (-level / 20)
    assert sqnr_db(signal + noise, signal) == pytest.approx(level, abs=0.05)


def test_sqnr_at_the_ends() -> None:
    assert sqnr_db(np.ones(3), np.ones(3)) == np.inf
    assert sqnr_db(np.zeros(3), np.zeros(3)) == np.inf
    assert sqnr_db(np.ones(3), np.zeros(3)) == -300
    assert np.isnan(sqnr_db(np.array([np.nan, 1]), np.ones(2)))
    assert sqnr_db(np.array([60000, 1], np.float16), np.array([-60000, 1], np.float16)) == pytest.approx(
        -6.02, abs=0.01
    )
