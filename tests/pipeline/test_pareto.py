"""The front of plans: distinct, monotone, within their bounds, each layer with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, product
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.backends.onnx.schemes import FP32
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.types import Aim, Candidate, Spectrum
from edgepack.pipeline import pareto
from edgepack.pipeline.candidates import LayerCandidates
from edgepack.pipeline.limits import Rest
from edgepack.pipeline.pareto import STEPS, TIE, Corner, Step, corners, make_front, nearest, worth
from edgepack.pipeline.prepare import Prepared
from edgepack.plan.solve import Bounds, Infeasible
from edgepack.workers import workers
from edgepack.workers.local import LocalProcesses
from tests.linear_plans import linear_candidate

SPECTRUM = Spectrum(np.eye(4, dtype=np.float32), np.array([4.0, 3.0, 2.0, 1.0]))
NOTHING_BESIDE = Rest(0, 0, 0.0)


def candidate(loss: float, size: int, ram: int, latency: float, rank: int | None = None) -> Candidate:
    return linear_candidate(FP32, rank, loss, size, ram, latency)


def all_candidates(*layers: Sequence[Candidate]) -> list[LayerCandidates]:
    weight = np.zeros((4, 4), np.float32)
    return [LayerCandidates(linear_layer(f"l{i}", weight, None), tuple(own), None) for i, own in enumerate(layers)]


def alike(layers: Sequence[LayerCandidates]) -> dict[str, Spectrum]:
    return {layer_candidates.layer.name: SPECTRUM for layer_candidates in layers}


def front(
    layers: Sequence[LayerCandidates], bounds: Bounds, spectra: Mapping[str, Spectrum] | None = None
) -> tuple[Step, ...]:
    steps = make_front(layers, spectra or alike(layers), bounds, NOTHING_BESIDE)
    assert not isinstance(steps, Infeasible), steps
    return steps


figures = st.builds(
    candidate,
    st.integers(0, 1000).map(lambda n: n / 100),
    st.integers(1, 1000),
    st.integers(1, 1000),
    st.integers(1, 1000).map(lambda n: n / 1000),
    st.sampled_from([None, 1, 2, 3]),
)
instances = st.lists(st.lists(figures, min_size=1, max_size=4), min_size=1, max_size=3)
limit = st.one_of(st.none(), st.floats(0.01, 1))


def bounds_of(layers: Sequence[Sequence[Candidate]], size: float | None, ram: float | None, latency: float | None):
    """Bounds between nothing and the sum of the largest."""

    def scaled(share: float | None, name: str) -> float | None:
        most = sum(max(getattr(one, name) for one in own) for own in layers)
        return None if share is None else share * most

    return Bounds(None, scaled(size, "size_bytes"), scaled(ram, "ram_bytes"), scaled(latency, "latency_s"))


def meets(step: Step, bounds: Bounds) -> bool:
    return all(
        getattr(bounds, name) is None or getattr(step, name) <= getattr(bounds, name) * (1 + 1e-9)
        for name in ("size_bytes", "ram_bytes", "latency_s")
    )


@settings(max_examples=15)
@given(instances, limit, limit, limit)
def test_steps_against_all_plans(
    layers: list[list[Candidate]], size: float | None, ram: float | None, latency: float | None
) -> None:
    bounds = bounds_of(layers, size, ram, latency)
    made = all_candidates(*layers)
    steps = make_front(made, alike(made), bounds, NOTHING_BESIDE)
    plans = [Step((), *(sum(map(float, column)) for column in _columns(p))) for p in product(*layers)]  # type: ignore[arg-type]
    fitting = [plan for plan in plans if meets(plan, bounds)]
    if isinstance(steps, Infeasible):
        assert not any(_clearly(plan, bounds) for plan in plans)
        return
    assert all(meets(step, bounds) for step in steps)
    assert len(steps) <= STEPS + 3
    plans_taken = [tuple(layer.predicted for layer in step.layers) for step in steps]
    assert len(set(plans_taken)) == len(steps), "steps are distinct"
    assert [step.loss for step in steps] == sorted(step.loss for step in steps)
    assert steps[0].loss == pytest.approx(min(plan.loss for plan in fitting), rel=1e-6, abs=1e-9)
    fastest = min(plan.latency_s for plan in fitting)
    assert fastest * (1 - 1e-9) <= min(step.latency_s for step in steps) <= fastest * (1 + TIE + 1e-6)
    for step in steps:
        least = min(p.latency_s for p in fitting if p.loss <= step.loss * (1 + 1e-9) + 1e-12)
        assert step.latency_s <= max(least * (1 + TIE + 1e-6), steps[0].latency_s), "as fast as its loss allows"


def _columns(plan: Sequence[Candidate]) -> list[list[float]]:
    return [[getattr(one, name) for one in plan] for name in ("loss", "size_bytes", "ram_bytes", "latency_s")]


def _clearly(step: Step, bounds: Bounds) -> bool:
    """Within the bounds with room to spare."""
    drawn = {
        name: None if getattr(bounds, name) is None else getattr(bounds, name) * (1 - 1e-9)
        for name in ("size_bytes", "ram_bytes", "latency_s")
    }
    return meets(step, Bounds(None, *drawn.values()))


@settings(max_examples=15)
@given(instances, *[st.one_of(st.none(), st.floats(0.0, 0.6))] * 3)
def test_the_nearest_plan_is_within_all_other_bounds_and_least_in_one(
    layers: list[list[Candidate]], size: float | None, ram: float | None, latency: float | None
) -> None:
    bounds = bounds_of(layers, size, ram, latency)
    made = all_candidates(*layers)
    spectra = alike(made)
    why = make_front(made, spectra, bounds, NOTHING_BESIDE)
    if not isinstance(why, Infeasible):
        return
    step = nearest(made, spectra, bounds, why)
    assert len(step.layers) == len(layers)
    names = ("size_bytes", "ram_bytes", "latency_s")
    unmet = [name for name in names if not meets(step, replace(Bounds(), **{name: getattr(bounds, name)}))]
    assert unmet, "no plan meets them all"
    if any(value is not None for value in why.least.values()):
        (only,) = unmet
        assert getattr(step, only) == pytest.approx(why.least[only], rel=1e-6)  # type: ignore[index]


def test_bounds_that_only_conflict_in_pairs() -> None:
    """Each bound can be met, but no two of them: there still is a plan to show."""
    made = all_candidates([candidate(0, 1, 9, 9.0), candidate(0, 9, 1, 9.0), candidate(0, 9, 9, 1.0)])
    bounds = Bounds(None, 5, 5, 5.0)
    why = make_front(made, alike(made), bounds, NOTHING_BESIDE)
    assert isinstance(why, Infeasible)
    step = nearest(made, alike(made), bounds, why)
    assert sum([step.size_bytes <= 5, step.ram_bytes <= 5, step.latency_s <= 5]) == 1


def test_infeasible_bounds_say_what_is_least() -> None:
    made = all_candidates([candidate(0, 100, 10, 3.0), candidate(1, 50, 5, 1.0)])
    why = make_front(made, alike(made), Bounds(size_bytes=40, latency_s=2.0), NOTHING_BESIDE)
    assert isinstance(why, Infeasible)
    assert why.alone == ("size_bytes",)
    assert why.least["size_bytes"] == 50
    step = nearest(made, alike(made), Bounds(size_bytes=40, latency_s=2.0), why)
    assert (step.size_bytes, step.latency_s) == (50, 1.0)


def test_of_equally_fast_plans_the_smaller_one_is_taken() -> None:
    made = all_candidates(
        [candidate(0.0, 100, 100, 1.0), candidate(0.0, 50, 50, 1 + TIE / 2), candidate(0.0, 10, 10, 1.2)]
    )
    (step,) = front(made, Bounds())
    assert step.size_bytes == 50


def test_what_stands_beside_the_layers_counts_in_a_tie() -> None:
    """Of a whole inference that takes a hundred times as long, a fifth of the layers' time is nothing."""
    made = all_candidates([candidate(0.0, 100, 100, 1.0), candidate(0.0, 10, 10, 1.2)])
    for beside_s, size in ((0.0, 100), (100.0, 10)):
        steps = make_front(made, alike(made), Bounds(), Rest(0, 0, beside_s))
        assert not isinstance(steps, Infeasible)
        assert [step.size_bytes for step in steps] == [size]


@settings(max_examples=10)
@given(instances)
def test_the_smallest_plans_against_all_plans(layers: list[list[Candidate]]) -> None:
    made = all_candidates(*layers)
    steps = make_front(made, alike(made), Bounds(), NOTHING_BESIDE, aim="size")
    assert not isinstance(steps, Infeasible)
    plans = [_columns(plan) for plan in product(*layers)]
    assert steps[-1].size_bytes == min(sum(plan[1]) for plan in plans)
    for step in steps:
        least = min(sum(plan[1]) for plan in plans if sum(plan[0]) <= step.loss * (1 + 1e-9) + 1e-12)
        assert step.size_bytes == least or step is steps[0]


BESIDE = Rest(100, 0, 0.1)


@settings(max_examples=15)
@given(instances, st.sampled_from(get_args(Aim)), limit)
def test_corners_against_all_plans(layers: list[list[Candidate]], aim: Aim, size: float | None) -> None:
    """Each is no worse in its aim than any plan that loses no more than the chosen one, and better than that one."""
    made, bounds = all_candidates(*layers), bounds_of(layers, size, None, None)
    steps = make_front(made, alike(made), bounds, BESIDE, aim=aim)
    if isinstance(steps, Infeasible):
        return
    chosen = steps[len(steps) // 2]
    own, *others = corners(made, chosen.layers, bounds, BESIDE, aim)
    assert own == Corner(aim, 100 + chosen.size_bytes, pytest.approx(0.1 + chosen.latency_s))
    assert aim not in {corner.aim for corner in others}
    plans = [_columns(plan) for plan in product(*layers)]
    sums = [(sum(loss), sum(sizes) + 100, sum(latencies) + 0.1) for loss, sizes, _, latencies in plans]
    most = np.inf if bounds.size_bytes is None else bounds.size_bytes + 100
    allowed = [one for one in sums if one[0] <= chosen.loss * (1 + 1e-9) + 1e-12 and one[1] <= most]
    for corner in others:
        gained = worth(corner.aim, corner.size_bytes, corner.latency_s)
        assert gained < worth(corner.aim, own.size_bytes, own.latency_s)
        if corner.aim != "balanced":  # which is where no other plan is better at its own exchange rate
            assert min(worth(corner.aim, *one[1:]) for one in allowed)[0] >= gained[0] / (1 + TIE) * (1 - 1e-9)


def test_a_plan_with_no_better_corner_has_its_own_alone() -> None:
    made = all_candidates([candidate(0.0, 10, 10, 1.0), candidate(0.0, 20, 20, 2.0)])
    (step,) = front(made, Bounds())
    for aim in get_args(Aim):
        assert corners(made, step.layers, Bounds(), BESIDE, aim) == (Corner(aim, 110, 1.1),)


def test_of_a_plan_that_was_repaired_nothing_is_known() -> None:
    made = all_candidates([candidate(0.0, 10, 10, 1.0), candidate(0.0, 20, 20, 0.5)])
    (step,) = front(made, Bounds())
    repaired = tuple(replace(layer, predicted=None) for layer in step.layers)
    assert corners(made, repaired, Bounds(), BESIDE, "latency") == ()


def test_a_real_model_has_steps_with_reasons(ready: Prepared) -> None:
    steps = front(ready.all_candidates["onnx"], Bounds(), ready.evaluator.spectra)
    assert len(steps) >= 5
    for before, after in pairwise(steps):
        assert before.loss < after.loss
        assert before.latency_s > after.latency_s or before.size_bytes > after.size_bytes
        assert before.choices != after.choices
    for step in steps:
        assert [layer.layer for layer in step.layers] == ["w1", "w2", "w3"]
        for layer, layer_candidates in zip(step.layers, ready.all_candidates["onnx"], strict=True):
            assert layer.predicted in layer_candidates.candidates
            assert (layer.scheme, layer.rank) == (layer.predicted.scheme, layer.predicted.structure.rank)  # type: ignore[union-attr]
            assert layer.reason
            assert layer.reason.isprintable()
            assert layer.others
            assert layer.lost_energy_share == 0 if layer.rank is None else 0 < layer.lost_energy_share < 1
        assert "break-even rank is 7" in step.layers[2].reason
        assert step.latency_s == pytest.approx(sum(layer.predicted.latency_s for layer in step.layers))  # type: ignore[union-attr]
        assert step.size_bytes == sum(layer.predicted.size_bytes for layer in step.layers)  # type: ignore[union-attr]
    assert any(layer.rank is not None for layer in steps[-1].layers)
    assert all(layer.rank is None for layer in steps[0].layers)


def test_a_bound_on_bytes_moves_the_whole_ladder(ready: Prepared) -> None:
    loose, tight = (
        front(ready.all_candidates["onnx"], bounds, ready.evaluator.spectra)
        for bounds in (Bounds(), Bounds(size_bytes=150_000))
    )
    assert max(step.size_bytes for step in tight) <= 150_000 < max(step.size_bytes for step in loose)
    assert tight[0].loss > loose[0].loss


@pytest.mark.parametrize("aim", get_args(Aim))
def test_plans_that_other_processes_find_are_the_same(aim: Aim, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    layers = [[candidate(*rng.integers(1, 1000, 4).tolist()) for _ in range(12)] for _ in range(6)]
    made = all_candidates(*layers)
    alone = make_front(made, alike(made), Bounds(), BESIDE, aim=aim)
    monkeypatch.setattr(pareto, "CANDIDATE_FLOPS", 1e12)
    with workers() as crew:
        spread = make_front(made, alike(made), Bounds(), BESIDE, aim=aim, workers=crew)
        assert isinstance(crew, LocalProcesses)
        assert (len(crew.processes) > 1) == (crew.slots > 1)
    assert spread == alone
    assert not isinstance(alone, Infeasible)
    assert len(alone) > 3
