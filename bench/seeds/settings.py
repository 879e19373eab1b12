"""How long and how often: the whole, and a quick run."""

from __future__ import annotations

from dataclasses import dataclass

from edgepack.benchmark.schedule import Schedule


@dataclass(frozen=True)
class Settings:
    """Of a run.

    Attributes:
        epochs: of every training from scratch, over the digits.
        recovery: epochs of the default pairs, where the seed trains.
        seeds: of trainings that are compared, mean and deviation over them.
        ratios: of the bytes of DeepThin's layer that stay, one over these.
        schedule: of the sessions that measure files in turns.
    """

    quick: bool
    epochs: int
    recovery: int
    seeds: int
    ratios: tuple[int, ...]
    schedule: Schedule


def _schedule(processes: int, seconds: float) -> Schedule:
    return Schedule(
        processes=processes,
        warmup_runs=5,
        warmup_s=0.05,
        runs=20,
        seconds=seconds,
        cold_processes=2,
        cold_runs=20,
        memory_processes=1,
        counter_runs=10,
        retries=0,
    )


FULL = Settings(False, 25, 8, 3, (8, 16, 32, 64), _schedule(4, 0.1))
QUICK = Settings(True, 2, 1, 1, (16,), _schedule(4, 0.03))
