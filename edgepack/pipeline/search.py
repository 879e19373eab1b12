"""Finds the plan of one format: the fastest within the budget, by emitting files and measuring what they lose."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from edgepack.cache import digest
from edgepack.errors import ModelError, ProofError
from edgepack.metrics import Drop
from edgepack.model.scheme import FileScheme
from edgepack.pipeline.attempt import Attempt
from edgepack.pipeline.files import ModelFiles
from edgepack.pipeline.ladder import Choice, LayerPlans, Step
from edgepack.pipeline.probing import Probe, beside_code, probe
from edgepack.pipeline.task import Task
from edgepack.plan import cost
from edgepack.plan.file_scheme import base_scheme, file_label
from edgepack.plan.search import climb, within
from edgepack.types import LayerPlan
from edgepack.units import seconds

FINALISTS = 3
"""Plans that are compared by measuring their files where the target is this machine."""

REACH = (4.0, 2.0)
"""Training may take back most of a drop: plans that lose so many times the limit without it are tried first, each
trained in turn until one is within the limit."""


@dataclass(frozen=True)
class Found:
    """What the search in one format came to.

    Attributes:
        attempt: the file.
        latency_s: seconds per inference of the files that were compared on this machine, by scheme and rank; empty for
            a target that is not this machine.
        probes: all that was looked at, the one that loses least first.
    """

    attempt: Attempt
    latency_s: dict[str, float]
    probes: tuple[Probe, ...]


class Search:
    """One search in one format."""

    def __init__(self, task: Task, files: ModelFiles, deadline_s: float, start: float | None = None) -> None:
        """`deadline_s` is by `time.monotonic`; `start` a loss near which to look first."""
        self._task, self._files, self._deadline_s, self._start = task, files, deadline_s, start
        self._probes: dict[tuple[Choice, ...], Probe] = {}

    def run(self, steps: Sequence[Step], limit: float | None) -> Found:
        """The fastest of the steps whose file meets the limit; else the one that loses least.

        Args:
            steps: of the ladder, the one that loses least first; at least one.
            limit: largest drop, None for no limit: then the fastest step is taken unprobed.

        Raises:
            ProofError: no plan could be written and proved.
        """
        if limit is None or not self._task.prover.guard.guarded:
            return self._best([steps[-1], steps[0]], None)
        drops = self._climb(steps, limit)
        order = self._ordered(steps, within(drops, limit))
        if not order:  # then the closest that was seen
            order = [min(drops, key=lambda i: (drops[i].value, i))]
        if self._task.recovery is not None:
            wider = [limit * reach for reach in REACH]
            order = [i for far in wider for i in self._ordered(steps, within(self._climb(steps, far), far))[:1]] + order
        # The plan that loses least is the last resort, in a scheme or a format that loses more than its probe.
        return self._best([steps[i] for i in [*order, 0]], limit)

    def _ordered(self, steps: Sequence[Step], indices: Iterable[int]) -> list[int]:
        """The fastest first, or the smallest, as the task aims."""
        order = ("size_bytes", "latency_s") if self._task.aim == "size" else ("latency_s", "size_bytes")
        return sorted(indices, key=lambda i: tuple(getattr(steps[i], name) for name in order))

    def _climb(self, steps: Sequence[Step], limit: float) -> dict[int, Drop]:
        start = None if self._start is None else sum(step.loss <= self._start for step in steps) - 1
        return climb(len(steps), partial(self._look, steps), limit, start=start, deadline_s=self._deadline_s)

    def explore(self, steps: Sequence[Step]) -> None:
        """Probes all steps, as far as the time allows; they are in `probes` then."""
        for index in range(len(steps)):
            if self._probes and time.monotonic() >= self._deadline_s:
                self._task.warn("the time ran out before all plans were probed: raise --search-minutes")
                break
            self._look(steps, index)

    @property
    def probes(self) -> tuple[Probe, ...]:
        """All that was looked at, the one that loses least first."""
        return tuple(sorted(self._probes.values(), key=lambda found: found.loss))

    def _look(self, steps: Sequence[Step], index: int) -> Drop:
        choices = tuple(steps[index].choices)
        if choices in self._probes:
            return self._probes[choices].drop
        limit = self._task.options.drop_limit
        good = [p for p in self.probes if limit is not None and p.drop.value <= limit]
        best = min(good, key=lambda p: p.latency_s, default=None)
        said = "" if best is None else f", best so far {seconds(best.latency_s)} at a drop of {best.drop.value:.2f}"
        self._task.progress(f"search {self._files.fmt}{said}", len(self._probes), 0)
        found = self._probes[choices] = probe(self._task, self._files, steps[index])
        return found.drop

    def _best(self, steps: Sequence[Step], limit: float | None) -> Found:
        """The best file of the first plans that have a good one; else the file that loses least."""
        sound: list[Attempt] = []
        good: list[Attempt] = []
        plans = 0
        for step in dict.fromkeys(steps):
            attempts = [a for a in self._attempts(step, limit) if a.sound]
            sound += attempts
            good += [a for a in attempts if a.within(limit)]
            plans += any(a.within(limit) for a in attempts)
            if plans == (FINALISTS if self._task.measures_here and self._task.recovery is None else 1):
                break
        if not sound:
            raise ProofError(
                f"no {self._files.fmt} file of any plan could be written and proved: {'; '.join(self._task.warnings)}"
            )
        chosen, latency_s = self._fastest(good) if good else (min(sound, key=lambda a: a.lost), {})
        for attempt in sound:
            if attempt.path != chosen.path:
                attempt.path.unlink(missing_ok=True)
        return Found(chosen, latency_s, self.probes)

    def _fastest(self, attempts: Sequence[Attempt]) -> tuple[Attempt, dict[str, float]]:
        if self._task.aim == "size":
            return min(attempts, key=lambda one: one.path.stat().st_size), {}
        named = {_name(attempt): attempt for attempt in attempts}
        if len(named) == 1 or not self._task.measures_here:
            return attempts[0], {}
        measured = self._task.latencies({name: a.path for name, a in named.items()}, self._files.fmt)
        return named[cost.fastest(list(named), measured)], measured

    def _attempts(self, step: Step, limit: float | None) -> Iterator[Attempt]:
        """Files of a plan, in the order in which they are wanted; where nothing can be measured the first good one ends
        it."""
        for scheme, layers in self._variants(step.layers):
            self._task.progress(f"emit {self._files.fmt} {scheme}")
            factors = self._files.takes(self._task.factors(layers, scheme))
            path = self._task.work / f"{digest(step.choices, str(scheme))[:12]}.{self._files.fmt}"
            try:
                attempt = self._task.prover.attempt(self._files, layers, factors, scheme, path)
            except ModelError as err:
                self._task.warn(f"the scheme {scheme} cannot be used here: {err.message}")
                continue
            if not attempt.sound:
                self._task.warn(f"the scheme {scheme} was dropped: {attempt.failure}")
            yield attempt
            if attempt.sound and attempt.within(limit) and not self._task.measures_here:
                return

    def _variants(self, layers: LayerPlans) -> Iterator[tuple[FileScheme, LayerPlans]]:
        """Ways to write a file of the plan: with its other weights, and in schemes that only whole files have."""
        base = base_scheme(layers, beside_code(self._task.options, self._files))
        for file in self._files.rest(base):
            yield file, layers
        for scheme in self._files.file_schemes:
            own = {layer.scheme or scheme for layer in layers}
            if all(each.bits == scheme.bits and not each.is_constexpr for each in own):
                yield FileScheme.of(scheme), tuple(replace(layer, scheme=scheme) for layer in layers)


def _name(attempt: Attempt) -> str:
    """Tells the files that are compared apart, for people: scheme and ranks."""
    kept = ",".join(_kept(layer) for layer in attempt.layers[:8])
    return f"{attempt.path.stem} {file_label(attempt.layers, attempt.scheme)} {kept}"


def _kept(layer: LayerPlan) -> str:
    if layer.alternative is not None:
        return f"{layer.alternative.method} {layer.alternative.share:.3g}"
    return "dense" if layer.rank is None else str(layer.rank)
