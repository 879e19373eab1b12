"""Which step trains what, and how fast."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

EARLY_SHARE = 0.4
"""Of all steps, for the stages before the one in which all layers are thin."""

LOOKS = 20
LOOK_BATCHES = 2
"""Steps between two looks for every batch that is held out, at least: looking takes a tenth of the time or so."""

WARM_UP_SHARE = 0.05
LAST_RATE = 0.02
LAYERS_PER_STAGE = 6
MOST_STAGES = 4


@dataclass(frozen=True)
class Schedule:
    """The plan of a run.

    Attributes:
        total: optimizer steps.
        starts: the first step of each stage.
        every: steps between two looks at the held-out samples.
    """

    total: int
    starts: tuple[int, ...]
    every: int

    def stage(self, step: int) -> int:
        """The number of the stage that a step belongs to."""
        return bisect_right(self.starts, step) - 1

    def rate(self, step: int) -> float:
        """Share of the peak learning rate: a cosine over all steps, with a warm-up at the start of every stage."""
        cosine = 0.5 * (1.0 + math.cos(math.pi * step / self.total))
        warm_up = max(1.0, WARM_UP_SHARE * self.total)
        since = step - self.starts[self.stage(step)] + 1
        return (LAST_RATE + (1.0 - LAST_RATE) * cosine) * min(1.0, since / warm_up)


def make_schedule(total: int, stages: int, *, held_out: int = 0) -> Schedule:
    """Divide `total` ≥ 1 steps among the stages.

    Stages that get no step are passed over; the last one, in which all layers train, always has the last steps.

    Args:
        total: optimizer steps.
        stages: how many, at least one.
        held_out: batches that are held out.
    """
    early = EARLY_SHARE * total / max(stages - 1, 1)
    starts = tuple(min(round(early * stage), total - 1) for stage in range(stages))
    return Schedule(total, starts, max(1, total // LOOKS, LOOK_BATCHES * held_out))


def stage_sizes(layers: int) -> tuple[int, ...]:
    """How many layers, from the input on, are thin in each stage: 30 → (8, 15, 23, 30)."""
    stages = max(1, min(MOST_STAGES, layers // LAYERS_PER_STAGE))
    return tuple(math.ceil(layers * (stage + 1) / stages) for stage in range(stages))
