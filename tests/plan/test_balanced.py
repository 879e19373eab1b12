"""Plans of least latency × bytes: better than the corners, and near the best of all plans."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgepack.backends.onnx.schemes import FP32
from edgepack.model.structure import DENSE
from edgepack.model.types import Candidate
from edgepack.plan.solve import Bounds, Infeasible, Solution, balanced, smallest, solve

BESIDE_S, BESIDE_BYTES = 2e-6, 900


def candidate(loss: float, size_bytes: int, latency_s: float) -> Candidate:
    return Candidate(FP32, DENSE, (), loss, size_bytes, size_bytes, latency_s, "test")


def drawn(seed: int, layers: int, rows: int) -> list[list[Candidate]]:
    """Larger ones lose less; some are fast for their size, some slow."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(100, 5000, (layers, rows))
    latencies = sizes * rng.uniform(0.5e-9, 3e-9, (layers, rows))
    losses = rng.uniform(0.5, 2, (layers, rows)) / sizes
    return [
        [candidate(float(losses[i, j]), int(sizes[i, j]), float(latencies[i, j])) for j in range(rows)]
        for i in range(layers)
    ]


def product(found: Solution) -> float:
    return (found.latency_s + BESIDE_S) * (found.size_bytes + BESIDE_BYTES)


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 6), st.floats(1, 8))
def test_no_corner_is_better_and_no_plan_much(seed: int, layers: int, rows: int, room: float) -> None:
    layer_candidates = drawn(seed, layers, rows)
    least = sum(min(one.loss for one in candidates) for candidates in layer_candidates)
    bounds = Bounds(loss=least * room)
    found = balanced(layer_candidates, bounds, beside_s=BESIDE_S, beside_bytes=BESIDE_BYTES)
    assert isinstance(found, Solution)
    assert found.loss <= least * room * (1 + 1e-9)
    for corner in (solve(layer_candidates, bounds), smallest(layer_candidates, bounds)):
        assert isinstance(corner, Solution)
        assert product(found) <= product(corner) * (1 + 1e-9)
    every = [
        (math.fsum(one.latency_s for one in plan) + BESIDE_S) * (sum(one.size_bytes for one in plan) + BESIDE_BYTES)
        for plan in itertools.product(*layer_candidates)
        if math.fsum(one.loss for one in plan) <= least * room
    ]
    assert product(found) <= min(every, default=math.inf) * 1.25


def test_what_stands_beside_the_layers_counts() -> None:
    """Twice as fast at 1.5 times the bytes pays alone, and not where the time lies elsewhere."""
    layer_candidates = [[candidate(0, 1000, 2e-6), candidate(0, 1500, 1e-6)]]
    alone = balanced(layer_candidates, Bounds())
    beside = balanced(layer_candidates, Bounds(), beside_s=1e-3)
    assert isinstance(alone, Solution)
    assert isinstance(beside, Solution)
    assert (alone.chosen, beside.chosen) == ((1,), (0,))


def test_bounds_that_nothing_meets() -> None:
    assert isinstance(balanced([[candidate(1.0, 10, 1e-6)]], Bounds(loss=0.5)), Infeasible)
