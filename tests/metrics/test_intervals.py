"""Bounds hold as often as they say: checked by drawing from known populations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from edgepack.metrics.intervals import of_counts, of_mean, of_rare


@pytest.mark.parametrize(("worse", "better"), [(0.01, 0.005), (0.05, 0.05), (0.005, 0.0), (0.2, 0.05)])
@pytest.mark.parametrize("count", [100, 1000])
def test_counts(worse: float, better: float, count: int) -> None:
    rng = np.random.default_rng(0)
    draws = rng.multinomial(count, [worse, better, 1 - worse - better], 1500)
    unique, times = np.unique(draws[:, :2], axis=0, return_counts=True)
    holds = [of_counts(int(b), int(c), count, 0.9) >= worse - better for b, c in unique]
    held = float(np.average(holds, weights=times))
    assert held >= 0.85
    if worse * count >= 10:
        assert held <= 0.95


def test_counts_by_hand() -> None:
    """Nothing for the better: Wilson's bound; no change at all: z² / (n + z²)."""
    z = norm.ppf(0.9)
    assert of_counts(0, 0, 500, 0.9) == pytest.approx(z**2 / (500 + z**2), rel=1e-6)
    middle, spread = 0.02 + z**2 / 1000, z * np.sqrt(0.02 * 0.98 / 500 + z**2 / (4 * 500**2))
    assert of_counts(10, 0, 500, 0.9) == pytest.approx((middle + spread) / (1 + z**2 / 500), rel=1e-6)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(80, 5000))
def test_counts_grow_with_what_is_worse(worse: int, better: int, count: int) -> None:
    bound = of_counts(worse, better, count, 0.9)
    assert (worse - better) / count < bound <= 1
    assert of_counts(worse + 1, better, count, 0.9) > bound
    assert of_counts(worse, better, count, 0.95) > bound


@pytest.mark.parametrize(("worse", "better", "expected"), [(0, 0, 0.0), (3, 1, 0.004), (1, 3, -0.004), (500, 0, 1.0)])
def test_half_of_the_confidence_is_what_was_seen(worse: int, better: int, expected: float) -> None:
    assert of_counts(worse, better, 500, 0.5) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("rate", [0.002, 0.02, 0.2])
def test_rare_differences(rate: float) -> None:
    rng = np.random.default_rng(1)
    population = np.where(rng.random(200_000) < rate, rng.random(200_000) * 0.4, 0)
    true = population.mean()
    draws = [of_rare(rng.choice(population, 1000), 0.9) for _ in range(600)]
    held = np.mean(np.array(draws) >= true)
    assert held >= 0.87
    assert np.median(draws) < true + 4 * population.std() / 1000**0.5 + 0.0012


def test_nothing_seen_is_bounded_by_the_rule_of_three() -> None:
    """Three of 1,000, each at half of what one can cost."""
    assert of_rare(np.zeros(1000), 0.95) == pytest.approx(1.5 / 1000, rel=0.01)


@pytest.mark.parametrize("kind", ["normal", "exponential", "rare"])
def test_means(kind: str) -> None:
    rng = np.random.default_rng(2)
    population = {
        "normal": rng.standard_normal(100_000),
        "exponential": rng.exponential(1.0, 100_000),
        "rare": np.where(rng.random(100_000) < 0.1, 1.0, 0.0),
    }[kind]
    bounds = np.array([of_mean(rng.choice(population, 200), 0.9) for _ in range(1500)])
    assert 0.86 <= np.mean(bounds >= population.mean()) <= 0.95


def test_one_sample_bounds_nothing() -> None:
    assert of_mean(np.array([1.0]), 0.9) == np.inf
    assert of_mean(np.full(10, 2.0), 0.9) == 2.0
