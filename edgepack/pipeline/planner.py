"""Plans one format of a build: the ladder of exact plans within the limits, then the search along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgepack.backends.backend import Writer
from edgepack.errors import BudgetError, ProofError
from edgepack.pipeline import limits
from edgepack.pipeline.attempt import Attempt
from edgepack.pipeline.baselines import Baseline
from edgepack.pipeline.candidates import Menu
from edgepack.pipeline.evaluator import Evaluator
from edgepack.pipeline.ladder import Step, make_ladder, nearest
from edgepack.pipeline.pricing import Prices
from edgepack.pipeline.promise import dense_instead
from edgepack.pipeline.search import Found, Search
from edgepack.plan.solve import Bounds, Infeasible, Quantity

TIGHTENINGS = 3
"""How often the bounds are drawn in where an emitted file turns out larger than predicted."""
MARGIN = 0.01


@dataclass(frozen=True)
class Planned:
    """What became of one format; `failure` is the error to raise once the best attempt is written."""

    found: Found
    failure: BudgetError | None

    @property
    def loss(self) -> float | None:
        """Predicted loss of the chosen plan: near it another format of the model is searched first."""
        losses = [layer.predicted.loss for layer in self.found.attempt.layers if layer.predicted is not None]
        return sum(losses) if losses else None


def plan(
    evaluator: Evaluator,
    files: Writer,
    menus: Sequence[Menu],
    prices: Prices,
    baseline: Baseline,
    *,
    deadline_s: float,
    start: float | None = None,
) -> Planned:
    """The fastest plan of a format that meets every limit; where none does, the best attempt and the error to raise.

    Args:
        deadline_s: see `Search`.
        start: predicted loss near which to look first.
    """
    rest = limits.measure_rest(evaluator, files, prices)
    bounds = limits.user_bounds(evaluator.options, rest)
    promised = limits.promised_bounds(evaluator, menus, baseline, bounds, rest)
    search = Search(evaluator, files, deadline_s, start)
    try:
        return _searched(evaluator, search, menus, bounds, promised, rest)
    except ProofError as err:
        evaluator.workspace.warn(err.message)
        reason = "no other file of this format could be written and proved"
        return Planned(Found(dense_instead(evaluator, files, baseline, reason), {}, search.probes), None)


def _searched(
    evaluator: Evaluator, search: Search, menus: Sequence[Menu], bounds: Bounds, promised: Bounds, rest: limits.Rest
) -> Planned:
    """What the search comes to within the promised bounds, else within the user's own.

    Raises:
        ProofError: no plan could be written and proved.
    """
    progress = evaluator.workspace.progress
    closest: Planned | None = None
    for allowed in dict.fromkeys((promised, bounds)):
        steps = make_ladder(menus, evaluator.spectra, allowed, rest.latency_s, progress, aim=evaluator.aim)
        if isinstance(steps, Infeasible):
            if closest is None and allowed == bounds:
                step = nearest(menus, evaluator.spectra, allowed, steps)
                error = limits.infeasible(search.fmt, steps, evaluator.options, rest)
                return Planned(search.run([step], None), error)
            continue
        found = _tightened(evaluator, search, menus, steps, allowed, rest)
        if found.found.attempt.within(evaluator.options.drop_limit):
            return found
        if closest is None or found.found.attempt.lost < closest.found.attempt.lost:
            closest = found
    if closest is None:
        raise ValueError("there is no ladder of plans")  # the user's own bounds gave one, or an error above
    return closest


def _tightened(
    evaluator: Evaluator,
    search: Search,
    menus: Sequence[Menu],
    steps: tuple[Step, ...],
    bounds: Bounds,
    rest: limits.Rest,
) -> Planned:
    """Searches, and draws the bounds in where the file itself is over a limit that its plan was predicted to meet."""
    progress = evaluator.workspace.progress
    for _ in range(TIGHTENINGS):
        found = search.run(steps, evaluator.options.drop_limit)
        over = limits.excess(evaluator, found.attempt)
        if not over:
            return Planned(found, None)
        # From what this very plan was predicted to take: a bound with room to spare would give it again.
        drawn = {name: max(_predicted(found.attempt, name) - by * (1 + MARGIN), 0) for name, by in over.items()}
        bounds = replace(bounds, **drawn)
        tighter = make_ladder(menus, evaluator.spectra, bounds, rest.latency_s, progress, aim=evaluator.aim)
        if isinstance(tighter, Infeasible):
            break
        steps = tighter
    return Planned(found, limits.over_limit(found.attempt, over, evaluator.options))


def _predicted(attempt: Attempt, quantity: Quantity) -> float:
    """Sum over the layers."""
    return sum(float(getattr(layer.predicted, quantity)) for layer in attempt.layers if layer.predicted is not None)
