"""What a layer costs on a target: the role of a source of costs, and the emulated table as one.

Sources in order of trust are a table measured on the device (`edgepack.cost.measured`), the emulated table of its CPU,
and a roofline of its data sheet (`edgepack.cost.roofline`); `edgepack.cost.select` chooses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Protocol, TypeVar

from edgepack.backends.schemes import DENSE_INT8
from edgepack.cost.emulated import CostTable, Level
from edgepack.cost.interpolate import interpolate_all
from edgepack.emulator.counts import Counts
from edgepack.emulator.estimate import time_bound
from edgepack.model.point import Point, is_convolution
from edgepack.model.scheme import Format, Scheme
from edgepack.targets.target import Target

Named = TypeVar("Named")

MEASURED = "measured on this machine"
STATED = "stated order of preference"

CLEARLY = 0.9
"""A measured scheme displaces a preferred one only when its latency is below this share: noise must not flip a
build."""

ROUNDS = 15
ROUND_S = 0.01
"""Of one turn of one file. What else runs on a machine takes it for milliseconds at a time: it falls on few of the
calls of a turn, and their median does not show it."""


@dataclass(frozen=True)
class LatencyEstimate:
    """What one inference of one layer takes.

    Attributes:
        latency_s: seconds, without the call of the runtime.
        source: where it comes from, for people.
        error_share: how far off it may usually be, as a share of it: for comparing estimates of one source.
        extrapolated: whether the source had to be continued beyond where it has figures.
    """

    latency_s: float
    source: str
    error_share: float
    extrapolated: bool = False


class CostSource(Protocol):
    """Answers what layers cost on one target. Only estimates of one source may be compared."""

    @property
    def name(self) -> str:
        """What it is, for people."""

    def estimates(self, points: Sequence[Point]) -> list[LatencyEstimate | None]:
        """The estimate of every point, None where the source has nothing on it."""

    def knows(self, scheme: Scheme) -> bool:
        """Whether it has figures of layers in a scheme, be it that they cannot be run."""

    def call_s(self, fmt: Format) -> float:
        """Seconds of one call of the runtime with next to nothing to compute, which no estimate contains."""


@dataclass(frozen=True)
class EmulatedCosts:
    """An emulated table as the source of costs of one target, on one thread.

    An estimate is the middle of the bounds on its time (`edgepack.emulator.estimate`). Their width is no part of its
    error: what the core makes of its instructions, it makes of all schemes and ranks alike.
    """

    table: CostTable
    target: Target

    @property
    def name(self) -> str:
        """See `CostSource`."""
        return "emulated cost table"

    def estimates(self, points: Sequence[Point]) -> list[LatencyEstimate | None]:
        """See `CostSource`: the middle of the time bounds; none where a constant of the target is not known."""
        found: list[LatencyEstimate | None] = [None] * len(points)
        alike: dict[tuple[Scheme, bool], list[int]] = {}
        for index, point in enumerate(points):
            if self.table.of(point) is not None:
                alike.setdefault((point.scheme, is_convolution(point)), []).append(index)
        for indices in alike.values():
            answers = interpolate_all(self.table, [points[index] for index in indices]) or []
            for index, one in zip(indices, answers, strict=False):
                middle = self._middle_s(one.instructions, one.misses)
                if middle is not None:
                    found[index] = LatencyEstimate(
                        middle, self.name, self._usual_error(points[index]), one.extrapolated
                    )
        return found

    def knows(self, scheme: Scheme) -> bool:
        """See `CostSource`."""
        return scheme.name in self.table.costs.get(scheme.backend, {})

    def _usual_error(self, point: Point) -> float:
        part = self.table.of(point)
        held = None if part is None else part.held_out.get(point.format, {}).get(point.scheme.name)
        if part is None or held is None:
            return 0.0
        between = held.between_batches if point.batch not in part.grid.axes[-1] else None
        return (between or held.instructions).median

    def call_s(self, fmt: Format) -> float:
        """See `CostSource`; 0 where the table lacks the format."""
        call = self.table.calls.get(fmt)
        return 0.0 if call is None else self._middle_s(call.instructions, call.misses) or 0.0

    def _middle_s(self, instructions: float, misses: Mapping[Level, float]) -> float | None:
        """Middle of the bounds on the time of these counts; None where a constant of the target is not known."""
        counts = Counts(instructions, 0.0, 0.0, {level: misses[level] for level in self.table.levels})
        bound = time_bound(counts, self.target)
        return None if isinstance(bound, str) else (bound.low_s + bound.high_s) / 2


def preferred(fmt: Format, *, calibrated: bool) -> tuple[Scheme, ...]:
    """Int8 schemes of a dense model in the stated order of preference; static schemes need calibration data."""
    return tuple(scheme for scheme in DENSE_INT8[fmt] if calibrated or not scheme.is_static)


def ordered(latency_s: Mapping[Named, float]) -> tuple[Named, ...]:
    """Schemes by their latencies, fastest first.

    A scheme goes before one that is given earlier only where it is clearly faster: latencies of layers leave out what
    the runtime does between them.
    """
    left, first = list(latency_s), []
    while left:
        first.append(fastest(left, latency_s))
        left.remove(first[-1])
    return tuple(first)


def interleaved_s(runs: Sequence[tuple[str, Callable[[], object]]]) -> dict[str, list[float]]:
    """Seconds per call by name, of `ROUNDS` rounds in which every run has its turn: the median of its calls.

    Drift of the machine falls on all alike; so does what a run leaves in the caches, for every other round goes
    backwards. Runs of the same name count by their mean.
    """
    calls = []
    for _, run in runs:
        run()
        start = time.perf_counter()
        run()
        calls.append(max(1, int(ROUND_S / max(time.perf_counter() - start, 1e-7))))
    turns: list[list[float]] = [[] for _ in runs]
    for number in range(ROUNDS):
        for at in range(len(runs))[:: -1 if number % 2 else 1]:
            turns[at].append(_median_s(runs[at][1], calls[at]))
    alike: dict[str, list[list[float]]] = {}
    for (name, _), own in zip(runs, turns, strict=True):
        alike.setdefault(name, []).append(own)
    return {name: [mean(each) for each in zip(*own, strict=True)] for name, own in alike.items()}


def _median_s(run: Callable[[], object], calls: int) -> float:
    spent = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        spent.append(time.perf_counter() - start)
    return median(spent)


def fastest(candidates: Sequence[Named], latency_s: Mapping[Named, float]) -> Named:
    """The first candidate, unless a later one measured clearly faster; the first where nothing was measured."""
    chosen = candidates[0]
    for name in candidates[1:]:
        if latency_s and latency_s[name] < CLEARLY * latency_s[chosen]:
            chosen = name
    return chosen
