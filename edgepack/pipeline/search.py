"""Finds the plan of one format: the fastest within the budget, by emitting files and measuring what they lose."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgepack.backends.backend import Writer
from edgepack.backends.registry import TOOLS
from edgepack.cost import model
from edgepack.errors import BudgetError, LayerError, ModelError, ProofError
from edgepack.metrics.drop import Drop
from edgepack.model.scheme import INT8_BITS, FileScheme, Format, Scheme
from edgepack.model.structure import DENSE
from edgepack.model.types import LayerPlan
from edgepack.pipeline import limits
from edgepack.pipeline.baselines import Baseline, dense_instead
from edgepack.pipeline.candidates import LayerCandidates, check_losses
from edgepack.pipeline.distill import Outcome
from edgepack.pipeline.evaluate import FileTrial
from edgepack.pipeline.evaluator import Evaluator
from edgepack.pipeline.latency_estimates import LatencyEstimates
from edgepack.pipeline.pareto import Choice, Corner, LayerPlans, Step, choices, corners, make_front, nearest, worth
from edgepack.pipeline.variants import trial_scheme, variants
from edgepack.plan.bisect import climb, within
from edgepack.plan.candidates import exceptions, file_label
from edgepack.plan.explain import arrangement
from edgepack.plan.solve import Bounds, Infeasible, Quantity
from edgepack.units import seconds
from edgepack.workspace import Keyed, digest, file_bytes, record_store
from edgepack.workspace import Step as CachedStep

FINALISTS = 3
"""Plans that are compared by measuring their files where the target is this machine."""

REACH = (4.0, 2.0)
"""Training may take back most of a drop: plans that lose so many times the limit without it are tried first, each
trained in turn until one is within the limit."""

LOOKS = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
"""At the samples that were kept back, at most: what share of the allowed error each spends."""
BOLD_FIRST = (1 / 4, 1 / 2, 1 / 8, 1 / 16)
"""The same where the first plan is one whose draft is no good: refuted, it leaves the next its whole half."""
STEP_BACK = 0.7
"""Of the predicted loss of a plan that was not confirmed: what the next one may lose at most."""

DRAFTED = 2 / 3
"""Of the time, how much trials of drafts may take: the rest is for files whose weights are rounded together."""
TIGHTENINGS = 3
"""How often the bounds are drawn in where an emitted file turns out larger than predicted."""
MARGIN = 0.01


@dataclass(frozen=True)
class Found:
    """What the search in one format came to.

    Attributes:
        trial: the file.
        latency_s: seconds per inference of the files that were compared on this machine, by scheme and rank; empty for
            a target that is not this machine.
        plan_trials: all that was looked at, the one that loses least first.
        loss: predicted of its plan.
    """

    trial: FileTrial
    latency_s: dict[str, float]
    plan_trials: tuple[PlanTrial, ...]
    loss: float = 0.0


REPAIRS = 3
"""How often layers of one file are made dense because they could not be written or proved as planned."""


class Search:
    """One search in one format."""

    def __init__(
        self,
        evaluator: Evaluator,
        files: Writer,
        rest: limits.Rest,
        deadline_s: float,
        start: float | None = None,
        *,
        rival: Scheme | None = None,
    ) -> None:
        """`rest` is what stands beside the layers, `deadline_s` by `time.monotonic`, `start` a loss near which to look
        first, `rival` the scheme of the dense int8 file where plans are compared with it on this machine. What the
        deadline finds begun is ended, and there is always one file."""
        begun = time.monotonic()
        self._evaluator, self._files, self._rest, self._rival = evaluator, files, rest, rival
        self._deadline_s, self._drafted_s = deadline_s, begun + DRAFTED * (deadline_s - begun)
        self._start = start
        self._kept: set[Path] = set()
        self._workspace, self._replacements = evaluator.workspace, evaluator.replacements
        self._plan_trials: dict[tuple[Choice, ...], PlanTrial] = {}

    @property
    def fmt(self) -> Format:
        """The file format that is searched in."""
        return self._files.fmt

    @property
    def is_late(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self._deadline_s

    def run(self, steps: Sequence[Step], limit: float | None) -> Found:
        """The fastest of the steps whose file meets the limit; else the one that loses least.

        Args:
            steps: of the front, the one that loses least first; at least one.
            limit: largest drop, None for no limit: then the fastest step is taken unprobed.

        Raises:
            ProofError: no plan could be written and proved.
        """
        if limit is None or not self._evaluator.file_evaluator.validation.has_data:
            found = self._best([steps[-1], steps[0]], None)
            return replace(found, trial=self._evaluator.confirmed(found.trial))
        drops = self._climb(steps, limit)
        kept = within(drops, limit)
        order = self._ordered(steps, kept)
        beyond = self._ordered(steps, self._beyond(steps, max(kept, default=-1), limit))
        if not order:  # then the closest that was seen
            order = [min(drops, key=lambda i: (drops[i].bound, i))]
        if self._replacements.distillation is not None:
            wider = [limit * reach for reach in REACH]
            order = [i for far in wider for i in self._ordered(steps, within(self._climb(steps, far), far))[:1]] + order
        return self._confirmed(steps, order, limit, beyond)

    def _confirmed(self, steps: Sequence[Step], order: Sequence[int], limit: float, beyond: Sequence[int]) -> Found:
        """The best of the steps that also keeps the limit on the samples that were kept back; where it does not, a step
        back along the front is tried, some times. The steps beyond those whose drafts are good have the first look, and
        with the others the second, as far as they are milder."""
        drafted, order = order, [*beyond, *order]
        looked: list[Found] = []
        self._kept = set()
        for share in BOLD_FIRST if beyond else LOOKS:
            # The plan that loses least is the last resort, in a scheme or a format that loses more than its trial.
            found = self._best([steps[i] for i in [*order, 0]], limit)
            found = replace(found, trial=self._evaluator.confirmed(found.trial, share))
            looked.append(found)
            self._kept.add(found.trial.path)
            if found.trial.confirmation is None or found.trial.within(limit):
                break
            if self.is_late:
                break
            milder = [i for i, step in enumerate(steps) if step.loss <= STEP_BACK * found.loss]
            if beyond:
                order, beyond = self._ordered(steps, {*beyond, *drafted} & {*milder}) or drafted, ()
            elif milder:
                # Where training was to take back much of a drop, the plans that need less of it are next.
                trained = [i for i in order if i in milder and self._replacements.distillation is not None]
                order = trained or [max(milder, key=lambda i: steps[i].loss)]
            else:
                break
            self._workspace.progress(f"a step back: {found.trial.lost:.2f} on samples that were kept back")
        chosen = next((one for one in looked if one.trial.within(limit)), None)
        if chosen is None:
            nearest = _nearest_to(limit, [one.trial for one in looked])
            chosen = next(one for one in looked if one.trial is nearest)
        for path in self._kept - {chosen.trial.path}:
            path.unlink(missing_ok=True)
        return chosen

    def _ordered(self, steps: Sequence[Step], indices: Iterable[int]) -> list[int]:
        """The best first: the fastest, the smallest, or of the least latency × bytes, as the build aims."""
        aim, rest = self._evaluator.aim, self._rest

        def of_the_whole(index: int) -> tuple[float, float]:
            step = steps[index]
            return worth(aim, step.size_bytes + rest.size_bytes, step.latency_s + rest.latency_s)

        return sorted(indices, key=of_the_whole)

    def _climb(self, steps: Sequence[Step], limit: float) -> dict[int, Drop]:
        start = None if self._start is None else sum(step.loss <= self._start for step in steps) - 1
        return climb(len(steps), partial(self._look, steps), limit, start=start, deadline_s=self._drafted_s)

    def _beyond(self, steps: Sequence[Step], last: int, limit: float) -> Iterator[int]:
        """Steps beyond the last one whose trial kept the limit, for as long as they keep it with their weights rounded
        together: in trials pairs are rounded to nearest, which loses several times as much in 4 bits."""
        for index in range(last + 1, len(steps)):
            if not _is_pessimistic(steps[index]) or time.monotonic() >= self._drafted_s:
                return
            self._workspace.progress(f"search {self._files.fmt} beyond its trials", index - last, 0)
            if plan_trial(self._evaluator, self._files, steps[index], rounded_together=True).drop.bound > limit:
                return
            yield index

    def explore(self, steps: Sequence[Step]) -> None:
        """Tries all steps, as far as the time allows; they are in `plan_trials` then."""
        for index in range(len(steps)):
            if self._plan_trials and self.is_late:
                self._workspace.warn("the time ran out before all plans were tried: raise --time-limit")
                break
            self._look(steps, index)

    @property
    def plan_trials(self) -> tuple[PlanTrial, ...]:
        """All that was looked at, the one that loses least first."""
        return tuple(sorted(self._plan_trials.values(), key=lambda found: found.loss))

    def _look(self, steps: Sequence[Step], index: int) -> Drop:
        chosen = tuple(steps[index].choices)
        if chosen in self._plan_trials:
            return self._plan_trials[chosen].drop
        limit = self._evaluator.options.drop_limit
        good = [p for p in self.plan_trials if limit is not None and p.drop.bound <= limit]
        best = min(good, key=lambda p: p.latency_s, default=None)
        said = "" if best is None else f", best so far {seconds(best.latency_s)} at a drop of {best.drop.value:.2f}"
        self._workspace.progress(f"search {self._files.fmt}{said}", len(self._plan_trials), 0)
        found = self._plan_trials[chosen] = plan_trial(self._evaluator, self._files, steps[index])
        return found.drop

    def _best(self, steps: Sequence[Step], limit: float | None) -> Found:
        """The best file of the first plans that have a good one; else the file that loses least."""
        losses: dict[Path, float] = {}
        sound: list[FileTrial] = []
        good: list[FileTrial] = []
        plans = 0
        for step in dict.fromkeys(steps):
            if self.is_late and (good or (sound and step is not steps[-1])):  # the last resort is always tried
                continue
            trials = [a for a in self._trials(step, limit) if a.sound]
            sound += trials
            losses |= {trial.path: step.loss for trial in trials}
            good += [a for a in trials if a.within(limit)]
            plans += any(a.within(limit) for a in trials)
            if plans == (FINALISTS if self._evaluator.measures_here and self._replacements.distillation is None else 1):
                break
        if not sound:
            why = "; ".join(self._workspace.warnings)
            raise ProofError(f"no {self._files.fmt} file of any plan could be written and proved: {why}")
        chosen, latency_s = self._fastest(good) if good else (_nearest_to(limit, sound), {})
        for trial in sound:
            if trial.path != chosen.path and trial.path not in self._kept:
                trial.path.unlink(missing_ok=True)
        return Found(chosen, latency_s, self.plan_trials, losses[chosen.path])

    def _fastest(self, trials: Sequence[FileTrial]) -> tuple[FileTrial, dict[str, float]]:
        if self._evaluator.aim == "size":
            return min(trials, key=lambda one: file_bytes(one.path)), {}
        named = {_name(trial): trial for trial in trials}
        if len(named) == 1 or not self._evaluator.measures_here:
            return trials[0], {}
        measured = self._evaluator.latencies({name: a.path for name, a in named.items()}, self._files.fmt)
        if self._evaluator.aim == "latency":
            return named[model.fastest(list(named), measured)], measured
        return min(trials, key=lambda one: measured[_name(one)] * file_bytes(one.path)), measured

    def _trials(self, step: Step, limit: float | None) -> Iterator[FileTrial]:
        """Files of a plan, in the order in which they are wanted; where nothing can be measured the first good one ends
        it."""
        for scheme, layers in variants(self._evaluator, self._files, step, self._rival):
            trial = self._trial(scheme, layers)
            if trial is None:
                continue
            trial = replace(trial, tables=step.tables)
            if not trial.sound:
                self._workspace.warn(f"the scheme {scheme} was dropped: {trial.failure}")
            yield trial
            if trial.sound and trial.within(limit) and not self._evaluator.measures_here:
                return

    def _trial(self, scheme: FileScheme, layers: LayerPlans) -> FileTrial | None:
        """The file of a plan, with its pairs trained where that was asked for and the file is better for it.

        None if it cannot be written."""
        plain = self._written(scheme, layers)
        outcome = None if plain is None else self._replacements.distilled(plain.layers, scheme)
        if plain is None or outcome is None:
            return plain
        trained = self._written(scheme, plain.layers, outcome) if outcome.gained else None
        if trained is not None and _better(trained, plain):
            plain.path.unlink()
            return replace(trained, distillation=outcome)
        if trained is not None:
            trained.path.unlink()
        return replace(plain, distillation=replace(outcome, kept=False))

    def _written(self, scheme: FileScheme, layers: LayerPlans, outcome: Outcome | None = None) -> FileTrial | None:
        """The file of a plan, with those layers dense that cannot be written or proved as planned.

        None if it cannot be written even so."""
        way = "untrained" if outcome is None else "trained"
        for _ in range(REPAIRS):
            self._workspace.progress(f"write {self._files.fmt} {scheme}")
            path = self._workspace.folder / f"{digest(choices(layers), str(scheme), way)[:12]}.{self._files.fmt}"
            factors = self._files.takes(self._replacements.factors(layers, scheme, outcome))
            try:
                trial = self._evaluator.file_evaluator.trial(self._files, layers, factors, scheme, path)
                failed = trial.failed_layers
            except LayerError as err:
                trial, failed = None, err.layers
            except ModelError as err:
                self._workspace.warn(f"the scheme {scheme} cannot be used here: {err.message}")
                return None
            repaired = with_dense(layers, failed, scheme)
            if repaired == layers:
                return trial
            path.unlink(missing_ok=True)
            for name, why in failed.items():
                self._workspace.warn(f"{name} stays dense in the {self._files.fmt} file: {why}")
            layers = repaired
        return trial


def _better(trained: FileTrial, plain: FileTrial) -> bool:
    """Whether a file of a plan whose pairs were trained to a smaller held-out loss loses no more on the validation
    samples for it."""
    if trained.sound != plain.sound or trained.drop is None or plain.drop is None:
        return trained.sound
    return trained.drop.bound <= plain.drop.bound


def with_dense(layers: LayerPlans, failed: Mapping[str, str], scheme: FileScheme) -> LayerPlans:
    """The plan with these layers dense, each with the reason; those that are so already stay as they are. Layers that
    have one B are dense together."""
    for layer in layers:
        if reasons := [failed[name] for name in layer.shares if name in failed]:
            failed = {**dict.fromkeys(layer.shares, reasons[0]), **failed}
    return tuple(
        replace(
            layer,
            structure=DENSE,
            ops=layer.dense,
            scheme=scheme.layers,
            lost_energy_share=0.0,
            predicted=None,
            alternative=None,
            shares=(),
            reason=f"dense {scheme.layers}: it could not be written as {name_of(layer)}: {failed[layer.layer]}",
        )
        if layer.layer in failed and not (layer.structure.is_dense and layer.scheme_in(scheme) == scheme.layers)
        else layer
        for layer in layers
    )


def name_of(layer: LayerPlan) -> str:
    """What was planned for a layer, for people."""
    factors = f"{arrangement(layer.structure)} " if layer.structure.ranks else ""
    return f"{factors}{layer.scheme or layer.structure}"


def _nearest_to(limit: float | None, trials: Sequence[FileTrial]) -> FileTrial:
    """Of files none of which is sure to keep the limit: the first, in the order in which they are wanted, that seems to
    keep it and has too few samples to tell; else the one that loses least."""
    seeming = (a for a in trials if limit is not None and a.stated is not None and a.stated.value <= limit)
    return next(seeming, None) or min(trials, key=lambda one: one.lost)


def _name(trial: FileTrial) -> str:
    """Tells the files that are compared apart, for people: scheme and ranks."""
    kept = ",".join(_kept(layer) for layer in trial.layers[:8])
    return f"{trial.path.stem} {file_label(trial.layers, trial.scheme)} {kept}"


def _kept(layer: LayerPlan) -> str:
    if layer.alternative is not None:
        return f"{layer.alternative.method} {layer.alternative.share:.3g}"
    return layer.structure.shown or "dense"


@dataclass(frozen=True)
class Planned:
    """What became of one format.

    Attributes:
        failure: the error to raise once the best attempt is written.
        corners: predicted of the chosen plan, and of what other aims would have come to; empty where nothing is known.
    """

    found: Found
    failure: BudgetError | None
    corners: tuple[Corner, ...] = ()

    @property
    def loss(self) -> float | None:
        """Predicted loss of the chosen plan: near it another format of the model is searched first."""
        return self.found.loss or None


def plan(
    evaluator: Evaluator,
    files: Writer,
    all_candidates: Sequence[LayerCandidates],
    estimates: LatencyEstimates,
    baseline: Baseline,
    *,
    deadline_s: float,
    start: float | None = None,
) -> Planned:
    """The fastest plan of a format that meets every limit; where none does, the best attempt and the error to raise.

    Args:
        deadline_s: see `Search`.
        start: predicted loss near which to look first.

    Raises:
        ModelError: weights and samples are so large that what they lose is no number.
    """
    check_losses(all_candidates)
    rest = limits.measure_rest(evaluator, files, estimates, all_candidates)
    bounds = limits.user_bounds(evaluator.options, rest)
    int8_bounds = limits.bounds_of_dense_int8(evaluator, all_candidates, baseline, bounds, rest)
    rival = baseline.scheme if evaluator.measures_here else None
    search = Search(evaluator, files, rest, deadline_s, start, rival=rival)
    try:
        return _searched(evaluator, search, all_candidates, bounds, int8_bounds, rest)
    except ProofError as err:
        evaluator.workspace.warn(err.message)
        reason = "no other file of this format could be written and proved"
        return Planned(Found(dense_instead(evaluator, files, baseline, reason), {}, search.plan_trials), None)


def _searched(
    evaluator: Evaluator,
    search: Search,
    all_candidates: Sequence[LayerCandidates],
    bounds: Bounds,
    int8_bounds: Bounds,
    rest: limits.Rest,
) -> Planned:
    """What the search comes to within the promised bounds, else within the promised size alone, else within the user's
    own bounds.

    Raises:
        ProofError: no plan could be written and proved.
    """
    progress, workers = evaluator.workspace.progress, evaluator.workspace.workers
    closest: Planned | None = None
    as_small = replace(int8_bounds, latency_s=bounds.latency_s)
    for allowed in dict.fromkeys((int8_bounds, as_small, bounds)):
        steps = make_front(
            all_candidates, evaluator.spectra, allowed, rest, progress, aim=evaluator.aim, workers=workers
        )
        if isinstance(steps, Infeasible):
            if closest is None and allowed == bounds:
                step = nearest(all_candidates, evaluator.spectra, allowed, steps)
                error = limits.infeasible(search.fmt, steps, evaluator.options, rest)
                return Planned(search.run([step], None), error)
            continue
        found = _tightened(evaluator, search, all_candidates, steps, allowed, rest)
        if found.found.trial.within(evaluator.options.drop_limit):
            return found
        if closest is None or found.found.trial.lost < closest.found.trial.lost:
            closest = found
        if search.is_late:
            evaluator.workspace.warn("the time ran out before a plan kept the budget: raise --time-limit")
            break
    if closest is None:
        raise ValueError("there is no front of plans")  # the user's own bounds gave one, or an error above
    return closest


def _tightened(
    evaluator: Evaluator,
    search: Search,
    all_candidates: Sequence[LayerCandidates],
    steps: tuple[Step, ...],
    bounds: Bounds,
    rest: limits.Rest,
) -> Planned:
    """Searches, and draws the bounds in where the file itself is over a limit that its plan was predicted to meet."""
    progress, workers = evaluator.workspace.progress, evaluator.workspace.workers
    for _ in range(TIGHTENINGS):
        found = search.run(steps, evaluator.options.drop_limit)
        over = limits.excess(evaluator, found.trial)
        if not over:
            return Planned(found, None, corners(all_candidates, planned_of(found.trial), bounds, rest, evaluator.aim))
        # From what this very plan was predicted to take: a bound with room to spare would give it again.
        drawn = {name: max(_predicted(found.trial, name) - by * (1 + MARGIN), 0) for name, by in over.items()}
        bounds = replace(bounds, **drawn)
        tighter = make_front(
            all_candidates, evaluator.spectra, bounds, rest, progress, aim=evaluator.aim, workers=workers
        )
        if isinstance(tighter, Infeasible):
            break
        steps = tighter
    return Planned(found, limits.over_limit(found.trial, over, evaluator.options))


def _predicted(trial: FileTrial, quantity: Quantity) -> float:
    """Sum over the layers and the tables."""
    plans = planned_of(trial)
    return sum(float(getattr(plan.predicted, quantity)) for plan in plans if plan.predicted is not None)


def planned_of(trial: FileTrial) -> LayerPlans:
    """All that was planned of a file."""
    return (*trial.layers, *trial.tables)


@dataclass(frozen=True)
class PlanTrial:
    """A plan that was emitted.

    Attributes:
        scheme: of the file.
        latency_s: predicted, of the linear layers.
        size_bytes: of the emitted file.
    """

    fmt: Format
    scheme: FileScheme
    layers: LayerPlans
    drop: Drop
    loss: float
    latency_s: float
    size_bytes: int
    tables: LayerPlans = ()


NARROW = 1024
"""Inputs of a layer, up to which its weights are rounded together within a second."""


def _is_pessimistic(step: Step) -> bool:
    """Whether a trial of the plan loses clearly more than its file, and the file's factors are soon made."""
    pairs = [layer for layer in step.layers if layer.structure.ranks]
    in_4_bits = any(layer.scheme is not None and layer.scheme.bits < INT8_BITS for layer in pairs)
    return in_4_bits and all(layer.dense[0].inputs <= NARROW for layer in pairs)


def plan_trial(evaluator: Evaluator, files: Writer, step: Step, *, rounded_together: bool = False) -> PlanTrial:
    """What the plan's file loses on the validation samples, with its pairs rounded to nearest or together."""
    scheme = trial_scheme(evaluator.options, files, step.layers, step.tables)
    key = [evaluator.key, evaluator.analysis.qmax, files.fmt, str(scheme), step.choices, rounded_together]
    task = Keyed(key, lambda: _Emission(evaluator, files, step.layers, scheme, rounded_together))
    drop, size_bytes = evaluator.workspace.cached(PLAN_TRIAL, task)
    return PlanTrial(files.fmt, scheme, step.layers, drop, step.loss, step.latency_s, size_bytes, step.tables)


@dataclass(frozen=True)
class _Emission:
    """A plan to be emitted in a scheme."""

    evaluator: Evaluator
    files: Writer
    layers: LayerPlans
    scheme: FileScheme
    rounded_together: bool


def _tried(task: _Emission) -> tuple[Drop, int]:
    """The drop and the size of the file."""
    evaluator, files, layers, scheme = task.evaluator, task.files, task.layers, task.scheme
    out = evaluator.workspace.folder / f"trial.{files.fmt}"
    made = evaluator.replacements.factors if task.rounded_together else evaluator.replacements.draft
    files.write(files.takes(made(layers, scheme)), scheme, out, exceptions(layers, scheme))
    drop, size = evaluator.file_evaluator.drop_of(out, files.fmt), file_bytes(out)
    out.unlink()
    return drop, size


def _packed(tried: tuple[Drop, int]) -> dict[str, Any]:
    return {"drop": asdict(tried[0]), "size_bytes": tried[1]}


def _unpacked(record: Mapping[str, Any]) -> tuple[Drop, int]:
    return Drop(**record["drop"]), record["size_bytes"]


PLAN_TRIAL = CachedStep("trials", 10, _tried, record_store(_packed, _unpacked), tools=TOOLS)
