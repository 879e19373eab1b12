"""How long distillation may train: so many passes over the data, or so much time."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from edgepack.errors import UsageError

_UNITS_S = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}
_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(epochs?|s|sec|min|h)\s*", re.ASCII)
_HINT = "write it as 3epochs, 90s, 10min or 1h"
_MOST_EPOCHS = 10_000


@dataclass(frozen=True)
class Epochs:
    """So many passes over the training part of the calibration data."""

    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= _MOST_EPOCHS:
            raise UsageError(f"{self.count} epochs of distillation: expected 1 … {_MOST_EPOCHS}", hint=_HINT)

    def __str__(self) -> str:
        return f"{self.count}epochs"


@dataclass(frozen=True)
class Seconds:
    """So many seconds of wall clock, evaluation included."""

    seconds: float

    def __post_init__(self) -> None:
        if not 0.0 < self.seconds < math.inf:
            raise UsageError(f"{self.seconds:g} seconds of distillation: expected more than none", hint=_HINT)

    def __str__(self) -> str:
        return f"{self.seconds:g}s"


Budget = Epochs | Seconds


def parse_budget(text: str) -> Budget:
    """`3epochs`, `90s`, `10min` or `1h`.

    Raises:
        UsageError: anything else, part of an epoch, or nothing at all.
    """
    found = _TEXT.fullmatch(text)
    if found is None:
        raise UsageError(f"cannot tell how long {text!r} is: expected a number of epochs or a time", hint=_HINT)
    number, unit = found.groups()
    if not unit.startswith("epoch"):
        return Seconds(float(number) * _UNITS_S[unit])
    if "." in number:
        raise UsageError(f"{text!r} is no whole number of epochs", hint=_HINT)
    return Epochs(int(number))
