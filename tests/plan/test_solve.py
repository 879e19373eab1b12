from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepack.model.types import Array, Candidate
from edgepack.plan import knapsack
from edgepack.plan.knapsack import undominated
from edgepack.plan.solve import QUANTITIES, ROUNDING, Bounds, Infeasible, Solution, least_loss, solve
from tests.plan.drawn_candidates import Sums, candidate, coarse, fine, limits

Layers = Sequence[Sequence[Candidate]]


def plans(layers: Layers) -> list[Sums]:
    """The exact sums of every plan."""
    return [
        {q: sum((Fraction(getattr(c, q)) for c in picked), Fraction(0)) for q in QUANTITIES}
        for picked in itertools.product(*layers)
    ]


def meeting(found: Sequence[Sums], bounds: Sums) -> list[Sums]:
    return [sums for sums in found if all(sums[q] <= v for q, v in bounds.items())]


separate = st.sampled_from([coarse, fine]).flatmap(
    lambda kind: st.lists(st.lists(kind, min_size=1, max_size=4), min_size=1, max_size=4)
)
equal = st.tuples(st.lists(coarse, min_size=1, max_size=4), st.integers(1, 4)).map(lambda drawn: [drawn[0]] * drawn[1])


@st.composite
def problems(draw: st.DrawFn) -> tuple[Layers, Bounds]:
    """Layers, and bounds that lie at, just above and below the sums of plans."""
    layers = draw(st.one_of(separate, equal))
    bounds: dict[str, float] = {}
    for quantity in QUANTITIES:
        if draw(st.booleans()):
            picked = [draw(st.sampled_from(layer)) for layer in layers]
            bounds[quantity] = sum(getattr(c, quantity) for c in picked) * draw(st.sampled_from([1, 1, 1.0001, 0.9]))
    return layers, Bounds(**bounds)


quick = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(params=[0, knapsack.ENUMERATED], ids=["highs", "enumerated"], scope="module")
def enumerated(request: pytest.FixtureRequest) -> Iterator[None]:
    """Small instances by either way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "ENUMERATED", request.param)
        yield


@pytest.mark.usefixtures("enumerated")
@quick
@given(problems(), st.sampled_from([0.0, 0.0, 0.01, 0.3]), st.sampled_from([0.0, 0.0, 1e-3, 5.0]))
def test_solve_finds_what_brute_force_finds(problem: tuple[Layers, Bounds], tie: float, beside_s: float) -> None:
    layers, bounds = problem
    every, bound = plans(layers), limits(bounds)
    feasible, found = meeting(every, bound), solve(layers, bounds, tie=tie, beside_s=beside_s)
    if not feasible:
        assert isinstance(found, Infeasible)
        assert_least(found, every, bound)
        return
    assert isinstance(found, Solution)
    fastest = min(sums["latency_s"] for sums in feasible)
    slowest = fastest + Fraction(tie) * (fastest + Fraction(beside_s))
    tied = [s for s in feasible if s["latency_s"] <= slowest * (1 + Fraction(ROUNDING))]
    smallest = min(sums["size_bytes"] for sums in tied)
    best = min(sums["loss"] for sums in tied if sums["size_bytes"] == smallest)
    assert found.size_bytes == smallest
    assert found.loss == pytest.approx(float(best), rel=1e-9)
    picked = plans([[layer[index]] for layer, index in zip(layers, found.chosen, strict=True)])[0]
    assert meeting([picked], bound)
    assert picked["latency_s"] <= slowest * (1 + 2 * Fraction(ROUNDING))
    assert {q: getattr(found, q) for q in QUANTITIES} == pytest.approx({q: float(v) for q, v in picked.items()})


def assert_least(found: Infeasible, every: Sequence[Sums], bound: Sums) -> None:
    assert set(found.least) == set(bound)
    for quantity, least in found.least.items():
        others = meeting(every, {q: v for q, v in bound.items() if q != quantity})
        expected = min((sums[quantity] for sums in others), default=None)
        assert (least is None) == (expected is None)
        if least is not None and expected is not None:
            assert least == pytest.approx(float(expected), rel=1e-9)
    assert set(found.alone) == {q for q, v in bound.items() if all(sums[q] > v for sums in every)}


@pytest.mark.usefixtures("enumerated")
@quick
@given(problems())
def test_least_loss_finds_what_brute_force_finds(problem: tuple[Layers, Bounds]) -> None:
    layers, bounds = problem
    feasible, found = meeting(plans(layers), limits(bounds)), least_loss(layers, bounds)
    assert isinstance(found, Solution if feasible else Infeasible)
    if isinstance(found, Solution):
        assert found.loss == pytest.approx(float(min(sums["loss"] for sums in feasible)), rel=1e-9)


@given(st.lists(coarse, max_size=12))
def test_the_undominated_are_what_nothing_else_matches(candidates: list[Candidate]) -> None:
    figures = [tuple(getattr(c, q) for q in QUANTITIES) for c in candidates]

    def beats(one: int, other: int) -> bool:
        all_ = all(a <= b for a, b in zip(figures[one], figures[other], strict=True))
        return all_ and (figures[one] != figures[other] or one < other)

    expected = [i for i in range(len(figures)) if not any(beats(j, i) for j in range(len(figures)) if j != i)]
    assert list(undominated(np.array(figures, np.float64).reshape(-1, len(QUANTITIES)))) == expected


def test_a_plan_meets_the_bounds_that_it_adds_up_to() -> None:
    layers = [[candidate(n / 10, n, n, n / 10), candidate(9.0, 9, 9, 9.0)] for n in (1, 2, 3)]
    forward = sum(layer[0].latency_s for layer in layers)
    backward = sum(layer[0].latency_s for layer in reversed(layers))
    assert forward != backward
    for bound in (forward, backward):
        assert isinstance(solve(layers, Bounds(loss=bound, latency_s=bound, size_bytes=6, ram_bytes=6)), Solution)


def test_infeasible_says_how_far_off() -> None:
    layers = [[candidate(0.0, 100, 100, 5e-3), candidate(0.2, 50, 50, 2e-3)]] * 3
    found = solve(layers, Bounds(loss=0.2, latency_s=1e-2))
    assert isinstance(found, Infeasible)
    assert found.least == {"loss": pytest.approx(0.4), "latency_s": pytest.approx(1.2e-2)}
    assert found.alone == ()
    impossible = solve(layers, Bounds(loss=0.2, size_bytes=149.9))
    assert isinstance(impossible, Infeasible)
    assert impossible.least == {"loss": None, "size_bytes": 250.0}
    assert impossible.alone == ("size_bytes",)


def test_no_layers() -> None:
    assert solve([], Bounds(loss=0.0, latency_s=1.0)) == Solution((), 0.0, 0, 0, 0.0)
    found = solve([], Bounds(size_bytes=-1.0, latency_s=1.0))
    assert found == Infeasible({"size_bytes": 0.0, "latency_s": None}, ("size_bytes",))


def test_one_candidate() -> None:
    only = candidate(0.5, 10, 20, 1e-3)
    assert solve([[only]], Bounds()) == Solution((0,), 0.5, 10, 20, 1e-3)
    assert solve([[only]], Bounds(0.5, 10, 20, 1e-3)) == Solution((0,), 0.5, 10, 20, 1e-3)
    assert isinstance(solve([[only]], Bounds(ram_bytes=19)), Infeasible)


def test_a_bound_of_infinity_is_none() -> None:
    only = [[candidate(0.5, 10, 20, 1e-3)]]
    assert solve(only, Bounds(loss=math.inf)) == solve(only, Bounds())


@pytest.mark.parametrize("wrong", [math.nan, -1e-9, math.inf])
def test_figures_that_are_none_are_refused(wrong: float) -> None:
    good = candidate(0.5, 10, 20, 1e-3)
    with pytest.raises(ValueError, match="latency_s of candidate 1 of layer 1"):
        solve([[good], [good, replace(good, latency_s=wrong)]], Bounds())


def test_wrong_arguments_are_refused() -> None:
    good = [[candidate(0.5, 10, 20, 1e-3)]]
    with pytest.raises(ValueError, match="bound on loss is nan"):
        solve(good, Bounds(loss=math.nan))
    with pytest.raises(ValueError, match="tie is nan"):
        solve(good, Bounds(), tie=math.nan)
    with pytest.raises(ValueError, match="layer 1 has no candidates"):
        solve([*good, []], Bounds())


def test_what_the_solver_counts_as_met_is_added_up_again() -> None:
    # Within HiGHS' tolerance of the bound but above it: the next best has to be found.
    over = math.nextafter(0.5 * (1 + 4 * ROUNDING), 1.0)
    layers = [[candidate(over, 1, 1, 1e-3), candidate(0.4, 1, 1, 2e-3), candidate(0.1, 1, 1, 9e-3)]] * 2
    found = solve(layers, Bounds(loss=1.0))
    assert isinstance(found, Solution)
    assert found.latency_s == pytest.approx(3e-3)
    assert found.loss <= 1.0 * (1 + ROUNDING)


def related(seed: int, noise: float) -> Layers:
    """200 layers of 60 candidates whose figures move together, the hardest kind of knapsack."""
    draw = random.Random(seed)

    def one() -> Candidate:
        work = draw.random()
        loss, size, latency = (v * draw.uniform(1 - noise, 1 + noise) for v in (1 - work, work, work))
        return candidate(1e-5 * loss, round(1e5 * size), round(1e5 * work), 1e-4 * latency)

    return [[one() for _ in range(60)] for _ in range(200)]


@pytest.mark.parametrize(("noise", "equal_layers"), [(1.0, False), (1e-3, False), (0.1, True)])
def test_two_hundred_layers_of_sixty_candidates(
    noise: float, equal_layers: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    layers = related(3, noise)
    if equal_layers:
        layers = [layers[0]] * 200
    accurate = solve([[min(layer, key=lambda c: c.loss)] for layer in layers], Bounds())
    fastest = solve([[min(layer, key=lambda c: c.latency_s)] for layer in layers], Bounds())
    assert isinstance(accurate, Solution)
    assert isinstance(fastest, Solution)
    bound = 0.7 * accurate.loss + 0.3 * fastest.loss
    start = time.process_time()
    found = solve(layers, Bounds(loss=bound, size_bytes=accurate.size_bytes), tie=0.01)
    again = solve(layers, Bounds(loss=bound, size_bytes=accurate.size_bytes), tie=0.01)
    assert (time.process_time() - start) / 2 < 5.0
    assert found == again
    assert isinstance(found, Solution)
    assert found.loss <= bound * (1 + ROUNDING)
    assert found.latency_s <= lagrangian_bound(layers, bound) * 1.05
    assert capfd.readouterr().out == ""


def lagrangian_bound(layers: Layers, bound: float) -> float:
    """A latency that no plan with at most this loss is below: the best over prices of the Lagrangian dual."""
    prices = [10 ** (e / 20) for e in range(-60, 161)]
    return max(sum(min(c.latency_s + p * c.loss for c in layer) for layer in layers) - p * bound for p in prices)


def test_ties_on_a_large_instance_stay_within_the_bounds() -> None:
    layers = related(5, 0.5)
    middle = [sorted(layer, key=lambda c: c.loss)[20] for layer in layers]
    bounds = Bounds(*(sum(getattr(c, q) for c in middle) for q in QUANTITIES))
    found = solve(layers, bounds)
    assert isinstance(found, Solution)
    for quantity, most in limits(bounds).items():
        assert getattr(found, quantity) <= float(most)
    reference = knapsack.least([table(layer) for layer in layers], 3, {0: float(bounds.loss or 0.0)})
    assert reference is not None
    assert found.latency_s >= reference.total * (1 - knapsack.GAP)


def table(layer: Sequence[Candidate]) -> Array:
    return np.array([[getattr(c, q) for q in QUANTITIES] for c in layer], dtype=np.float64)
