"""A drop is paired, of the worst output, and its bound holds; soft labels make it narrow where classes have scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edgepack.metrics.choose import choose
from edgepack.metrics.classes import Layout
from edgepack.metrics.drop import Drop, make_scale
from edgepack.metrics.soft_labels import soft_labels
from edgepack.model.types import Array


def scores(*winners: int, classes: int = 3) -> Array:
    return np.eye(classes, dtype=np.float32)[list(winners)] * 4 + 1


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def dropped(outputs: Sequence[Array], reference: Sequence[Array], labels: Array | None = None) -> Drop:
    return make_scale(reference, labels, choose(reference, labels, None)).drop(outputs)


def test_drop_is_paired() -> None:
    """Both err on other samples than they share: the standard error is that of the differences, not of the means."""
    labels = np.arange(200) % 3
    reference, outputs = labels.copy(), labels.copy()
    reference[:40] = (labels[:40] + 1) % 3
    outputs[:44] = (labels[:44] + 1) % 3
    found = dropped([outputs], [reference], labels)
    assert (found.metric, found.dense, found.emitted, found.samples) == ("accuracy", 80.0, 78.0, 200)
    assert found.value == pytest.approx(2.0)
    differences = np.zeros(200)
    differences[40:44] = 100
    assert found.standard_error == pytest.approx(differences.std(ddof=1) / np.sqrt(200))
    assert 2 < found.bound < 4.5


@pytest.mark.parametrize("answers", [normal(80, 5), np.arange(80) % 4, normal(80, 3) / 10])
def test_drop_of_the_same_outputs_is_nothing(answers: Array) -> None:
    found = dropped([answers], [answers])
    assert found.value == found.standard_error == 0
    assert found.dense == found.emitted == 100
    assert found.bound < 2.1


def test_a_better_file_has_a_negative_drop() -> None:
    labels = np.arange(40) % 2
    assert dropped([labels], [np.zeros(40, int)], labels).value == -50.0


def test_the_worst_output_counts() -> None:
    first, second = normal(100, 4), np.abs(normal(100, 1)) + 1
    found = dropped([first, second * 0 + second.mean()], [first, second])
    assert (found.output, found.metric) == (1, "r2")
    assert found.value == pytest.approx(100, abs=1e-3)


def test_an_answer_that_is_not_finite_is_the_worst() -> None:
    answers = normal(50, 1)
    broken = answers.copy()
    broken[3] = np.nan
    assert dropped([broken], [answers]).value > 1000


def _classifier(seed: int, noise: float) -> tuple[Array, Array, Array]:
    """Calibrated logits, labels drawn from them, and logits of a noisy copy."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((4000, 5)) * 4
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (shares.cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)
    return logits * 2.5, labels, (logits + rng.standard_normal((4000, 5)) * noise) * 2.5  # overconfident by 2.5


def test_the_temperature_is_found() -> None:
    logits, labels, _ = _classifier(0, 0.1)
    found = soft_labels(logits, labels, Layout("scores"))
    assert found is not None
    assert found.temperature == pytest.approx(2.5, rel=0.1)


def test_soft_labels_estimate_the_drop_with_less_noise() -> None:
    by_labels, by_soft, held = [], [], []
    for seed in range(60):
        logits, labels, noisy = _classifier(seed, 0.3)
        true = 100.0 * ((logits.argmax(1) == labels).mean() - (noisy.argmax(1) == labels).mean())
        rows = np.random.default_rng(seed).choice(4000, 500, replace=False)
        found = make_scale([logits[rows]], labels[rows], choose([logits[rows]], labels[rows], None)).drop([noisy[rows]])
        by_labels.append(found.dense - found.emitted - true)
        by_soft.append(found.value - true)
        held.append(found.bound >= true)
    assert np.std(by_soft) < 0.8 * np.std(by_labels)
    assert np.mean(held) >= 0.85


def test_soft_labels_that_the_labels_contradict_give_way() -> None:
    """A model that is wrong wherever it is unsure: its scores say that changed answers cost little."""
    rng = np.random.default_rng(0)
    reference = scores(*(np.arange(1000) % 3))
    labels = np.arange(1000) % 3
    outputs = reference.copy()
    outputs[:100] = scores(*((labels[:100] + 1) % 3))
    reference[100:] += rng.standard_normal((900, 3)) * 0.1
    found = dropped([outputs], [reference], labels)
    assert found.value == pytest.approx(10, abs=0.5)
    assert found.bound > 10


def test_one_sigmoid_has_soft_labels() -> None:
    rng = np.random.default_rng(0)
    logit = rng.standard_normal(2000) * 3
    share = (1 / (1 + np.exp(-logit)))[:, None].astype(np.float32)
    labels = (rng.random(2000) < share[:, 0]).astype(int)
    found = soft_labels(share, labels, Layout("score", threshold=0.5))
    assert found is not None
    assert found.temperature == pytest.approx(1, rel=0.15)
    assert found.drops(share, share).max() == 0
