"""How long and how often to measure: the full protocol and its quick, honest-about-it sibling."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The measuring protocol in numbers.

    Attributes:
        processes: fresh processes per variant for warm latency, interleaved.
        extra_processes: added one by one to every variant, at most so many, while an interval is not narrow enough.
        extra_s: when so long has been spent on them, and on blocks that are measured again since the clock drifted,
            there are no more of either.
        narrow: width of a variant's 95 % interval, as a share of its median, at which no process is added.
        warmup_runs, warmup_s: both are reached before the clock starts.
        runs, seconds: both are reached in every process.
        cold_processes, cold_runs: the same for cold latency.
        memory_processes: fresh processes per variant and per import-only baseline.
        counter_runs: inferences per count.
        drift_limit: the share by which the clock may change within a block before the block is measured again.
        retries: how often a drifting or throttled block is measured again.
        sustained_s: how long one process per variant runs back to back, where sustained latency is asked for.
        start_below_c: temperature at which the first warm block may start.
        cool_down_s: how long to wait at most for that temperature, and before a throttled block is measured again.
    """

    processes: int
    warmup_runs: int
    warmup_s: float
    runs: int
    seconds: float
    cold_processes: int
    cold_runs: int
    memory_processes: int
    counter_runs: int
    drift_limit: float = 0.02
    retries: int = 2
    sustained_s: float = 60.0
    start_below_c: float = 75.0
    cool_down_s: float = 0.0
    extra_processes: int = 0
    extra_s: float = 20.0
    narrow: float = 0.04


# Four processes are the fewest with which Mann-Whitney can claim a difference at 5 %.
FULL = Schedule(
    processes=4,
    warmup_runs=5,
    warmup_s=0.5,
    runs=100,
    seconds=0.5,
    cold_processes=3,
    cold_runs=25,
    memory_processes=3,
    counter_runs=100,
    cool_down_s=120.0,
    extra_processes=11,
)
"""What differs from process to process is more than what a longer one averages out: many short ones tell more."""

QUICK = Schedule(
    processes=4,
    warmup_runs=3,
    warmup_s=0.05,
    runs=20,
    seconds=0.1,
    cold_processes=1,
    cold_runs=12,
    memory_processes=1,
    counter_runs=20,
    retries=1,
    sustained_s=3.0,
)
