"""What a layer costs on a target, and which form is fast there, by the best source at hand.

In order of trust: a latency measured on this machine, where it is the target; the emulated table of the target's CPU; a
stated order of preference.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from edgepack.emulator.counts import Counts
from edgepack.emulator.estimate import time_bound
from edgepack.plan.interpolate import interpolate
from edgepack.plan.table import CostTable, Deviation, HeldOut, Level, Point
from edgepack.targets import Target
from edgepack.types import Format

PREFERENCE: Mapping[tuple[Format, bool], tuple[str, ...]] = {
    ("onnx", True): ("int8-static-qdq", "int8-dynamic"),
    ("onnx", False): ("int8-dynamic", "int8-static-qdq"),
    ("tflite", True): ("int8-dynamic-range", "int8-static"),
    ("tflite", False): ("int8-dynamic-range", "int8-static"),
}
"""Int8 forms by (format, any layer factored), fastest first. Source: instructions per inference of one 1024×1024 layer,
rank 128, counted in each runtime's own aarch64 kernels on an emulated Cortex-A72: ONNX Runtime dense 399 k dynamic,
441 k static; pair 180 k dynamic, 115 k static; LiteRT dense 444 k and pair 170 k dynamic-range."""

MEASURED = "measured on this machine"
STATED = "stated order of preference"

CLEARLY = 0.9
"""A measured form displaces a preferred one only when its latency is below this share: noise must not flip a build."""

ROUNDS = 15
ROUND_S = 0.02


@dataclass(frozen=True)
class Cost:
    """One inference of a layer, or of several.

    Attributes:
        instructions: that the CPU executes, without those of the call of the runtime.
        misses: lines brought in by cache level.
        low_s, high_s: bounds on its time, None where a constant of the target is not known.
        source: where it comes from.
        error: what is known of how far off it may be, for people; empty where nothing is.
        error_share: the median of that error as a share of the instructions, 0 where it is not known.
        extrapolated: whether the source had to be continued beyond where it has figures.
    """

    instructions: float
    misses: Mapping[str, float]
    low_s: float | None
    high_s: float | None
    source: str
    error: str
    error_share: float
    extrapolated: bool

    @property
    def rank_by(self) -> float:
        """What costs of one target are compared by: the middle of the time bounds, else instructions."""
        if self.low_s is None or self.high_s is None:
            return self.instructions
        return (self.low_s + self.high_s) / 2


class CostSource(Protocol):
    """Answers what layers cost on one target."""

    @property
    def name(self) -> str:
        """What it is, for people."""

    def cost(self, points: Iterable[Point]) -> Cost | None:
        """The sum over layers; None where it has nothing on one of them."""


@dataclass(frozen=True)
class EmulatedCosts:
    """An emulated table as the source of costs of one target, on one thread."""

    table: CostTable
    target: Target

    @property
    def name(self) -> str:
        """See `CostSource`."""
        return "emulated cost table"

    def cost(self, points: Iterable[Point]) -> Cost | None:
        """See `CostSource`; no layers cost nothing."""
        wanted = list(points)
        found = [interpolate(self.table, point) for point in wanted]
        known = [one for one in found if one is not None]
        if len(known) < len(found):
            return None
        misses: dict[str, float] = {level: sum(one.misses[level] for one in known) for level in self.table.levels}
        counts = Counts(sum(one.instructions for one in known), 0.0, 0.0, misses)
        bound = time_bound(counts, self.target)
        low, high = (None, None) if isinstance(bound, str) else (bound.low_s, bound.high_s)
        last = self.table.levels[-1]
        held, deviation = self._error_of(wanted)
        return Cost(
            *(counts.instructions, counts.misses, low, high),
            source=self.name,
            error="" if held is None else _error(deviation, held.misses.get(last), last),
            error_share=deviation.median,
            extrapolated=any(one.extrapolated for one in known),
        )

    def _error_of(self, points: Iterable[Point]) -> tuple[HeldOut | None, Deviation]:
        """The held-out layers of the form that is interpolated worst, and their error in instructions."""
        worst: tuple[HeldOut | None, Deviation] = None, Deviation(0, 0.0, 0.0)
        for fmt, form, batch in {(point.format, point.form, point.batch) for point in points}:
            held = self.table.held_out.get(fmt, {}).get(form)
            if held is not None:
                between = held.between_batches if batch not in self.table.grid.batches else None
                deviation = between or held.instructions
                if worst[0] is None or deviation.p90 > worst[1].p90:
                    worst = held, deviation
        return worst


def _error(instructions: Deviation, misses: Deviation | None, last: Level) -> str:
    parts = [f"instructions {_shares(instructions)}"]
    parts += [f"{last} misses {_shares(misses)}"] if misses is not None else []
    return f"interpolation error (median, 90th percentile): {'; '.join(parts)}"


def _shares(deviation: Deviation) -> str:
    return f"{100 * deviation.median:.1f} %, {100 * deviation.p90:.1f} %"


def preferred(fmt: Format, *, factored: bool, calibrated: bool) -> tuple[str, ...]:
    """Int8 forms of a format in the stated order of preference; static forms need calibration data."""
    forms = PREFERENCE[fmt, factored]
    return forms if calibrated else tuple(form for form in forms if "static" not in form)


def ordered(costs: Mapping[str, Cost | None]) -> tuple[str, ...] | None:
    """Forms by their costs, cheapest first; None where one of them has no cost.

    A form goes before one that is given earlier only where it is clearly cheaper: costs leave out what the runtime does
    between the layers.
    """
    known = {form: found.rank_by for form, found in costs.items() if found is not None}
    if len(known) < len(costs):
        return None
    left, first = list(known), []
    while left:
        first.append(fastest(left, known))
        left.remove(first[-1])
    return tuple(first)


def clearly_dearer(one: Cost, other: Cost) -> bool:
    """Whether `one` costs more than `other` by more than noise and the source's usual error can explain.

    The usual and not the largest error: what a table gets most wrong, a batch or a side between the kernels' tiles, it
    gets wrong for a layer and its pair alike.
    """
    return one.rank_by > other.rank_by * max(1 / CLEARLY, 1 + one.error_share, 1 + other.error_share)


def interleaved_latency_s(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds per call of each run, in turns, so that drift of the machine falls on all alike."""
    calls: dict[str, int] = {}
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        calls[name] = max(1, int(ROUND_S / max(time.perf_counter() - start, 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                run()
            samples[name].append((time.perf_counter() - start) / calls[name])
    return {name: median(values) for name, values in samples.items()}


def fastest(candidates: Sequence[str], latency_s: Mapping[str, float]) -> str:
    """The first candidate, unless a later one measured clearly faster; the first where nothing was measured."""
    chosen = candidates[0]
    for name in candidates[1:]:
        if latency_s and latency_s[name] < CLEARLY * latency_s[chosen]:
            chosen = name
    return chosen
