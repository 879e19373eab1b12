"""Plans from the one that loses least to the fastest: exact solutions under ever larger bounds on the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, get_args

import numpy as np

from edgepack.model.kinds import kind_of, sides, view_name
from edgepack.model.layer import Layer
from edgepack.model.structure import DENSE
from edgepack.model.types import Aim, Candidate, LayerPlan, Spectrum
from edgepack.pipeline.candidates import LayerCandidates, SharedWay
from edgepack.plan import explain
from edgepack.plan.candidates import break_even_rank
from edgepack.plan.knapsack import ENUMERATED
from edgepack.plan.solve import Bounds, Infeasible, Solution, Together, balanced, least_loss, smallest, solve
from edgepack.workers import Workers, map_tasks
from edgepack.workspace import Progress, silent

STEPS = 24
"""Bounds on the loss, geometrically spaced; plans that come out alike count once."""

TIE = 0.03
"""Latencies this close are the same for what a table of costs can tell: then the smaller plan is taken."""

CANDIDATE_FLOPS = 5e6
"""What finding a plan takes for each candidate: some tenths of a second for the thousands of a transformer."""

LayerPlans = tuple[LayerPlan, ...]
Choice = tuple[str | None, str] | tuple[str | None, str, str, float]
"""Scheme and structure of a layer; by another method its name and share as well."""


@dataclass(frozen=True)
class Step:
    """One plan with its predicted sums over the layers.

    Attributes:
        tables: what becomes of embedding tables, where that is planned.
    """

    layers: LayerPlans
    loss: float
    size_bytes: int
    ram_bytes: int
    latency_s: float
    tables: LayerPlans = ()

    @property
    def choices(self) -> list[Choice]:
        """What tells plans apart."""
        return choices((*self.layers, *self.tables))


class Beside(Protocol):
    """What a file costs beside its layers."""

    @property
    def size_bytes(self) -> int:
        """Of the file."""

    @property
    def latency_s(self) -> float:
        """Of an inference."""


def choices(layers: LayerPlans) -> list[Choice]:
    """What tells plans apart."""
    return [_choice(layer) for layer in layers]


def make_front(
    all_candidates: Sequence[LayerCandidates],
    spectra: Mapping[str, Spectrum],
    bounds: Bounds,
    beside: Beside,
    progress: Progress = silent,
    *,
    aim: Aim = "latency",
    workers: Workers | None = None,
) -> tuple[Step, ...] | Infeasible:
    """Distinct plans within the bounds, the one that loses least first; or why there is none.

    Args:
        bounds: on the sums over the linear layers; that on the loss is left out.
        beside: what the file holds and an inference takes beside the layers: latencies are tied as whole.
        progress: told of every step.
        aim: what is least at every step: latency, size, or their product.
        workers: who finds the plans, each by itself; this process alone where None.
    """
    problem = layers, groups = _problem(all_candidates)
    extreme = _best(problem, beside, aim, replace(bounds, loss=None))
    if isinstance(extreme, Infeasible):
        return extreme
    safest = least_loss(layers, bounds, groups)
    if isinstance(safest, Infeasible):
        return safest
    steps: dict[tuple[int, ...], Step] = {}
    limits = _limits(safest.loss, extreme.loss)
    tasks = [(replace(bounds, loss=limit),) for limit in limits]
    found: dict[int, Solution | Infeasible] = {}
    progress("plan", 0, len(limits))
    for index, plan in map_tasks(workers, _best, tasks, [_cost(layers)] * len(tasks), shared=[problem, beside, aim]):
        found[index] = plan
        progress("plan", len(found), len(limits))
    for index, limit in enumerate(limits):
        plan = found[index]
        if isinstance(plan, Solution) and plan.chosen not in steps:
            steps[plan.chosen] = _step(all_candidates, spectra, plan, limit)
    if extreme.chosen not in steps:
        steps[extreme.chosen] = _step(all_candidates, spectra, extreme, float("inf"))
    return tuple(sorted(steps.values(), key=lambda step: step.loss))


_Problem = tuple[list[tuple[Candidate, ...]], list[Together]]


def _best(problem: _Problem, beside: Beside, aim: Aim, bounds: Bounds) -> Solution | Infeasible:
    """The plan within the bounds that an aim wants. A task: may run on another machine."""
    layers, groups = problem
    if aim == "size":
        return smallest(layers, bounds, groups)
    if aim == "balanced":
        return balanced(layers, bounds, groups, beside_s=beside.latency_s, beside_bytes=beside.size_bytes)
    return solve(layers, bounds, groups, tie=TIE, beside_s=beside.latency_s)


def _cost(layers: Sequence[Sequence[Candidate]]) -> float:
    """Of one plan, in floating-point operations: next to nothing where all plans are added up."""
    return 0.0 if math.prod(map(len, layers)) <= ENUMERATED else CANDIDATE_FLOPS * sum(map(len, layers))


def _problem(all_candidates: Sequence[LayerCandidates]) -> _Problem:
    """The candidates of each layer, and of layers that could have one B."""
    numbers = {layer_candidates.layer.name: number for number, layer_candidates in enumerate(all_candidates)}
    shared = [layer_candidates.shared for layer_candidates in all_candidates if layer_candidates.shared is not None]
    groups = [Together(tuple(numbers[n] for n in one.layers), tuple(map(_summed, one.ways))) for one in shared]
    return [layer_candidates.candidates for layer_candidates in all_candidates], groups


def _summed(way: SharedWay) -> Candidate:
    first, parts = way.candidates[0], way.candidates
    return replace(
        first,
        loss=sum(one.loss for one in parts),
        size_bytes=sum(one.size_bytes for one in parts),
        ram_bytes=sum(one.ram_bytes for one in parts),
        latency_s=sum(one.latency_s for one in parts),
    )


LEAST_GAIN = 0.02
"""Of what an aim wants, below which its corner is not worth a line."""


@dataclass(frozen=True)
class Corner:
    """What one aim comes to, predicted of the whole.

    Attributes:
        size_bytes: of the file.
        latency_s: of an inference.
    """

    aim: Aim
    size_bytes: int
    latency_s: float


def worth(aim: Aim, size_bytes: int, latency_s: float) -> tuple[float, float]:
    """What an aim wants the least of, of a whole file; the second where the first is equal."""
    if aim == "size":
        return size_bytes, latency_s
    return (latency_s if aim == "latency" else latency_s * size_bytes), size_bytes


def corners(
    all_candidates: Sequence[LayerCandidates], chosen: LayerPlans, bounds: Bounds, beside: Beside, aim: Aim
) -> tuple[Corner, ...]:
    """A plan and the other corners of its front: what other aims would choose where no more may be lost than it loses.

    They come from the same candidates; no file of them is written. Left out is a corner that gains next to nothing.

    Args:
        chosen: the plan, all of these candidates; otherwise nothing is known of it.
        bounds: on the sums over the linear layers, within which it was found; that on the loss is its own.
        beside: what the file holds and an inference takes beside the layers.
        aim: that it was found by; it is the first of the corners.
    """
    candidates = [layer.predicted for layer in chosen if layer.predicted is not None]
    if len(candidates) < len(all_candidates):
        return ()
    own = _corner(aim, candidates, beside)
    within = replace(bounds, loss=sum(one.loss for one in candidates))
    found = [own]
    for other in get_args(Aim):
        best = _best(_problem(all_candidates), beside, other, within) if other != aim else None
        if isinstance(best, Solution):
            corner = _corner(other, [one.candidate for one in _picked(all_candidates, best)], beside)
            wanted, held = (worth(other, one.size_bytes, one.latency_s)[0] for one in (corner, own))
            found += [corner] if wanted <= (1 - LEAST_GAIN) * held else []
    return tuple(found)


def _corner(aim: Aim, candidates: Sequence[Candidate], beside: Beside) -> Corner:
    size_bytes = beside.size_bytes + sum(one.size_bytes for one in candidates)
    return Corner(aim, size_bytes, beside.latency_s + sum(one.latency_s for one in candidates))


def nearest(
    all_candidates: Sequence[LayerCandidates], spectra: Mapping[str, Spectrum], bounds: Bounds, why: Infeasible
) -> Step:
    """The plan to show where none is within the bounds: one of them drawn out to the least that the others allow.

    Args:
        why: what `make_front` gave for the bounds.
    """
    layers, groups = _problem(all_candidates)
    reached = {quantity: least for quantity, least in why.least.items() if least is not None}
    names = list(why.least)
    while not reached:  # several stand in each other's way: with fewer of them
        bounds = replace(bounds, **{names.pop(): None})
        fewer = solve(layers, bounds, groups, tie=TIE)
        if isinstance(fewer, Solution):
            return _step(all_candidates, spectra, fewer, float("inf"))
        reached = {quantity: least for quantity, least in fewer.least.items() if least is not None}
    quantity, least = next(iter(reached.items()))
    found = solve(layers, replace(bounds, **{quantity: least}), groups)
    if isinstance(found, Infeasible):
        raise ValueError(f"no plan reaches the least {quantity} of {least}")
    return _step(all_candidates, spectra, found, float("inf"))


def _choice(layer: LayerPlan) -> Choice:
    other = layer.alternative
    scheme = None if layer.scheme is None else layer.scheme.name
    structure = str(layer.structure)
    return (scheme, structure) if other is None else (scheme, structure, other.method, other.share)


def _limits(low: float, high: float) -> list[float]:
    """Bounds between two losses; a loss of nothing at all is a thousandth of the largest."""
    if high <= low:
        return [high]
    floor = max(low, high * 1e-6)
    limits = np.geomspace(floor, high, STEPS) * (1 + 1e-9)
    return [float(limit) for limit in ([low * (1 + 1e-9), *limits] if low < floor else limits)]


def _step(
    all_candidates: Sequence[LayerCandidates], spectra: Mapping[str, Spectrum], found: Solution, limit: float
) -> Step:
    slack = max(limit - found.loss, 0.0)
    plans = [
        planned(layer_candidates, one.candidate, spectra, slack)
        if one.lost is None
        else _together(layer_candidates, one, slack)
        for layer_candidates, one in zip(all_candidates, _picked(all_candidates, found), strict=True)
    ]
    layers, tables = (tuple(p for p in plans if is_table(p) == wanted) for wanted in (False, True))
    return Step(layers, found.loss, found.size_bytes, found.ram_bytes, found.latency_s, tables)


@dataclass(frozen=True)
class _Pick:
    """What was chosen for a layer.

    Attributes:
        lost: of its output energy, where it has one B with others.
        shares: names of these, and its own.
    """

    candidate: Candidate
    lost: float | None = None
    shares: tuple[str, ...] = ()


def _picked(all_candidates: Sequence[LayerCandidates], found: Solution) -> list[_Pick]:
    """By layer: a candidate of its own, or its part of what it has together with others."""
    groups = [layer_candidates.shared for layer_candidates in all_candidates if layer_candidates.shared is not None]
    together: dict[str, _Pick] = {}
    for group, index in zip(groups, found.chosen[len(all_candidates) :], strict=True):
        for way in group.ways[index : index + 1]:
            for name, candidate, lost in zip(group.layers, way.candidates, way.lost, strict=True):
                together[name] = _Pick(candidate, lost, group.layers)
    own = zip(all_candidates, found.chosen, strict=False)
    return [
        together.get(layer_candidates.layer.name) or _Pick(layer_candidates.candidates[index])
        for layer_candidates, index in own
    ]


def _together(layer_candidates: LayerCandidates, pick: _Pick, slack: float) -> LayerPlan:
    others = [name for name in pick.shares if name != layer_candidates.layer.name]
    plan = _plan(layer_candidates, pick.candidate, pick.lost or 0.0, slack)
    return replace(plan, reason=f"its B is also that of {' and '.join(others)}; {plan.reason}", shares=pick.shares)


def is_table(plan: LayerPlan) -> bool:
    """Whether it is that of an embedding table."""
    return plan.dense[0].kind == "gather"


def planned(
    layer_candidates: LayerCandidates, chosen: Candidate, spectra: Mapping[str, Spectrum], slack: float
) -> LayerPlan:
    """What becomes of a layer with one of its candidates.

    Args:
        spectra: of the layers' views, by name.
        slack: loss that the whole plan has left.
    """
    return _plan(layer_candidates, chosen, _lost_share(layer_candidates.layer, chosen, spectra), slack)


def _plan(layer_candidates: LayerCandidates, chosen: Candidate, lost: float, slack: float) -> LayerPlan:
    layer = layer_candidates.layer
    return LayerPlan(
        layer.name,
        kind_of(layer).ops(layer, DENSE, 1),
        chosen.structure,
        chosen.ops,
        break_even_rank(*sides(layer)),
        lost,
        explain.reason(layer_candidates.candidates, chosen, slack, layer_candidates.why_dense),
        scheme=chosen.scheme,
        predicted=chosen,
        others=explain.others(layer_candidates.candidates, chosen, slack),
        alternative=chosen.alternative,
    )


def _lost_share(layer: Layer, chosen: Candidate, spectra: Mapping[str, Spectrum]) -> float:
    """Of output energy, by cutting off; of a structure of several views what they lose together at most. Of a kernel
    that is taken apart it is not known before that is made, and of a table it is part of its predicted loss: 0."""
    if chosen.alternative is not None:
        return 0.0
    parts = kind_of(layer).parts(layer, chosen.structure)
    lost = (
        float(spectra[view_name(layer.name, view)].lost_share()[part.ranks[0]])
        for view, part in parts.items()
        if part.is_low_rank and view_name(layer.name, view) in spectra
    )
    return min(sum(lost), 1.0)
