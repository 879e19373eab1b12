"""Every figure of a pack beside the base's, and which of them have grown too much. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from edgepack.benchmark.results import LayerCounts
from edgepack.check.figures import FileFigures, PackFigures
from edgepack.check.latency import Latency
from edgepack.check.thresholds import Thresholds

INSTRUCTIONS_NOISE = 250.0
MISSES_NOISE = 200.0
"""Events by which two counts of one file, or of one place of a layer, may differ: growth by fewer is no finding,
whatever share of the base's it is."""

What = Literal["size", "instructions", "misses", "drop", "latency"]
"""Which threshold holds."""

COUNTED: frozenset[What] = frozenset(("instructions", "misses"))


@dataclass(frozen=True)
class Change:
    """One figure.

    Attributes:
        file: its name in the pack.
        part: a layer, or what stands between two; None for the whole file.
        what: of the thresholds.
        figure: its name: `size_bytes`, `instructions`, `L1d_misses`, `drop`, `latency_s` …
        base, own: raw values; None where it is not known.
        growth: own over base less one, of the drop the difference; None where either is not known.
        allowed: the threshold.
        over: whether it has grown by more.
        why: it is over where no growth tells.
    """

    file: str
    part: str | None
    what: What
    figure: str
    base: float | None
    own: float | None
    growth: float | None
    allowed: float
    over: bool
    why: str = ""

    @property
    def better(self) -> bool:
        """Whether it has shrunk by more than it may grow."""
        return self.growth is not None and self.growth < -self.allowed


def changes(
    own: PackFigures, base: PackFigures, thresholds: Thresholds, latencies: Sequence[Latency] = ()
) -> Iterator[Change]:
    """Every figure that both have, file by file: the whole first, then its parts; and what the base alone has.

    Args:
        own: of the pack.
        base: of the same formats.
        thresholds: by how much each may grow.
        latencies: where they were measured.
    """
    measured = {one.format: one for one in latencies}
    for earlier in base.files:
        file = own.file(earlier.format)
        if file is None:
            yield _gone(earlier, thresholds.size)
            continue
        yield _size(file, earlier, thresholds.size)
        if own.metric == base.metric and earlier.drop is not None:
            yield _drop(file, earlier, thresholds.drop)
        if earlier.format in measured:
            yield _latency(file, measured[earlier.format], thresholds.latency)
        yield from _counts(file, earlier, thresholds)


def notes(own: PackFigures, base: PackFigures) -> Iterator[str]:
    """What was not held against the base, and why."""
    if own.metric != base.metric:
        yield f"the drops are of two metrics, {base.metric or 'none'} and {own.metric or 'none'}: they are not compared"
    if own.emulation is not None and own.inputs != base.inputs:
        yield "the base was counted with other example inputs"
    for file in own.files:
        earlier = base.file(file.format)
        if earlier is None:
            yield f"{file.name}: the base has no such file"
            continue
        for whose, one in (("", file), ("the base's ", earlier)):
            if one.layers_missing:
                yield f"{whose}{one.name} was counted as a whole alone: {one.layers_missing}"
        if file.layers and earlier.layers:
            for said, some, others in (("new", file, earlier), ("gone", earlier, file)):
                names = sorted({part.name for part in some.layers} - {part.name for part in others.layers})
                if names:
                    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                    yield f"{file.name}: parts that are {said}: {', '.join(names[:5])}{more}"


def least(some: Sequence[Change], others: Sequence[Change]) -> list[Change]:
    """Of the same figures counted twice those that have grown less: errors of counting come by chance, and go."""
    known = {(one.file, one.part, one.figure): one for one in others}

    def less(one: Change) -> Change:
        other = known.get((one.file, one.part, one.figure), one)
        return other if (other.growth or 0.0) < (one.growth or 0.0) else one

    return [less(one) if one.what in COUNTED else one for one in some]


def over(found: Iterable[Change]) -> list[Change]:
    """Those that have grown too much, layers before the files that they are in, and instructions before misses: what a
    layer leaves in the caches is felt by the next one."""
    return sorted(
        (one for one in found if one.over), key=lambda one: (one.file, one.part is None, one.what == "misses")
    )


def _gone(earlier: FileFigures, allowed: float) -> Change:
    why = "the pack has no such file any more"
    return Change(earlier.name, None, "size", "size_bytes", earlier.size_bytes, None, None, allowed, True, why)


def _size(file: FileFigures, earlier: FileFigures, allowed: float) -> Change:
    before, now = earlier.size_bytes, file.size_bytes
    growth = now / max(before, 1) - 1
    return Change(file.name, None, "size", "size_bytes", before, now, growth, allowed, growth > allowed)


def _drop(file: FileFigures, earlier: FileFigures, allowed: float) -> Change:
    if file.drop is None or earlier.drop is None:
        why = "nothing says what the file loses: it was built without data"
        return Change(file.name, None, "drop", "drop", earlier.drop, None, None, allowed, True, why)
    growth = file.drop - earlier.drop
    return Change(file.name, None, "drop", "drop", earlier.drop, file.drop, growth, allowed, growth > allowed)


def _latency(file: FileFigures, found: Latency, allowed: float) -> Change:
    """Over where the test sees a difference and its whole interval is beyond the threshold."""
    seen = found.comparison
    surely = seen.speedup if seen.high is None else seen.high
    over = seen.verdict == "slower" and surely < 1 / (1 + allowed)
    return Change(
        file.name, None, "latency", "latency_s", found.base_s, found.own_s, 1 / seen.speedup - 1, allowed, over
    )


def _counts(file: FileFigures, earlier: FileFigures, thresholds: Thresholds) -> Iterator[Change]:
    if file.counts is None or earlier.counts is None:
        return
    own, base = (
        LayerCounts(one.name, False, counts) for one, counts in ((file, file.counts), (earlier, earlier.counts))
    )
    yield from _of_part(file.name, None, own, base, thresholds)
    before = {(part.name, part.layer): part for part in earlier.layers}
    for part in file.layers:
        if (part.name, part.layer) in before:
            yield from _of_part(file.name, part.name, part, before[part.name, part.layer], thresholds)


def _of_part(
    file: str, part: str | None, own: LayerCounts, base: LayerCounts, thresholds: Thresholds
) -> Iterator[Change]:
    """Instructions, and misses of every level that holds data; those of the first level for instructions are the
    runtime's own."""
    places = max(own.places, base.places)

    def change(what: What, figure: str, before: float, now: float, noise: float) -> Change:
        allowed = thresholds.instructions if what == "instructions" else thresholds.misses
        growth = (now - before) / max(before, 1.0)
        over = growth > allowed and now - before > noise * places
        return Change(file, part, what, figure, before, now, growth, allowed, over)

    before, now = base.counts, own.counts
    yield change("instructions", "instructions", before.instructions, now.instructions, INSTRUCTIONS_NOISE)
    for level in sorted(set(now.misses) & set(before.misses) - {"L1i"}):
        yield change("misses", f"{level}_misses", before.misses[level], now.misses[level], MISSES_NOISE)
