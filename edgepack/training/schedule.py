"""When the weight in effect, α W + (1 − α) A B, moves from the dense weight to the factors.

The schedule is that of Google Research's matrix compression operator (Panigrahy, "Matrix Compression Operator",
TensorFlow blog, 2020): α is 1 up to `begin_step`, where the factors are made once, and from there sinks by
`alpha_decrement` every `frequency` steps until it is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from edgepack.errors import UsageError

_ROUNDING = 1e-9
"""1 − k·d need not be exactly 0 where k·d should be 1."""


class ScheduleOptions(TypedDict):
    """The fields of `Schedule`, as keyword arguments."""

    begin_step: int
    frequency: NotRequired[int]
    alpha_decrement: NotRequired[float]


@dataclass(frozen=True)
class Schedule:
    """A schedule, counted in optimizer steps done.

    Attributes:
        begin_step: steps before the factors are made.
        frequency: steps between two decrements of α.
        alpha_decrement: how much α sinks at each.

    Raises:
        UsageError: a value that makes no schedule.
    """

    begin_step: int
    frequency: int = 10
    alpha_decrement: float = 0.01

    def __post_init__(self) -> None:
        for name, least in (("begin_step", 0), ("frequency", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UsageError(f"{name}={value!r}: a whole number of at least {least} was expected")
        if not 0 < self.alpha_decrement <= 1:
            raise UsageError(f"alpha_decrement={self.alpha_decrement!r}: expected more than 0 and at most 1")

    @property
    def end_step(self) -> int:
        """The first step at which α is 0."""
        return self.begin_step + self.frequency * math.ceil((1 - _ROUNDING) / self.alpha_decrement)

    def alpha(self, step: int) -> float:
        """α after `step` optimizer steps; a function of the step alone, so that resumed runs agree to the bit."""
        if step < self.begin_step:
            return 1.0
        alpha = 1.0 - (step - self.begin_step) // self.frequency * self.alpha_decrement
        return alpha if alpha > _ROUNDING else 0.0
