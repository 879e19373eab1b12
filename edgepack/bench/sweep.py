"""What a device says of itself, judged at the door: the reports of the probe and of the sweep come from a stranger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from edgepack.errors import StableDeviceError

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True)
class Read:
    """Bandwidth over one working set.

    Attributes:
        size_bytes: the buffer of one thread.
        threads: how many read at once, each a buffer of its own.
        bytes_per_s: of all threads together, one figure a repeat.
    """

    size_bytes: int
    threads: int
    bytes_per_s: tuple[float, ...]

    @property
    def total_bytes(self) -> int:
        """The buffers of all threads."""
        return self.size_bytes * self.threads

    @property
    def typical(self) -> float:
        """Median of the repeats, bytes per second."""
        return median(self.bytes_per_s)


@dataclass(frozen=True)
class Chased:
    """Latency of a load over one working set: seconds, one figure a repeat."""

    size_bytes: int
    load_s: tuple[float, ...]

    @property
    def calm(self) -> float:
        """The second fastest repeat, seconds: what disturbs it makes it slower, and the very first may find more in a
        cache than belongs there."""
        return sorted(self.load_s)[min(1, len(self.load_s) - 1)]


@dataclass(frozen=True)
class Sweep:
    """One sweep, see runtimes/CONTRACT.md.

    Attributes:
        clock_hz: the fastest clock seen; None where the device runs no machine code.
        code_unavailable: why it runs none.
        reader: `loads` (machine code) or `memchr` (the C library).
        drift: the largest relative change of the clock over a block that was kept in spite of it; 0 for none.
        load_average: of the last minute before it started.
    """

    cpus: tuple[int, ...]
    threads: int
    clock_hz: float | None
    code_unavailable: str | None
    reader: str
    reads: tuple[Read, ...]
    latency: tuple[Chased, ...]
    drift: float
    load_average: float | None
    seconds: float


def sweep_from_report(report: Mapping[str, Any], device: str) -> Sweep:
    """The report of the sweep.

    Args:
        report: of `sweep.py`.
        device: its name, for messages.

    Raises:
        StableDeviceError: a field is missing, of another type, or beyond what a machine can do.
    """
    from edgepack.bench.sweep_schema import SweepReport

    found: Any = _judged(SweepReport, report, f"{device}: the sweep's report")
    drifts = [
        max(block.clock_hz) / min(block.clock_hz) - 1
        for block in found.blocks
        if block.drifted and None not in block.clock_hz
    ]
    return Sweep(
        cpus=tuple(found.cpus),
        threads=found.threads,
        clock_hz=found.clock_hz,
        code_unavailable=found.code_unavailable,
        reader=found.reader,
        reads=tuple(Read(point.bytes, point.threads, tuple(point.bytes_per_s)) for point in found.bandwidth),
        latency=tuple(Chased(point.bytes, tuple(point.load_s)) for point in found.latency),
        drift=max(drifts, default=0.0),
        load_average=found.load_average,
        seconds=found.seconds,
    )


def checked_probe(report: Mapping[str, Any], device: str) -> dict[str, Any]:
    """What `edgepack.host.target_from_probe` reads of a probe report, and nothing else, with printable texts.

    Args:
        report: of the runner's mode `probe`.
        device: its name, for messages.

    Raises:
        StableDeviceError: a field is missing, of another type, or beyond what a machine can have.
    """
    from edgepack.bench.sweep_schema import ProbeReport

    return dict(_judged(ProbeReport, report, f"{device}: the probe's report").model_dump())


def _judged(model: type[BaseModel], report: Mapping[str, Any], what: str) -> BaseModel:
    from pydantic import ValidationError

    try:
        return model.model_validate(dict(report))
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        path = ".".join(map(str, first["loc"]))[:100]
        found = "" if first["type"] == "missing" else f" (found {repr(first['input'])[:60]})"
        raise StableDeviceError(
            f"{what} is not as expected: {path}: {first['msg']}{found}",
            hint="the programs on the device are of another edgepack version, or the machine is not what it claims",
        ) from err
