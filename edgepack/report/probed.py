"""A probed device for people: the targets file it makes, and a picture of its bandwidth and its caches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from edgepack.report.tables import plain_table
from edgepack.targets import Target
from edgepack.targets_entry import size_text, targets_file_text

if TYPE_CHECKING:
    from rich.console import Group

BARS = "▁▂▃▄▅▆▇█"
HEADERS = ("working set", "GB/s, 1 thread", "GB/s, all cores", "ns per load", "")

Record = Mapping[str, Any]


def render_entry(target: Target, record: Record) -> str:
    """A targets file with this target: good as it stands, with what a person should know of it in comments.

    Args:
        target: that was probed.
        record: of `edgepack.pipeline.probed.Probed.record`.
    """
    return targets_file_text(target, list(_comments(record)))


def _comments(record: Record) -> Iterator[str]:
    shipped = record["shipped"]
    if shipped is None:
        yield "no shipped target has this architecture and core"
    elif not record["differences"]:
        yield f"no difference that matters from {_named(record)}"
    for difference in record["differences"]:
        what = f"{difference['key']}: {difference['shipped']}, found {difference['found']}"
        yield f"differs from {_named(record)}: {what}"
    for note in record["notes"]:
        yield f"note: {note}"


def _named(record: Record) -> str:
    """`the shipped rpi4`, and that it is a guess where nobody said so."""
    return f"the shipped {record['shipped']}" + (", which it seems to be" if record["guessed"] else "")


def render_sweep(record: Record) -> Group:
    """For every cluster a line of each curve, a row per octave of a thread's working set, and where latency rises.

    Args:
        record: of `edgepack.pipeline.probed.Probed.record`.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    for one in record["swept"]:
        parts += [Text(line) for line in _headings(one)]
        parts.append(plain_table(HEADERS, _rows(one), right=HEADERS[:4]))
    return Group(*parts)


def _headings(one: Record) -> Iterator[str]:
    sweep = one["sweep"]
    cpus = ", ".join(map(str, sweep["cpus"])) or "any"
    clock = f"{sweep['clock_hz'] / 1e9:.3f} GHz" if sweep["clock_hz"] else "clock not measured"
    yield f"{one['cluster']}: CPUs {cpus}, {clock}, measured in {sweep['seconds']:.0f} s"
    curves = [
        ("read, 1 thread", _rates(sweep, 1)),
        (f"read, {sweep['threads']} threads", _rates(sweep, sweep["threads"]) if sweep["threads"] > 1 else {}),
        ("latency", {point["size_bytes"]: _calm(point["load_s"]) for point in sweep["latency"]}),
    ]
    for title, curve in curves:
        if curve:
            yield f"  {title:<16} {sparkline(list(curve.values()))} {size_text(min(curve))} to {size_text(max(curve))}"


def sparkline(values: Sequence[float]) -> str:
    """A bar per positive value, on a logarithmic scale from the least to the greatest."""
    logs = [math.log(value) for value in values]
    low, span = min(logs), max(logs) - min(logs)
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] if span else BARS[0] for value in logs)


def _rows(one: Record) -> Iterator[tuple[str, ...]]:
    """Powers of two; a rise of the latency stands beside the last working set below it."""
    sweep = one["sweep"]
    single = _rates(sweep, 1)
    every = _rates(sweep, sweep["threads"]) if sweep["threads"] > 1 else {}
    loads = {point["size_bytes"]: _calm(point["load_s"]) for point in sweep["latency"]}
    sizes = sorted(size for size in {*single, *every, *loads} if size & (size - 1) == 0)
    for size, following in zip(sizes, [*sizes[1:], math.inf], strict=True):
        rises = [_rise(knee["at_bytes"]) for knee in one["knees"] if size <= knee["at_bytes"] < following]
        cells = [
            f"{curve[size] * scale:.3g}" if size in curve else ""
            for curve, scale in ((single, 1e-9), (every, 1e-9), (loads, 1e9))
        ]
        yield (size_text(size), *cells, ", ".join(rises))


def _rise(at_bytes: int) -> str:
    unit, shift = ("M", 20) if at_bytes >= 1 << 20 else ("K", 10)
    return f"latency rises at {at_bytes / (1 << shift):.3g}{unit}"


def _rates(sweep: Record, threads: int) -> dict[int, float]:
    return {read["size_bytes"]: median(read["bytes_per_s"]) for read in sweep["reads"] if read["threads"] == threads}


def _calm(loads: Sequence[float]) -> float:
    """The second fastest repeat, as the search for rises takes it."""
    return sorted(loads)[min(1, len(loads) - 1)]
