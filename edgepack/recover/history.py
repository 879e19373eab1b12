"""What a recovery run has looked like so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One look at the held-out samples.

    Attributes:
        step: optimizer steps made before.
        stage: number of the stage, from 0.
        quantized: whether the steps before it were made with int8 rounding on.
        loss: mean training loss since the last look; NaN for the first.
        held_out: the loss on the held-out samples, with int8 rounding on where the result is to be quantized.
    """

    step: int
    stage: int
    quantized: bool
    loss: float
    held_out: float
