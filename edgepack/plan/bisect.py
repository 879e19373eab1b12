"""Which bound on the predicted loss meets a budget on the real metric: a bisection that knows how noisy a drop is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from edgepack.metrics.drop import Drop

NEIGHBOURS = 3
"""Steps tried on either side of where the bisection ended."""

UNDECIDED_STEPS = 6
"""Further steps tried on either side as long as the paired test cannot tell them from the budget."""


def climb(
    steps: int,
    look: Callable[[int], Drop],
    max_drop: float,
    *,
    start: int | None = None,
    deadline_s: float = float("inf"),
) -> dict[int, Drop]:
    """Try steps of ever larger losses: bisect for its last step within the budget, then look around there.

    A drop on a few hundred samples is noisy, so a single trial may send the bisection astray. Its neighbours show it,
    and where the paired test leaves a neighbour undecided, so do theirs.

    Args:
        steps: of the front, 0 losing least.
        look: tries a step; called once per step.
        start: where to look first, such as the step that another format of the model came to.
        deadline_s: by `time.monotonic`: no trial is begun after it, but there is always one.

    Returns:
        step → drop, ascending.
    """
    seen: dict[int, Drop] = {}
    for step in _path(steps, seen, max_drop, start):
        if step not in seen:
            if seen and time.monotonic() >= deadline_s:
                break
            seen[step] = look(step)
    return dict(sorted(seen.items()))


def _path(steps: int, seen: Mapping[int, Drop], max_drop: float, start: int | None) -> Iterator[int]:
    """Steps to try in this order; a step may come more than once. `seen` grows meanwhile."""
    good, bad = -1, steps  # the last step known to be within the budget, the first known to be over it
    step, stride = (steps // 2, steps) if start is None else (min(max(start, 0), steps - 1), 1)
    while good < step < bad:  # gallop until both sides are known, or an end is reached
        yield step
        within_budget = seen[step].bound <= max_drop
        good, bad = (step, bad) if within_budget else (good, step)
        step += stride if within_budget else -stride
        stride *= 2
    while bad - good > 1:
        middle = (good + bad) // 2
        yield middle
        good, bad = (middle, bad) if seen[middle].bound <= max_drop else (good, middle)
    for reach in range(NEIGHBOURS + UNDECIDED_STEPS):
        for step, inner in ((good - reach, good - reach + 1), (bad + reach, bad + reach - 1)):
            if 0 <= step < steps and (reach < NEIGHBOURS or _undecided(seen.get(inner), max_drop)):
                yield step


def _undecided(drop: Drop | None, max_drop: float) -> bool:
    return drop is not None and not (decidedly_within(drop, max_drop) or decidedly_over(drop, max_drop))


def decidedly_within(drop: Drop, max_drop: float) -> bool:
    """Whether the true drop is within the budget, with the confidence of the drop's bound."""
    return drop.bound <= max_drop


def decidedly_over(drop: Drop, max_drop: float) -> bool:
    """Whether the true drop is over the budget, with about that confidence."""
    return drop.value - drop.margin > max_drop


def within(drops: Mapping[int, Drop], max_drop: float) -> list[int]:
    """The steps that meet the budget, ascending.

    A larger loss never truly helps, so the bounds are fitted by an isotonic regression (Barlow et al., 1972): a step
    counts if both its own bound and the fitted one, which pools its neighbours', are within the budget.
    """
    from scipy.optimize import isotonic_regression

    if not drops:
        return []
    values = np.array([drop.bound for drop in drops.values()])
    fitted = isotonic_regression(values).x
    return [
        step for step, own, fit in zip(drops, values, fitted, strict=True) if own <= max_drop and fit <= max_drop + 1e-9
    ]
