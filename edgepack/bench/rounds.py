"""The order of a session's measurements: every variant in fresh processes, interleaved A/B/A/B."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgepack.bench.measure import (
    UNKNOWN_PACE_S,
    measure_cold,
    measure_counters,
    measure_import,
    measure_memory,
    measure_sustained,
    measure_warm,
)
from edgepack.bench.methods import Asked
from edgepack.bench.results import Block, Counter, Memory, Snapshot
from edgepack.bench.rig import Rig, cool_down
from edgepack.bench.schedule import Schedule
from edgepack.model.scheme import Format
from edgepack.workspace import Progress


@dataclass
class Entry:
    """One model file, its path on the device, and its raw values as they come in."""

    format: Format
    path: str
    warm: list[Block] = field(default_factory=list)
    cold: list[Block] = field(default_factory=list)
    sustained: list[Block] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    counters: tuple[Counter, ...] = ()
    pace_s: float = UNKNOWN_PACE_S


class Steps:
    """Counts finished processes for the progress callback."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def finished(self, what: str) -> None:
        """One more process has ended."""
        self._done += 1
        self._progress(f"bench: {what}", self._done, self._total)


def step_count(plan: Schedule, variants: int, formats: int, asked: Asked) -> int:
    """Processes of a session, those apart that are measured again."""
    memory = plan.memory_processes if asked.memory else 0
    each = memory + plan.processes + (plan.cold_processes if asked.cold else 0) + asked.counters + asked.sustained
    return memory * formats + each * variants


def measure_imports(rig: Rig, fmt: Format, steps: Steps) -> tuple[Snapshot, ...]:
    """What processes hold that only import the runtime of a format."""
    snapshots = []
    for _ in range(rig.schedule.memory_processes):
        snapshots.append(measure_import(rig, fmt))
        steps.finished("memory")
    return tuple(snapshots)


def measure_all(rig: Rig, entries: Sequence[Entry], steps: Steps, asked: Asked) -> float | None:
    """Memory comes first: it loads every model once, so that a bad one stops the session before minutes are spent.
    Sustained latency comes last, for it leaves the device hot. Gives the temperature at the first warm block.
    """
    plan = rig.schedule
    for _ in range(plan.memory_processes if asked.memory else 0):
        for entry in entries:
            memory, entry.pace_s = measure_memory(rig, entry.format, entry.path)
            entry.memory.append(memory)
            steps.finished("memory")
    started_c = rig.told.temperature_c
    if started_c is not None:
        started_c = cool_down(rig, entries[0].format, started_c)
    for round_ in range(plan.processes):
        for entry in entries:
            entry.warm += measure_warm(rig, entry.format, entry.path, round_, entry.pace_s)
            steps.finished("warm latency")
    for round_ in range(plan.cold_processes if asked.cold else 0):
        for entry in entries:
            entry.cold += measure_cold(rig, entry.format, entry.path, round_, entry.pace_s)
            steps.finished("cold latency")
    for entry in entries if asked.counters else ():
        entry.counters = measure_counters(rig, entry.format, entry.path, entry.pace_s)
        steps.finished("counters")
    for entry in entries if asked.sustained else ():
        entry.sustained.append(measure_sustained(rig, entry.format, entry.path, entry.pace_s))
        steps.finished("sustained latency")
    return started_c
