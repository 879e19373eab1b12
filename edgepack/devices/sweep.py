"""What a device says of itself, judged at the door: the reports of the probe and of the sweep come from a stranger."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from edgepack.errors import StableDeviceError

_ARCHITECTURES = {name: name for name in ("aarch64", "armv7l", "armv6l", "riscv64", "x86_64", "i686")}
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa1-\u2027\u2030-\u2065\u2070-\ud7ff]|[\u200e\u200f\u202a-\u202e]")

LEAST_RISE = 1.45
"""A cache below is at least that much slower; what rises less is the TLB, or noise."""
_STEEP = 1.32
"""A rise, as a factor of latency per octave: below it the curve counts as flat."""
_PAST = 1.1
"""The middle of a rise lies about that far past the size of the cache, whether its sets evict in turn or at random."""


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
    """What `edgepack.targets.probe.target_from_probe` reads of a probe report, and nothing else, with printable texts.

    Args:
        report: of the runner's mode `probe`.
        device: its name, for messages.

    Raises:
        StableDeviceError: a field is missing, of another type, or beyond what a machine can have.
    """

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


_ARCHITECTURES.update(arm64="aarch64", armv8l="armv7l", amd64="x86_64", AMD64="x86_64", i386="i686", i586="i686")


def _printable(text: str) -> str:
    return " ".join(_UNPRINTABLE.sub(" ", text).split())


def _architecture(text: str) -> str:
    if text not in _ARCHITECTURES:
        raise ValueError(f"expected one of {', '.join(_ARCHITECTURES)}")
    return _ARCHITECTURES[text]


Text = Annotated[str, Field(max_length=300), AfterValidator(_printable)]
Machine = Annotated[str, Field(max_length=20), AfterValidator(_architecture)]
CpuNumber = Annotated[int, Field(ge=0, lt=65536)]
Count = Annotated[int, Field(gt=0, le=65536)]
Bytes = Annotated[int, Field(gt=0, le=1 << 50)]
Hertz = Annotated[float, Field(gt=1e6, lt=2e10, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, lt=1e5, allow_inf_nan=False)]
Rates = Annotated[
    list[Annotated[float, Field(gt=1e3, lt=1e14, allow_inf_nan=False)]], Field(min_length=1, max_length=99)
]
Loads = Annotated[
    list[Annotated[float, Field(gt=1e-11, lt=1, allow_inf_nan=False)]], Field(min_length=1, max_length=99)
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)  # new fields may come without a new version


class _Read(_Strict):
    bytes: Bytes
    threads: Count
    bytes_per_s: Rates


class _Chased(_Strict):
    bytes: Bytes
    load_s: Loads


class _Block(_Strict):
    clock_hz: Annotated[list[Hertz | None], Field(min_length=2, max_length=2)]
    drifted: bool


class SweepReport(_Strict):
    """Of `sweep.py`."""

    cpus: Annotated[list[CpuNumber], Field(max_length=65536)]
    threads: Count
    clock_hz: Hertz | None
    code_unavailable: Text | None
    reader: Literal["loads", "memchr"]
    bandwidth: Annotated[list[_Read], Field(min_length=1, max_length=500)]
    latency: Annotated[list[_Chased], Field(max_length=128)]
    blocks: Annotated[list[_Block], Field(max_length=500)]
    load_average: Annotated[float, Field(ge=0, lt=1e6, allow_inf_nan=False)] | None
    seconds: Seconds

    @model_validator(mode="after")
    def _whole(self) -> SweepReport:
        for threads in {1, self.threads}:
            sizes = [point.bytes for point in self.bandwidth if point.threads == threads]
            if not sizes or sizes != sorted(set(sizes)):
                raise ValueError(f"bandwidth: expected rising sizes for threads {threads}")
        sizes = [point.bytes for point in self.latency]
        if sizes != sorted(set(sizes)):
            raise ValueError("latency: expected rising sizes")
        return self


class _Cpu(_Strict):
    cpu: CpuNumber
    core: Text
    max_khz: Annotated[int, Field(gt=0, le=20_000_000)] | None


class _Cache(_Strict):
    level: Annotated[int, Field(gt=0, le=9)] | None
    type: Annotated[str, Field(max_length=20)]
    size_bytes: Bytes
    ways: Count | None
    line_bytes: Literal[16, 32, 64, 128, 256] | None
    cpus: Annotated[list[CpuNumber], Field(max_length=65536)]


class _Runtime(_Strict):
    version: Text | None
    imports: bool | None


class ProbeReport(_Strict):
    """Of `runner.py probe`, as far as a target is made of it."""

    machine: Machine
    device_model: Text
    cpu_model: Text
    features: Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=2000)]
    cpus: Annotated[list[_Cpu], Field(min_length=1, max_length=4096)]
    allowed_cpus: Annotated[list[CpuNumber], Field(max_length=65536)]
    caches: Annotated[list[_Cache], Field(max_length=20_000)]
    ram_bytes: Bytes
    runtimes: Annotated[dict[Annotated[str, Field(max_length=100)], _Runtime], Field(max_length=20)]

    @model_validator(mode="after")
    def _once(self) -> ProbeReport:
        if len({cpu.cpu for cpu in self.cpus}) != len(self.cpus):
            raise ValueError("cpus: the same CPU twice")
        return self


@dataclass(frozen=True)
class Knee:
    """One rise of the latency curve.

    Attributes:
        size_bytes: the size that a cache can have (2ᵏ or 3·2ᵏ) nearest to where it rises.
        at_bytes: the working set in the middle of the rise.
        before_s, after_s: seconds per load on either side.
    """

    size_bytes: int
    at_bytes: int
    before_s: float
    after_s: float

    def agrees(self, size_bytes: int) -> bool:
        """Whether a cache of this size may be behind it: neighbours and the places of the pages blur it."""
        return size_bytes / 1.6 <= self.at_bytes <= size_bytes * 1.7


def knees(curve: Sequence[Chased]) -> tuple[Knee, ...]:
    """The rises of a latency curve, smallest working set first.

    A working set never gets faster by growing, so the curve is first brought to its lower envelope: a point that is
    slower than a larger one was disturbed. The very last point has no larger one to judge it by.
    """
    sizes = [math.log2(point.size_bytes) for point in curve]
    times = [math.log(point.calm) for point in curve]
    for index in range(len(times) - 2, -1, -1):
        times[index] = min(times[index], times[index + 1])
    return tuple(_knee(sizes, times, first, last) for first, last in _rises(sizes, times))


def _rises(sizes: Sequence[float], times: Sequence[float]) -> Iterator[tuple[int, int]]:
    """(first, last) of every run of steep steps that rises enough; one flat step inside a run does not end it."""
    steep = [
        times[i + 1] - times[i] > math.log(_STEEP) * (sizes[i + 1] - sizes[i]) for i in range(max(len(sizes) - 1, 0))
    ]
    index = 0
    while index < len(steep):
        if not steep[index]:
            index += 1
            continue
        end = index + 1
        while end < len(steep) and (steep[end] or (end + 1 < len(steep) and steep[end + 1])):
            end += 1
        if times[end] - times[index] >= math.log(LEAST_RISE) and index < len(steep) - 1:
            yield index, end
        index = end


def _knee(sizes: Sequence[float], times: Sequence[float], first: int, last: int) -> Knee:
    middle = (times[first] + times[last]) / 2
    above = next(i for i in range(first + 1, last + 1) if times[i] >= middle)
    share = (middle - times[above - 1]) / (times[above] - times[above - 1])
    at = 2 ** (sizes[above - 1] + share * (sizes[above] - sizes[above - 1]))
    return Knee(_likely(at / _PAST), round(at), math.exp(times[first]), math.exp(times[last]))


def _likely(size: float) -> int:
    whole = math.floor(math.log2(size))
    likely = [1 << whole, 3 << (whole - 1), 2 << whole]
    return min(likely, key=lambda one: abs(math.log(one / size)))
