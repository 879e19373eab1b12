"""Plans from the one that loses least to the fastest: exact solutions under ever larger bounds on the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgepack.pipeline.menus import Menu
from edgepack.plan import reasons
from edgepack.plan.candidates import break_even_rank
from edgepack.plan.solve import Bounds, Infeasible, Solution, least_loss, solve
from edgepack.progress import Progress, silent
from edgepack.types import Candidate, LayerPlan, Spectrum

STEPS = 32
"""Bounds on the loss, geometrically spaced; plans that come out alike count once."""

TIE = 0.03
"""Latencies this close are the same for what a table of costs can tell: then the smaller plan is taken."""

LayerPlans = tuple[LayerPlan, ...]


@dataclass(frozen=True)
class Step:
    """One plan with its predicted sums over the linear layers."""

    layers: LayerPlans
    loss: float
    size_bytes: int
    ram_bytes: int
    latency_s: float

    @property
    def choices(self) -> list[tuple[str | None, int | None]]:
        """Form and rank of every layer: what tells plans apart."""
        return [(layer.form, layer.rank) for layer in self.layers]


def make_ladder(
    menus: Sequence[Menu], spectra: Sequence[Spectrum], bounds: Bounds, progress: Progress = silent
) -> tuple[Step, ...] | Infeasible:
    """Distinct plans within the bounds, the one that loses least first; or why there is none.

    Args:
        bounds: on the sums over the linear layers; that on the loss is left out.
    """
    layers = [menu.candidates for menu in menus]
    fastest = solve(layers, bounds, tie=TIE)
    if isinstance(fastest, Infeasible):
        return fastest
    safest = least_loss(layers, bounds)
    if isinstance(safest, Infeasible):
        return safest
    steps: dict[tuple[int, ...], Step] = {}
    limits = _limits(safest.loss, fastest.loss)
    for index, limit in enumerate(limits):
        progress("plan", index, len(limits))
        found = solve(layers, replace(bounds, loss=limit), tie=TIE)
        if isinstance(found, Solution) and found.chosen not in steps:
            steps[found.chosen] = _step(menus, spectra, found, limit)
    if fastest.chosen not in steps:
        steps[fastest.chosen] = _step(menus, spectra, fastest, float("inf"))
    return tuple(sorted(steps.values(), key=lambda step: step.loss))


def nearest(menus: Sequence[Menu], spectra: Sequence[Spectrum], bounds: Bounds, why: Infeasible) -> Step:
    """The plan to show where none is within the bounds: one of them drawn out to the least that the others allow.

    Args:
        why: what `make_ladder` gave for the bounds.
    """
    layers = [menu.candidates for menu in menus]
    reached = {quantity: least for quantity, least in why.least.items() if least is not None}
    names = list(why.least)
    while not reached:  # several stand in each other's way: with fewer of them
        bounds = replace(bounds, **{names.pop(): None})
        fewer = solve(layers, bounds, tie=TIE)
        if isinstance(fewer, Solution):
            return _step(menus, spectra, fewer, float("inf"))
        reached = {quantity: least for quantity, least in fewer.least.items() if least is not None}
    quantity, least = next(iter(reached.items()))
    found = solve(layers, replace(bounds, **{quantity: least}), tie=TIE)
    if isinstance(found, Infeasible):
        raise ValueError(f"no plan reaches the least {quantity} of {least}")
    return _step(menus, spectra, found, float("inf"))


def _limits(low: float, high: float) -> list[float]:
    """Bounds between two losses; a loss of nothing at all is a thousandth of the largest."""
    if high <= low:
        return [high]
    floor = max(low, high * 1e-6)
    limits = np.geomspace(floor, high, STEPS) * (1 + 1e-9)
    return [float(limit) for limit in ([low * (1 + 1e-9), *limits] if low < floor else limits)]


def _step(menus: Sequence[Menu], spectra: Sequence[Spectrum], found: Solution, limit: float) -> Step:
    slack = max(limit - found.loss, 0.0)
    layers = tuple(
        planned(menu, menu.candidates[index], spectrum, slack)
        for menu, index, spectrum in zip(menus, found.chosen, spectra, strict=True)
    )
    return Step(layers, found.loss, found.size_bytes, found.ram_bytes, found.latency_s)


def planned(menu: Menu, chosen: Candidate, spectrum: Spectrum, slack: float) -> LayerPlan:
    """What becomes of a layer with one of its candidates.

    Args:
        slack: loss that the whole plan has left.
    """
    layer = menu.layer
    return LayerPlan(
        layer.name,
        layer.out_features,
        layer.in_features,
        chosen.rank,
        break_even_rank(layer.out_features, layer.in_features),
        0.0 if chosen.rank is None else float(spectrum.lost_share()[chosen.rank]),
        reasons.reason(menu.candidates, chosen, slack, menu.why_dense),
        form=chosen.form,
        predicted=chosen,
        others=reasons.others(menu.candidates, chosen, slack),
    )
