"""`edgepack build --explore`: plans over the whole range, each emitted and measured; `--pick` builds one of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgepack.errors import UsageError
from edgepack.metrics.drop import Drop
from edgepack.model.scheme import INT8_BITS, Format
from edgepack.model.types import Aim
from edgepack.pipeline.candidates import LayerCandidates
from edgepack.pipeline.limits import Rest, infeasible, measure_rest, user_bounds
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.pareto import Step, make_front
from edgepack.pipeline.prepare import Prepared, prepared
from edgepack.pipeline.search import Found, PlanTrial, Search
from edgepack.plan.candidates import file_label
from edgepack.plan.solve import Bounds, Infeasible
from edgepack.workspace import Cache, Progress, silent

AIMS: tuple[Aim, ...] = ("latency", "balanced", "size")
PER_AIM, PER_PRECISION = 4, 3
"""Plans per format at most: of all candidates for each aim, and of those of one precision. Dense int8 comes to that."""


@dataclass(frozen=True)
class ExploredRow:
    """One plan that was emitted and measured.

    Attributes:
        number: what `--pick` takes.
        on_front: whether no other plan of its format is at least as good in drop, latency and size, and better in one.
        factored: layers, of how many.
        ranks: of those, by name.
        weights_share: weight parameters kept, of the linear layers.
        latency_s: predicted, of the linear layers.
        source: of the latency.
    """

    number: int
    on_front: bool
    format: Format
    scheme: str
    factored: tuple[int, int]
    ranks: Mapping[str, int]
    weights_share: float
    size_bytes: int
    latency_s: float
    source: str
    drop: Drop


@dataclass(frozen=True)
class Exploration:
    """Plans of all formats, and what the user should hear."""

    rows: tuple[ExploredRow, ...]
    warnings: tuple[str, ...]


def explore(options: BuildOptions, *, cache: Cache | None = None, progress: Progress = silent) -> Exploration:
    """Tries plans from the one that loses least to the fastest, within the limits of the options. Writes no pack.

    Raises:
        UsageError, InputError: bad arguments, model or data.
        DeviceError: a measurement failed.
        BudgetError: no plan is within the limits.
    """
    with prepared(options, cache or Cache(fresh=options.fresh), progress) as ready:
        _check(ready)
        rows = _numbered(ready, {fmt: search.plan_trials for fmt, (search, _) in _explored(ready).items()})
        return Exploration(rows, tuple(ready.evaluator.workspace.warnings))


def picked(ready: Prepared) -> dict[Format, Found]:
    """The plans that `--pick` names, emitted and proved.

    Raises:
        UsageError: a number that the exploration does not list, or two of one format.
    """
    _check(ready)
    explored = _explored(ready)
    listed = [plan_trial for search, _ in explored.values() for plan_trial in search.plan_trials]
    found: dict[Format, Found] = {}
    for number in ready.evaluator.options.pick:
        if number > len(listed):
            raise UsageError(
                f"--pick {number}: there are plans 1 to {len(listed)}",
                hint="list them with --explore and the same other options",
            )
        plan_trial = listed[number - 1]
        if plan_trial.fmt in found:
            raise UsageError(f"--pick names two {plan_trial.fmt} plans", hint="a pack holds one file per format")
        search, steps = explored[plan_trial.fmt]
        found[plan_trial.fmt] = search.run(
            [next(step for step in steps if (step.layers, step.tables) == (plan_trial.layers, plan_trial.tables))], None
        )
    return found


def _check(ready: Prepared) -> None:
    if not ready.validation.has_data:
        raise UsageError("plans can be compared only where data measure what they lose", hint="give --data F.npz")


def _explored(ready: Prepared) -> dict[Format, tuple[Search, tuple[Step, ...]]]:
    evaluator, began = ready.evaluator, time.monotonic()
    found = {}
    for number, (fmt, files) in enumerate(ready.files.items(), start=1):
        rest = measure_rest(evaluator, files, ready.estimates, ready.all_candidates[fmt])
        bounds = user_bounds(evaluator.options, rest)
        steps = _steps(ready, fmt, bounds, rest)
        if isinstance(steps, Infeasible):
            raise infeasible(fmt, steps, evaluator.options, rest)
        search = Search(evaluator, files, rest, began + evaluator.options.time_limit_s * number / len(ready.files))
        search.explore(steps)
        found[fmt] = search, steps
    return found


def _steps(ready: Prepared, fmt: Format, bounds: Bounds, rest: Rest) -> tuple[Step, ...] | Infeasible:
    """The plans of a format that are looked at, the one that loses least first; or why there is none."""
    all_candidates, workspace = ready.all_candidates[fmt], ready.evaluator.workspace
    progress, workers = workspace.progress, workspace.workers

    def front(all_candidates: Sequence[LayerCandidates], aim: Aim) -> tuple[Step, ...] | Infeasible:
        return make_front(all_candidates, ready.evaluator.spectra, bounds, rest, progress, aim=aim, workers=workers)

    steps: list[Step] = []
    for aim in AIMS:
        found = front(all_candidates, aim)
        if isinstance(found, Infeasible):
            return found
        steps += _spread(found, PER_AIM)
    for bits in {one.scheme.bits for layer_candidates in all_candidates for one in layer_candidates.candidates}:
        found = front([_in_bits(layer_candidates, bits) for layer_candidates in all_candidates], "balanced")
        steps += [] if isinstance(found, Infeasible) else _spread(found, PER_PRECISION)
    dense = [_dense_int8(layer_candidates) for layer_candidates in all_candidates]
    if all(layer_candidates.candidates for layer_candidates in dense):
        found = front(dense, "latency")
        steps += [] if isinstance(found, Infeasible) else found[-1:]
    distinct = {tuple(step.choices): step for step in steps}
    return tuple(sorted(distinct.values(), key=lambda step: step.loss))


def _in_bits(layer_candidates: LayerCandidates, bits: int) -> LayerCandidates:
    """What a layer could become in one precision; in the next wider one, else the widest, where it has none in it."""
    widths = {one.scheme.bits for one in layer_candidates.candidates}
    width = min((each for each in widths if each >= bits), default=max(widths))
    alike = tuple(one for one in layer_candidates.candidates if one.scheme.bits == width)
    if layer_candidates.shared is None:
        return replace(layer_candidates, candidates=alike)
    ways = tuple(way for way in layer_candidates.shared.ways if way.candidates[0].scheme.bits == width)
    return replace(
        layer_candidates, candidates=alike, shared=replace(layer_candidates.shared, ways=ways) if ways else None
    )


def _dense_int8(layer_candidates: LayerCandidates) -> LayerCandidates:
    own = (one for one in layer_candidates.candidates if one.structure.is_dense and one.alternative is None)
    return replace(layer_candidates, candidates=tuple(one for one in own if one.scheme.bits == INT8_BITS), shared=None)


def _spread(steps: Sequence[Step], count: int) -> list[Step]:
    """`count` steps over the whole front, both ends among them."""
    indices = {round(i * (len(steps) - 1) / (count - 1)) for i in range(count)}
    return [steps[index] for index in sorted(indices)]


def _numbered(ready: Prepared, plan_trials: Mapping[Format, Sequence[PlanTrial]]) -> tuple[ExploredRow, ...]:
    """Rows in the order of the formats, and in each the plan that loses least first."""
    every = [(plan_trial, _on_front(plan_trial, found)) for found in plan_trials.values() for plan_trial in found]
    return tuple(_row(ready, number, plan_trial, front) for number, (plan_trial, front) in enumerate(every, start=1))


def _row(ready: Prepared, number: int, plan_trial: PlanTrial, on_front: bool) -> ExploredRow:
    dense = sum(layer.dense_parameters for layer in plan_trial.layers)
    factored = sum(bool(layer.structure.ranks) or layer.alternative is not None for layer in plan_trial.layers)
    return ExploredRow(
        number=number,
        on_front=on_front,
        format=plan_trial.fmt,
        scheme=file_label(plan_trial.layers, plan_trial.scheme),
        factored=(factored, len(plan_trial.layers)),
        ranks={layer.layer: layer.rank for layer in plan_trial.layers if layer.rank is not None},
        weights_share=sum(layer.weight_parameters for layer in plan_trial.layers) / dense if dense else 1.0,
        size_bytes=plan_trial.size_bytes,
        latency_s=plan_trial.latency_s,
        source=ready.estimates.source_name(plan_trial.fmt),
        drop=plan_trial.drop,
    )


def _on_front(plan_trial: PlanTrial, others: Sequence[PlanTrial]) -> bool:
    own = _figures(plan_trial)
    rivals = (_figures(other) for other in others if other is not plan_trial)
    return not any(all(a <= b for a, b in zip(rival, own, strict=True)) and rival != own for rival in rivals)


def _figures(plan_trial: PlanTrial) -> tuple[float, float, int]:
    return plan_trial.drop.value, plan_trial.latency_s, plan_trial.size_bytes
