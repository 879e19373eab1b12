"""What the plugin counted: its lines, and the counts of one inference from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from edgepack.errors import StableDeviceError

LEVELS = ("L1i", "L1d", "L2", "L3", "L4")
"""Cache levels in the plugin's order: the private first level, then the unified ones behind it."""


@dataclass(frozen=True)
class Counts:
    """Events of one inference, or of a part of one.

    Attributes:
        instructions: that the target's CPU would retire.
        accesses: reads and writes of memory, a vector access counted in parts of 8 bytes.
        bytes: read and written by them.
        misses: lines brought in by level; the levels that the target has, in the order of `LEVELS`.
    """

    instructions: float
    accesses: float
    bytes: float
    misses: Mapping[str, float]

    @property
    def last_level(self) -> str:
        """The level behind which only memory is."""
        return list(self.misses)[-1]

    def __sub__(self, other: Counts) -> Counts:
        return self._with(other, -1.0)

    def __add__(self, other: Counts) -> Counts:
        return self._with(other, 1.0)

    def __truediv__(self, divisor: float) -> Counts:
        misses = {level: value / divisor for level, value in self.misses.items()}
        return Counts(self.instructions / divisor, self.accesses / divisor, self.bytes / divisor, misses)

    def _with(self, other: Counts, sign: float) -> Counts:
        return Counts(
            self.instructions + sign * other.instructions,
            self.accesses + sign * other.accesses,
            self.bytes + sign * other.bytes,
            {level: value + sign * other.misses[level] for level, value in self.misses.items()},
        )


def read_marks(path: Path, levels: int) -> list[Counts]:
    """Totals since the start at mark 1, 2, 3 …

    Args:
        path: the plugin's file.
        levels: how many of `LEVELS` the target has.

    Raises:
        StableDeviceError: a line is missing or no line of counters.
    """
    totals: list[Counts] = []
    for line in path.read_text(errors="replace").splitlines():
        mark, *numbers = line.split(" ")
        if mark == "end":
            return totals
        if mark != str(len(totals) + 1) or len(numbers) != 4 + len(LEVELS) or not all(n.isdigit() for n in numbers):
            raise StableDeviceError(
                f"the emulator's counters are not as expected: found {line[:80]!r} as mark {len(totals) + 1}",
                hint="if the model itself marks (prctl 0x45504d4b), it cannot be counted",
            )
        instructions, accesses, size, *misses = map(int, numbers[1:])
        found = {level: float(count) for level, count in zip(LEVELS[:levels], misses[:levels], strict=True)}
        totals.append(Counts(instructions, accesses, size, found))
    raise StableDeviceError("the emulator's counters break off: the emulated process did not end by itself")


def intervals(totals: Sequence[Counts], labels: Sequence[Mapping[str, Any] | None]) -> list[tuple[int, int, Counts]]:
    """(model, runs, counts) of every labelled interval between two marks.

    Args:
        totals: at every mark.
        labels: of the runner's report: `{model, runs}` or None, one for each pair of successive marks.

    Raises:
        StableDeviceError: there are more or fewer marks than labels.
    """
    if len(totals) != len(labels) + 1:
        raise StableDeviceError(f"the emulator saw {len(totals)} marks, expected {len(labels) + 1}")
    pairs = zip(labels, totals, totals[1:], strict=False)
    return [(label["model"], label["runs"], after - before) for label, before, after in pairs if label is not None]


def per_inference(found: Sequence[tuple[int, int, Counts]], model: int) -> list[Counts]:
    """Counts of one inference, once per round: start-up, loop and marks cancel in the difference of run counts.

    Args:
        found: of `intervals`; those of a model come in pairs of n and 2n runs.
        model: index of it.
    """
    own = [(runs, counts) for index, runs, counts in found if index == model]
    return [(more - less) / (twice - runs) for (runs, less), (twice, more) in zip(own[::2], own[1::2], strict=True)]


def middle(rounds: Sequence[Counts]) -> Counts:
    """The median of every event over the rounds."""
    return Counts(
        median(counts.instructions for counts in rounds),
        median(counts.accesses for counts in rounds),
        median(counts.bytes for counts in rounds),
        {level: median(counts.misses[level] for counts in rounds) for level in rounds[0].misses},
    )
