"""Layers that could be together: the choice between that and each by itself, against all plans there are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepack.model.types import Aim, Candidate
from edgepack.plan import knapsack
from edgepack.plan.solve import (
    QUANTITIES,
    Bounds,
    Infeasible,
    Quantity,
    Solution,
    Together,
    balanced,
    least_loss,
    smallest,
    solve,
)
from tests.plan.drawn_candidates import Sums, candidate, coarse, fine, limits

Layers = Sequence[Sequence[Candidate]]
Problem = tuple[Layers, tuple[Together, ...], Bounds]


def plans(layers: Layers, groups: Sequence[Together]) -> dict[tuple[int, ...], Sums]:
    """The exact sums of every plan, by what `Solution.chosen` says of it."""
    found = {}
    for ways in itertools.product(*(range(len(group.candidates) + 1) for group in groups)):
        together = [g for g, way in zip(groups, ways, strict=True) if way < len(g.candidates)]
        settled = {member for group in together for member in group.members}
        own = [[len(layer)] if i in settled else range(len(layer)) for i, layer in enumerate(layers)]
        for picks in itertools.product(*own):
            chosen = [layer[pick] for layer, pick in zip(layers, picks, strict=True) if pick < len(layer)]
            chosen += [g.candidates[way] for g, way in zip(groups, ways, strict=True) if way < len(g.candidates)]
            figures = [{q: Fraction(getattr(one, q)) for q in QUANTITIES} for one in chosen]
            found[(*picks, *ways)] = {q: sum((one[q] for one in figures), Fraction(0)) for q in QUANTITIES}
    return found


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Up to five layers, one group or two among them, and bounds at, above and below the sums of plans."""
    kind = draw(st.sampled_from([coarse, fine]))
    layers = draw(st.lists(st.lists(kind, min_size=1, max_size=3), min_size=2, max_size=5))
    order = draw(st.permutations(range(len(layers))))
    cut = draw(st.integers(2, len(layers)))
    members = [order[:cut]] + ([order[cut:]] if len(order) - cut > 1 else [])
    groups = tuple(Together(tuple(sorted(m)), draw(st.lists(kind, min_size=1, max_size=3))) for m in members)
    every = list(plans(layers, groups).values())
    bounds: dict[str, float] = {}
    for quantity in QUANTITIES:
        if draw(st.booleans()):
            sums = draw(st.sampled_from(every))
            bounds[quantity] = float(sums[quantity]) * draw(st.sampled_from([1, 1, 1.0001, 0.9]))
    return layers, groups, Bounds(**bounds)


quick = settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(params=[0, knapsack.ENUMERATED], ids=["highs", "enumerated"], scope="module")
def enumerated(request: pytest.FixtureRequest) -> Iterator[None]:
    """Small instances by either way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "ENUMERATED", request.param)
        yield


@pytest.mark.usefixtures("enumerated")
@pytest.mark.parametrize("aim", [*get_args(Aim), "loss"])
@quick
@given(problems())
def test_the_choice_is_what_brute_force_finds(aim: Aim | str, problem: Problem) -> None:
    layers, groups, bounds = problem
    every, bound = plans(layers, groups), limits(bounds)
    feasible = {picks: sums for picks, sums in every.items() if all(sums[q] <= v for q, v in bound.items())}
    by_aim = {"latency": solve, "size": smallest, "balanced": balanced, "loss": least_loss}
    found = by_aim[aim](layers, bounds, groups)
    if not feasible:
        assert isinstance(found, Infeasible)
        for quantity, least in found.least.items():
            others = [s for s in every.values() if all(s[q] <= v for q, v in bound.items() if q != quantity)]
            assert (least is None) == (not others)
            assert least is None or least == pytest.approx(float(min(s[quantity] for s in others)), rel=1e-9)
        alone = {q for q, v in bound.items() if min(s[q] for s in every.values()) > v}
        assert set(found.alone) == alone
        return
    assert isinstance(found, Solution)
    sums = every[found.chosen]  # a plan, with nothing of its own for a layer that is together with others
    assert found.chosen in feasible
    for quantity in QUANTITIES:
        assert getattr(found, quantity) == pytest.approx(float(sums[quantity]), rel=1e-9, abs=1e-18)
    if aim == "balanced":
        return
    quantity: Quantity = {"latency": "latency_s", "size": "size_bytes", "loss": "loss"}[aim]
    best = min(one[quantity] for one in feasible.values())
    assert float(sums[quantity]) == pytest.approx(float(best), rel=1e-9, abs=1e-18)


def test_many_layers_with_groups_are_solved() -> None:
    """As many as a transformer has: together pays in every block."""
    single = [candidate(1.0 / rank, 100 * rank, 100 * rank, rank * 1e-6) for rank in range(1, 20)]
    joint = [candidate(2.0 / rank, 170 * rank, 170 * rank, rank * 2e-6) for rank in range(1, 20)]
    groups = tuple(Together((3 * block, 3 * block + 1, 3 * block + 2), joint) for block in range(12))
    layers = [single] * 36
    bounds = Bounds(loss=12.0)
    plain, found = smallest(layers, bounds), smallest(layers, bounds, groups)
    assert isinstance(plain, Solution)
    assert isinstance(found, Solution)
    assert found.size_bytes < 0.6 * plain.size_bytes
    assert found.loss <= bounds.loss
    assert all(pick < len(joint) for pick in found.chosen[36:])
    assert set(found.chosen[:36]) == {len(single)}
