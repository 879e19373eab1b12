from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from allocation import allocators
from allocation.allocators import ALLOCATORS, Layers, latency, loss
from allocation.evbmf import evbmf_rank
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, NBITS4
from edgepack.model.scheme import Scheme
from edgepack.model.types import Candidate
from tests.linear_plans import linear_candidate

SCHEMES = (FP32, INT8_DYNAMIC, NBITS4)


@st.composite
def layer(draw: st.DrawFn) -> list[Candidate]:
    """Dense and a few ranks in some of the schemes, as the planner offers them; not every layer can be factored."""
    ranks = [None, *draw(st.lists(st.sampled_from([8, 16, 24, 32]), unique=True, max_size=3))]
    schemes = draw(st.lists(st.sampled_from(SCHEMES), unique=True, min_size=1, max_size=3))
    value = st.integers(1, 1000)
    return [
        linear_candidate(scheme, rank, draw(value) / 1e6, draw(value), draw(value), draw(value) / 1e6)
        for rank in ranks
        for scheme in schemes
    ]


layers_drawn = st.lists(layer(), min_size=1, max_size=4)
quick = settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])


def between(layers: Layers, share: float) -> float:
    """A latency bound between the fastest plan and the slowest."""
    low, high = (sum(f(c.latency_s for c in candidates) for candidates in layers) for f in (min, max))
    return low + share * (high - low)


@quick
@given(layers_drawn, st.floats(-0.1, 1.0))
def test_every_rule_meets_the_bound_and_none_beats_the_exact_plan(layers: Layers, share: float) -> None:
    bound = between(layers, share)
    exact = ALLOCATORS["exact"](layers, bound)
    for name, allocate in ALLOCATORS.items():
        picks = allocate(layers, bound)
        if picks is None:
            continue
        assert exact is not None, name
        assert len(picks) == len(layers)
        assert latency(layers, picks) <= bound * (1 + 1e-11), name
        assert loss(layers, exact) <= loss(layers, picks) * (1 + 1e-9), name


@quick
@given(layers_drawn, st.floats(-0.1, 1.0))
def test_exact_is_the_best_of_all_plans(layers: Layers, share: float) -> None:
    bound = between(layers, share)
    every = itertools.product(*[range(len(candidates)) for candidates in layers])
    expected = min((loss(layers, p) for p in every if latency(layers, p) <= bound * (1 + 1e-12)), default=None)
    found = ALLOCATORS["exact"](layers, bound)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert loss(layers, found) == pytest.approx(expected, rel=1e-9)


@given(layers_drawn, st.floats(0.0, 1.0))
def test_greedy_and_lagrangian_always_reach_a_bound_that_the_fastest_plan_meets(layers: Layers, share: float) -> None:
    for allocate in (allocators.greedy, allocators.lagrangian):
        assert allocate(layers, between(layers, share)) is not None


@given(layers_drawn, st.floats(0.0, 1.0))
def test_lagrangian_plans_lie_on_the_convex_hull(layers: Layers, share: float) -> None:
    picks = allocators.lagrangian(layers, between(layers, share))
    assert picks is not None
    here = latency(layers, picks), loss(layers, picks)
    others = [
        (latency(layers, p), loss(layers, p))
        for p in itertools.product(*[range(len(candidates)) for candidates in layers])
    ]
    for (t1, l1), (t2, l2) in itertools.combinations(sorted(others), 2):
        if t1 < here[0] < t2:
            line = l1 + (l2 - l1) * (here[0] - t1) / (t2 - t1)
            assert here[1] <= line + 1e-9


def ladder(worth: float) -> list[Candidate]:
    """Dense and four ranks: latency grows with the rank, loss falls, the more the layer is worth."""
    dense = [
        linear_candidate(FP32, None, 0.0, 400, 400, 100e-6),
        linear_candidate(INT8_DYNAMIC, None, 1e-5, 100, 100, 40e-6),
    ]
    return dense + [
        linear_candidate(scheme, rank, worth / rank + extra, rank, rank, rank * 1e-6 * slower)
        for rank in (8, 16, 24, 32)
        for scheme, extra, slower in ((FP32, 0.0, 2.0), (INT8_DYNAMIC, 1e-5, 1.0), (NBITS4, 1.0, 0.5))
    ]


def ranks(layers: Layers, picks: Sequence[int] | None) -> list[tuple[Scheme, int | None]]:
    assert picks is not None
    return [
        (candidates[pick].scheme, candidates[pick].structure.rank)
        for candidates, pick in zip(layers, picks, strict=True)
    ]


def test_uniform_gives_all_layers_one_share_of_rank_in_int8() -> None:
    layers = [ladder(0.01), ladder(1.0)]
    assert ranks(layers, allocators.uniform(layers, 80e-6)) == [(INT8_DYNAMIC, None)] * 2
    assert ranks(layers, allocators.uniform(layers, 79e-6)) == [(INT8_DYNAMIC, 32)] * 2
    assert ranks(layers, allocators.uniform(layers, 33e-6)) == [(INT8_DYNAMIC, 16)] * 2
    assert allocators.uniform(layers, 15e-6) is None


def test_energy_gives_all_layers_one_threshold_in_int8() -> None:
    layers = [ladder(0.01), ladder(0.02)]
    assert ranks(layers, allocators.energy(layers, 25e-6)) == [(INT8_DYNAMIC, 8), (INT8_DYNAMIC, 16)]
    assert ranks(layers, allocators.energy(layers, 80e-6)) == [(INT8_DYNAMIC, None)] * 2


def test_greedy_takes_the_step_that_saves_most_per_loss() -> None:
    layers = [ladder(0.01), ladder(1.0)]
    assert ranks(layers, allocators.greedy(layers, 200e-6)) == [(FP32, None)] * 2
    found = ranks(layers, allocators.greedy(layers, 50e-6))
    assert found[0][1] is not None
    assert found[1] == (INT8_DYNAMIC, None)


def test_a_bound_below_the_fastest_plan_is_out_of_reach_for_all() -> None:
    layers = [ladder(0.01), ladder(1.0)]
    for name, allocate in ALLOCATORS.items():
        assert allocate(layers, 1e-6) is None, name
    assert all(math.isfinite(loss(layers, allocate(layers, 1.0) or ())) for allocate in ALLOCATORS.values())


@pytest.mark.parametrize("shape", [(40, 200), (200, 40), (64, 64)])
@pytest.mark.parametrize("rank", [0, 3, 12])
def test_evbmf_finds_the_rank_under_noise(shape: tuple[int, int], rank: int) -> None:
    rng = np.random.default_rng(rank)
    planted = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))
    assert evbmf_rank(planted + 0.3 * rng.normal(size=shape)) == rank
