"""Where the latency of a load rises with the working set: the caches as they answer, whatever the kernel lists."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgepack.bench.sweep import Chased

LEAST_RISE = 1.45
"""A cache below is at least that much slower; what rises less is the TLB, or noise."""
_STEEP = 1.32
"""A rise, as a factor of latency per octave: below it the curve counts as flat."""
_PAST = 1.1
"""The middle of a rise lies about that far past the size of the cache, whether its sets evict in turn or at random."""


@dataclass(frozen=True)
class Knee:
    """One rise of the latency curve.

    Attributes:
        size_bytes: the size that a cache can have (2ᵏ or 3·2ᵏ) nearest to where it rises.
        at_bytes: the working set in the middle of the rise.
        before_s, after_s: seconds per load on either side.
    """

    size_bytes: int
    at_bytes: int
    before_s: float
    after_s: float

    def agrees(self, size_bytes: int) -> bool:
        """Whether a cache of this size may be behind it: neighbours and the places of the pages blur it."""
        return size_bytes / 1.6 <= self.at_bytes <= size_bytes * 1.7


def knees(curve: Sequence[Chased]) -> tuple[Knee, ...]:
    """The rises of a latency curve, smallest working set first.

    A working set never gets faster by growing, so the curve is first brought to its lower envelope: a point that is
    slower than a larger one was disturbed. The very last point has no larger one to judge it by.
    """
    sizes = [math.log2(point.size_bytes) for point in curve]
    times = [math.log(point.calm) for point in curve]
    for index in range(len(times) - 2, -1, -1):
        times[index] = min(times[index], times[index + 1])
    return tuple(_knee(sizes, times, first, last) for first, last in _rises(sizes, times))


def _rises(sizes: Sequence[float], times: Sequence[float]) -> Iterator[tuple[int, int]]:
    """(first, last) of every run of steep steps that rises enough; one flat step inside a run does not end it."""
    steep = [
        times[i + 1] - times[i] > math.log(_STEEP) * (sizes[i + 1] - sizes[i]) for i in range(max(len(sizes) - 1, 0))
    ]
    index = 0
    while index < len(steep):
        if not steep[index]:
            index += 1
            continue
        end = index + 1
        while end < len(steep) and (steep[end] or (end + 1 < len(steep) and steep[end + 1])):
            end += 1
        if times[end] - times[index] >= math.log(LEAST_RISE) and index < len(steep) - 1:
            yield index, end
        index = end


def _knee(sizes: Sequence[float], times: Sequence[float], first: int, last: int) -> Knee:
    middle = (times[first] + times[last]) / 2
    above = next(i for i in range(first + 1, last + 1) if times[i] >= middle)
    share = (middle - times[above - 1]) / (times[above] - times[above - 1])
    at = 2 ** (sizes[above - 1] + share * (sizes[above] - sizes[above - 1]))
    return Knee(_likely(at / _PAST), round(at), math.exp(times[first]), math.exp(times[last]))


def _likely(size: float) -> int:
    whole = math.floor(math.log2(size))
    likely = [1 << whole, 3 << (whole - 1), 2 << whole]
    return min(likely, key=lambda one: abs(math.log(one / size)))
