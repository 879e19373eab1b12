"""Scores of values: channels count alike, and every score says what it says elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.metrics.values import (
    LEAST_ERROR,
    channel_axis,
    cosine,
    labels_are_values,
    mae,
    mse,
    nrmse,
    psnr,
    r2,
    sqnr,
    sqnr_db,
)
from edgepack.model.types import Array


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


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


def test_r2_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import r2_score

    target = normal(300, 4) * np.array([1, 10, 100, 0.001], np.float32) + 5
    outputs = target + normal(300, 4, seed=1) * np.array([0.1, 3, 1, 0.0005], np.float32)
    assert r2(outputs, target, None).mean() == pytest.approx(100 * r2_score(target, outputs), rel=1e-4)
    labels = target + normal(300, 4, seed=2)
    assert r2(outputs, target, labels).mean() == pytest.approx(100 * r2_score(labels, outputs), rel=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_r2_knows_that_its_denominator_is_drawn_as_well(share: float) -> None:
    """Answers that are too small by a constant share have one R² on any draw: its scores do not vary."""
    target = normal(500, 3) * np.array([1, 20, 300], np.float32)
    target -= target.mean(axis=0)
    scores = r2(share * target, target, None)
    np.testing.assert_allclose(scores, 100 * (1 - (1 - share) ** 2), rtol=1e-4)
    np.testing.assert_allclose(nrmse(share * target, target, None), -100 * (1 - share), rtol=1e-4)


def test_the_spread_of_r2_is_that_over_many_draws() -> None:
    rng = np.random.default_rng(3)
    draws = [rng.standard_t(8, size=(400, 2)) for _ in range(300)]
    scores = [r2(0.9 * x + 0.05 * rng.normal(size=x.shape), x, None) for x in draws]
    stated = np.mean([one.std(ddof=1) / np.sqrt(len(one)) for one in scores])
    assert stated == pytest.approx(np.std([one.mean() for one in scores]), rel=0.2)


def test_a_broken_answer_costs_its_own_sample_alone() -> None:
    target = normal(50, 3)
    outputs = target * np.float32(0.9)
    outputs[7, 1] = np.nan
    outputs[9, 2] = np.inf
    assert np.flatnonzero(~np.isfinite(r2(outputs, target, None))).tolist() == [7, 9]


def test_r2_of_one_positive_value_sees_what_cosine_does_not() -> None:
    target = np.abs(normal(500, 1)) + 1
    constant = np.full_like(target, target.mean())
    assert cosine(constant, target, None).mean() == pytest.approx(100)
    assert r2(constant, target, None).mean() == pytest.approx(0, abs=1e-3)


def test_a_small_block_counts_as_much_as_a_large_one() -> None:
    """Boxes in pixels and scores below 1 in one array: broken scores cost half of it."""
    boxes, shares = normal(50, 6, 4) * 300, normal(50, 6, 4) * 0.1
    target = np.concatenate([boxes, shares], axis=2)
    assert channel_axis(target) == 2
    broken = np.concatenate([boxes, shares * 0], axis=2)
    assert r2(broken, target, None).mean() == pytest.approx(50, abs=1)
    first = np.moveaxis(target, 2, 1)
    assert channel_axis(first) == 1
    assert r2(np.moveaxis(broken, 2, 1), first, None).mean() == pytest.approx(50, abs=1)


def test_a_constant_channel_is_compared_on_the_scale_of_the_others() -> None:
    target = normal(100, 3)
    target[:, 1] = 7
    rounded = target.copy()
    rounded[:, 1] += np.float32(1e-6)
    assert r2(rounded, target, None).mean() > 99.5
    constant = np.full((10, 2), 3, np.float32)
    assert r2(constant, constant, None).tolist() == [100] * 10


def test_errors_are_negative_and_their_means_are_the_errors() -> None:
    target, outputs = normal(400, 2), normal(400, 2) + np.float32(0.5)
    assert -mae(outputs, target, None).mean() == pytest.approx(np.abs(outputs - target).mean())
    assert -mse(outputs, target, None).mean() == pytest.approx(np.square(outputs - target).mean())
    relative = np.square(outputs - target) / target.var(axis=0)
    assert -nrmse(outputs, target, None).mean() == pytest.approx(100 * np.sqrt(relative.mean()), rel=1e-5)
    assert nrmse(target, target, None).tolist() == [0] * 400


def test_decibels() -> None:
    target = normal(10, 1000)
    noisy = target + normal(10, 1000, seed=1) * np.float32(0.01)
    assert sqnr(noisy, target, None).mean() == pytest.approx(40, abs=0.3)
    assert sqnr(target, target, None).tolist() == [100] * 10
    assert psnr(noisy, target, None).mean() == pytest.approx(40 + 20 * np.log10(np.ptp(target)), abs=0.3)


def test_labels_that_are_values() -> None:
    assert labels_are_values(normal(5, 1), normal(5))
    assert labels_are_values(normal(5), normal(5, 1))
    assert labels_are_values(normal(5, 2, 1), normal(5, 2))
    assert not labels_are_values(normal(5, 2), normal(5))
    assert not labels_are_values(normal(5), np.full(5, np.nan))


@given(st.floats(-60, 60))
def test_sqnr_of_all_samples(level: float) -> None:
    signal, noise = normal(4000), normal(4000, seed=1)
    noise *= np.linalg.norm(signal) / np.linalg.norm(noise) * 10 ** (-level / 20)
    assert sqnr_db(signal + noise, signal) == pytest.approx(level, abs=0.05)


def test_sqnr_at_the_ends() -> None:
    assert sqnr_db(np.ones(3), np.ones(3)) == np.inf
    assert sqnr_db(np.zeros(3), np.zeros(3)) == np.inf
    assert sqnr_db(np.ones(3), np.zeros(3)) == -300
    assert np.isnan(sqnr_db(np.array([np.nan, 1]), np.ones(2)))
    assert np.isnan(sqnr_db(np.array([np.nan, 1]), np.ones(2), LEAST_ERROR))
    assert sqnr_db(np.full(3, LEAST_ERROR), np.zeros(3), LEAST_ERROR) == np.inf
    assert sqnr_db(np.array([0.0, 2.0]), np.array([1.0, 1.0]), 0.5) == pytest.approx(6.02, abs=0.01)
    assert sqnr_db(np.array([60000, 1], np.float16), np.array([-60000, 1], np.float16)) == pytest.approx(
        -6.02, abs=0.01
    )
