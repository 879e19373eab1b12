"""The time that counts of an emulated target stand for, as one number."""

from __future__ import annotations

from edgepack import Target
from edgepack.benchmark.results import EmulatedVariant
from edgepack.emulator.counts import middle
from edgepack.emulator.estimate import time_bound


def counted_s(variant: EmulatedVariant, target: Target) -> float:
    """Seconds of one inference: the middle of the time bound of its median round.

    Raises:
        ValueError: what the bound takes is not known of the target.
    """
    bound = time_bound(middle(variant.rounds), target)
    if isinstance(bound, str):
        raise ValueError(bound)
    return (bound.low_s + bound.high_s) / 2
