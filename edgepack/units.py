"""Figures in words: sizes, times, counts, shares and ratios for people, the same in every rendering."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

NONE = "–"
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~#])")
EXACT_DB = 200.0
SAME = 0.01
"""Counts this close are alike: no more is repeatable."""
NOTHING = 1e-9
"""Shares that are rounding errors of their own computation."""


class Speedup(Protocol):
    """A latency against another one, judged by a test."""

    @property
    def speedup(self) -> float:
        """The other's latency over this one's; above 1 is faster."""

    @property
    def verdict(self) -> str:
        """ "faster", "slower" or "no difference"."""


class Fewer(Protocol):
    """Counts against another file's."""

    @property
    def instructions(self) -> float:
        """The other's over this one's; above 1 is fewer."""


def three(value: float) -> str:
    """Three significant digits without an exponent."""
    magnitude = abs(value)
    if magnitude >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if magnitude >= 9.995 else f"{value:.2f}"


def size(value: int) -> str:
    """Bytes in powers of 1000: `812 B`, `64.2 kB`, `1.63 MB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= 0.9995 * scale:
            return f"{three(value / scale)} {unit}"
    return f"{value} B"


def binary(size_bytes: int) -> str:
    """Bytes in powers of 1024, as caches and memories are named: `512`, `32K`, `1.5M`, `8G`."""
    for unit, shift in (("G", 30), ("M", 20), ("K", 10)):
        if size_bytes >= 1 << shift:
            return f"{size_bytes / (1 << shift):.3g}{unit}"
    return str(size_bytes)


def seconds(value: float) -> str:
    """`48.2 µs`, `1.24 ms`, `2.10 s`."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= 0.9995 * scale:
            return f"{three(value / scale)} {unit}"
    return f"{three(value / 1e-9)} ns"


def span(low: float, high: float) -> str:
    """Seconds from one to the other, `6.1–24 µs`: two digits or the whole number, in the unit of the larger."""
    units = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))
    unit, scale = next((pair for pair in units if high >= 0.995 * pair[1]), units[-1])
    first, last = _two(low / scale), _two(high / scale)
    return f"{last} {unit}" if first == last else f"{first}–{last} {unit}"


def _two(value: float) -> str:
    if value >= 9.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 0.995 else f"{value:.2g}"


def count(value: float) -> str:
    """`812`, `12.3 k`, `1.05 M`."""
    for unit, scale in ((" M", 1e6), (" k", 1e3)):
        if value >= 0.9995 * scale:
            return three(value / scale) + unit
    return f"{value:.0f}"


def misses(value: float) -> str:
    """A count; below one is noise, and shows as 0."""
    return count(value) if value >= 1 else "0"


def signed(value: float) -> str:
    """A count that may be below zero, as a remainder may."""
    return f"-{count(-value)}" if value <= -0.5 else count(max(value, 0.0))


def ratio(value: Speedup | None) -> str:
    """`12.1× faster`; where the test saw none, "no difference"."""
    if value is None:
        return NONE
    if value.verdict == "no difference":
        return value.verdict
    times = value.speedup if value.verdict == "faster" else 1.0 / value.speedup
    return f"{times:.2f}× {value.verdict}" if times < 10 else f"{times:.1f}× {value.verdict}"


def fewer(value: Fewer | None) -> str:
    """`3.9× fewer instr.`; within one percent "as many instr."."""
    if value is None:
        return NONE
    if abs(value.instructions - 1) <= SAME:
        return "as many instr."
    times, word = (value.instructions, "fewer") if value.instructions > 1 else (1 / value.instructions, "more")
    return f"{three(times) if times < 2 else _two(times)}× {word} instr."


def score(value: float) -> str:
    """A metric, or a difference of two, in its own unit: `97.60`, `-0.03`, never `-0.00`."""
    return f"{round(value, 2) + 0.0:.2f}"


def change(value: float) -> str:
    """The same with its sign: `+0.40`."""
    return f"{round(value, 2) + 0.0:+.2f}"


def agreement(value: float) -> str:
    """`84 dB`; "exact" where the answers are equal."""
    return "exact" if value >= EXACT_DB else f"{value:.0f} dB"


def lost(shares: Sequence[float | None]) -> str:
    """Shares of a layer's output energy, one for each way to lose it, None for no way: `8.2e-03 + 7.3e-06 + 0`."""
    return " + ".join(f"{share:.1e}" if share > NOTHING else "0" for share in shares if share is not None)


def drift(first_s: float, last_s: float, end_c: float | None) -> str:
    """`4.80 µs → 6.10 µs at 78 °C`: latency at the beginning and at the end of a long run."""
    heat = "" if end_c is None else f" at {end_c:.0f} °C"
    return f"{seconds(first_s)} → {seconds(last_s)}{heat}"


def bandwidth(low: float, high: float) -> str:
    """Bytes a second as GB/s without the unit: `3.7–4.4`."""
    low, high = low / 1e9, high / 1e9
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def markdown(text: str) -> str:
    """Text with the signs escaped that mean something in markdown."""
    return _MARKDOWN.sub(r"\\\1", text)
