"""The ladder of plans, and the climb that finds the last one within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.metrics import Drop
from edgepack.plan.search import NEIGHBOURS, LayerPlans, Probe, climb, ladder, last_within
from edgepack.types import LayerPlan, LinearLayer, Spectrum


def drop(value: float) -> Drop:
    return Drop("agreement", 100.0, 100.0 - value, 0.1, 1000)


def steps_of(count: int) -> list[LayerPlans]:
    return [(LayerPlan("l", 8, 8, i, 3, 0.0, ""),) for i in range(count)]


def probing(curve: Sequence[float]) -> tuple[Callable[[LayerPlans], Drop], list[int]]:
    seen: list[int] = []

    def probe(plan: LayerPlans) -> Drop:
        (choice,) = plan
        assert choice.rank is not None
        seen.append(choice.rank)
        return drop(curve[choice.rank])

    return probe, seen


@given(st.lists(st.floats(0, 10), min_size=1, max_size=70).map(sorted), st.floats(0, 10))
def test_monotone_curves_are_solved_exactly(curve: list[float], limit: float) -> None:
    probe, seen = probing(curve)
    probes = climb(steps_of(len(curve)), probe, limit)
    within = [i for i, value in enumerate(curve) if 100.0 - (100.0 - value) <= limit]
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
    found = last_within(climb(steps_of(64), probe, limit), limit)
    assert found is not None
    assert curve[found] <= limit
    assert 36 <= found <= 42
    assert len(seen) <= 7 + 2 * NEIGHBOURS


def test_a_lucky_step_beyond_the_knee_does_not_count() -> None:
    """Its own drop is within the budget, what its neighbours say is not."""
    values = {10: 0.1, 11: 0.2, 12: 3.0, 13: 0.4, 14: 3.0}
    probes = {i: Probe(steps_of(20)[i], drop(v)) for i, v in values.items()}
    assert last_within(probes, 0.5) == 11


def test_an_unlucky_step_does_not_hide_better_ones() -> None:
    values = {10: 0.3, 11: 0.55, 12: 0.3, 13: 0.4, 14: 5.0}
    probes = {i: Probe(steps_of(20)[i], drop(v)) for i, v in values.items()}
    assert last_within(probes, 0.5) == 13


@pytest.mark.parametrize(
    ("curve", "expected"), [([9.0, 9.0, 9.0], None), ([0.0, 0.0, 0.0], 2), ([0.0], 0), ([9.0], None)]
)
def test_ends_of_the_ladder(curve: list[float], expected: int | None) -> None:
    probe, _ = probing(curve)
    assert last_within(climb(steps_of(len(curve)), probe, 0.5), 0.5) == expected


def test_no_steps() -> None:
    probe, seen = probing([])
    assert climb([], probe, 0.5) == {}
    assert last_within({}, 0.5) is None
    assert seen == []


def layers_and_spectra(shapes: Sequence[tuple[int, int]], power: float) -> tuple[list[LinearLayer], list[Spectrum]]:
    layers = [LinearLayer(f"l{i}", np.zeros(s, np.float32), None, "Gemm") for i, s in enumerate(shapes)]
    spectra = [
        Spectrum(np.eye(s[0], min(s), dtype=np.float32), np.arange(1, min(s) + 1, dtype=float) ** (-2 * power))
        for s in shapes
    ]
    return layers, spectra


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=4), st.floats(0.3, 3))
def test_ladder_only_goes_down(shapes: list[tuple[int, int]], power: float) -> None:
    steps = ladder(*layers_and_spectra(shapes, power))
    assert 1 <= len(steps) <= 64
    for step in steps:
        assert [p.layer for p in step] == [f"l{i}" for i in range(len(shapes))]
    for a, b in pairwise(steps):
        assert [p.rank for p in a] != [p.rank for p in b]
        assert all(q.weight_parameters <= p.weight_parameters for p, q in zip(a, b, strict=True))
        assert all(p.rank is None or (q.rank is not None and q.rank <= p.rank) for p, q in zip(a, b, strict=True))


def test_ladder_spans_dense_to_the_smallest_rank() -> None:
    steps = ladder(*layers_and_spectra([(256, 256)], 0.5))
    assert steps[0][0].rank is None
    assert steps[-1][0].rank is not None
    assert steps[-1][0].lost_energy_share <= 0.5
