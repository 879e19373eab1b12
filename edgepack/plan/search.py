"""Auto mode: one output-energy threshold for all layers, chosen by the real metric of the emitted file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgepack.metrics import Drop
from edgepack.plan.candidates import at_lost_share
from edgepack.types import LayerPlan, LinearLayer, Spectrum

LayerPlans = tuple[LayerPlan, ...]
LOST_SHARES = np.geomspace(1e-5, 0.5, 64)
NEIGHBOURS = 3
"""Steps probed on either side of where the bisection ended."""


@dataclass(frozen=True)
class Probe:
    """A plan that was emitted, and what its file lost."""

    layers: LayerPlans
    drop: Drop


def ladder(layers: Sequence[LinearLayer], spectra: Sequence[Spectrum]) -> list[LayerPlans]:
    """Distinct plans from (almost) all dense to the smallest, one per energy threshold that changes a rank."""
    steps: list[LayerPlans] = []
    for lost_share in LOST_SHARES:
        plan = tuple(at_lost_share(a, s, float(lost_share)) for a, s in zip(layers, spectra, strict=True))
        if not steps or [p.rank for p in plan] != [p.rank for p in steps[-1]]:
            steps.append(plan)
    return steps


def climb(steps: Sequence[LayerPlans], probe: Callable[[LayerPlans], Drop], max_drop: float) -> dict[int, Probe]:
    """Probe the ladder where it matters: bisect for its last step within `max_drop`, then look at the neighbours.

    About log2(steps) + 2 · `NEIGHBOURS` probes. A drop on a few hundred samples is noisy, so a single probe may send
    the bisection astray; the neighbours show it.

    Returns:
        step index → probe, ascending.
    """
    probes: dict[int, Probe] = {}

    def look(index: int) -> float:
        if index not in probes:
            probes[index] = Probe(steps[index], probe(steps[index]))
        return probes[index].drop.value

    low, high = 0, len(steps) - 1
    while low <= high:
        middle = (low + high) // 2
        if look(middle) <= max_drop:
            low = middle + 1
        else:
            high = middle - 1
    for index in range(max(high - NEIGHBOURS + 1, 0), min(low + NEIGHBOURS, len(steps))):
        look(index)
    return dict(sorted(probes.items()))


def last_within(probes: dict[int, Probe], max_drop: float) -> int | None:
    """The most compressed step that meets the budget, None where none does.

    More compression never truly helps, so the drops are fitted by an isotonic regression (Barlow et al., 1972): a step
    counts if both its own drop and the fitted one, which pools its neighbours', are within the budget.
    """
    from scipy.optimize import isotonic_regression

    if not probes:
        return None
    drops = np.array([p.drop.value for p in probes.values()])
    fitted = isotonic_regression(drops).x
    good = [i for i, own, fit in zip(probes, drops, fitted, strict=True) if own <= max_drop and fit <= max_drop + 1e-9]
    return good[-1] if good else None
