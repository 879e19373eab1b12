"""The front of plans, and the climb that finds the last one within a budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.metrics.drop import Drop
from edgepack.plan.bisect import NEIGHBOURS, UNDECIDED_STEPS, climb, within


def drop(value: float, error: float = 0.0) -> Drop:
    return Drop("agreement", 100.0, 100.0 - value, value, value + 1.282 * error, error, 1000)


def probing(curve: Sequence[float], error: float = 0.0) -> tuple[Callable[[int], Drop], list[int]]:
    seen: list[int] = []

    def probe(step: int) -> Drop:
        seen.append(step)
        return drop(curve[step], error)

    return probe, seen


def last_within(drops: dict[int, Drop], limit: float) -> int | None:
    return max(within(drops, limit), default=None)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=70).map(sorted), st.floats(0, 10))
def test_monotone_curves_are_solved_exactly(curve: list[float], limit: float) -> None:
    probe, seen = probing(curve)
    probes = climb(len(curve), probe, limit)
    within = [i for i, value in enumerate(curve) if value <= limit]
    assert last_within(probes, limit) == (max(within) if within else None)
    assert len(seen) == len(set(seen)), "a step was emitted twice"
    assert len(seen) <= math.ceil(math.log2(len(curve) + 1)) + 2 * NEIGHBOURS
    assert list(probes) == sorted(probes)


@pytest.mark.parametrize("seed", range(12))
def test_noisy_curves_end_near_the_knee_and_within_the_budget(seed: int) -> None:
    """A knee at step 40 of 64 under noise as on a few hundred samples."""
    rng = np.random.default_rng(seed)
    index = np.arange(64)
    true = np.where(index < 40, 0.02 * index / 40, 0.35 * (index - 39))
    curve = true + 0.1 * rng.standard_normal(64)
    probe, seen = probing(curve)
    limit = 0.5
    found = last_within(climb(64, probe, limit), limit)
    assert found is not None
    assert curve[found] <= limit
    assert 36 <= found <= 42
    assert len(seen) <= 7 + 2 * NEIGHBOURS


def test_a_lucky_step_beyond_the_knee_does_not_count() -> None:
    """Its own drop is within the budget, what its neighbours say is not."""
    values = {10: 0.1, 11: 0.2, 12: 3.0, 13: 0.4, 14: 3.0}
    probes = {i: drop(v) for i, v in values.items()}
    assert last_within(probes, 0.5) == 11


def test_an_unlucky_step_does_not_hide_better_ones() -> None:
    values = {10: 0.3, 11: 0.55, 12: 0.3, 13: 0.4, 14: 5.0}
    probes = {i: drop(v) for i, v in values.items()}
    assert last_within(probes, 0.5) == 13


@pytest.mark.parametrize(
    ("curve", "expected"), [([9.0, 9.0, 9.0], None), ([0.0, 0.0, 0.0], 2), ([0.0], 0), ([9.0], None)]
)
def test_ends_of_the_ladder(curve: list[float], expected: int | None) -> None:
    probe, _ = probing(curve)
    assert last_within(climb(len(curve), probe, 0.5), 0.5) == expected


def test_no_steps() -> None:
    probe, seen = probing([])
    assert climb(0, probe, 0.5) == {}
    assert last_within({}, 0.5) is None
    assert seen == []


@given(st.lists(st.floats(0, 10), min_size=1, max_size=70).map(sorted), st.floats(0, 10), st.integers(-5, 80))
def test_a_start_changes_the_path_and_not_the_answer(curve: list[float], limit: float, start: int) -> None:
    probe, seen = probing(curve)
    found = climb(len(curve), probe, limit, start=start)
    within_budget = [i for i, value in enumerate(curve) if value <= limit]
    assert last_within(found, limit) == max(within_budget, default=None)
    assert seen[0] == min(max(start, 0), len(curve) - 1)
    assert len(seen) == len(set(seen))


def test_a_good_start_saves_probes() -> None:
    curve = [0.0] * 40 + [9.0] * 24
    near, near_seen = probing(curve)
    climb(64, near, 0.5, start=38)
    blind, blind_seen = probing(curve)
    climb(64, blind, 0.5)
    assert len(near_seen) < len(blind_seen)


def test_undecided_neighbours_are_looked_at_further() -> None:
    curve = [0.1 * step for step in range(64)]  # the budget lies at step 5, two standard errors are 20 steps
    sure, seen_sure = probing(curve)
    unsure, seen_unsure = probing(curve, error=1.0)
    climb(64, sure, 0.5)
    climb(64, unsure, 0.5)
    assert set(seen_sure) < set(seen_unsure)
    assert max(seen_unsure) >= 6 + NEIGHBOURS
    assert len(seen_unsure) <= 7 + 2 * (NEIGHBOURS + UNDECIDED_STEPS)


def test_no_probe_is_begun_after_the_deadline_but_there_is_one() -> None:
    probe, seen = probing([0.0] * 64)
    found = climb(64, probe, 0.5, deadline_s=time.monotonic() - 1)
    assert list(found) == seen == [32]


def test_fastest_first_is_for_the_caller() -> None:
    assert within({0: drop(0.0), 3: drop(0.2), 7: drop(0.4), 8: drop(2.0)}, 0.5) == [0, 3, 7]
