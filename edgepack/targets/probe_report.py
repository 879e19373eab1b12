"""The runner's probe report as it may be: what a device says of itself is held against its types before it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from edgepack.errors import StableDeviceError
from edgepack.validation import plain_text, printable


def _only_printable(text: str) -> str:
    if not printable(text):
        raise ValueError("it holds control characters")
    return text


Name = Annotated[str, Field(max_length=1000), AfterValidator(_only_printable)]
"""What tells one device from another: nothing is made of it that was not sent."""
Words = Annotated[str, Field(max_length=1000), AfterValidator(plain_text)]
"""What is only shown, such as the last line of a program that failed."""
CpuNumber = Annotated[int, Field(ge=0, lt=65536)]
Count = Annotated[int, Field(gt=0, le=65536)]
Bytes = Annotated[int, Field(gt=0, le=1 << 50)]
SomeBytes = Annotated[int, Field(ge=0, le=1 << 50)]
Celsius = Annotated[float, Field(gt=-300, lt=2000, allow_inf_nan=False)]


class Strict(BaseModel):
    """A part of a report. New fields may come without a new version of it."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Cpu(Strict):
    """An online CPU."""

    cpu: CpuNumber
    core: Name
    max_khz: Annotated[int, Field(gt=0, le=20_000_000)] | None
    governor: Name | None = None


class Cache(Strict):
    """A cache, once, with the CPUs that share it."""

    level: Annotated[int, Field(ge=0, le=9)] | None
    type: Name
    size_bytes: Bytes
    ways: Annotated[int, Field(ge=0, le=65536)] | None
    line_bytes: Annotated[int, Field(ge=0, le=65536)] | None
    cpus: Annotated[list[CpuNumber], Field(max_length=65536)]


class Runtime(Strict):
    """A runtime that is installed; `imports` is None where that was not tried."""

    version: Name | None
    imports: bool | None
    error: Words | None = None


class Counters(Strict):
    """Whether the kernel lets programs count events of the CPU."""

    available: bool = False
    reason: Words | None = None


class ProbeReport(Strict):
    """Of `runner.py probe`, as far as anything here reads it; see runtimes/CONTRACT.md."""

    machine: Annotated[Name, Field(min_length=1)]
    device_model: Name
    cpu_model: Name
    features: Annotated[list[Name], Field(max_length=2000)]
    cpus: Annotated[list[Cpu], Field(max_length=4096)]
    allowed_cpus: Annotated[list[CpuNumber], Field(max_length=65536)] = []
    caches: Annotated[list[Cache], Field(max_length=20_000)]
    ram_bytes: SomeBytes
    available_bytes: SomeBytes | None = None
    temperature_c: Celsius | None = None
    kernel: Name = ""
    libc: Name = ""
    python: Name = ""
    runtimes: Annotated[dict[Name, Runtime], Field(max_length=20)]
    counters: Counters | None = None


def checked_report(report: Mapping[str, Any], device: str, kind: type[BaseModel] = ProbeReport) -> dict[str, Any]:
    """What a report says, and nothing that its type does not name, with texts that a terminal shows and never
    obeys.

    Args:
        report: as the device sent it.
        device: its name, for messages.
        kind: of report.

    Raises:
        StableDeviceError: a field is missing, of another type, or beyond what a machine can have.
    """
    from pydantic import ValidationError

    try:
        return kind.model_validate(dict(report)).model_dump()
    except (ValueError, TypeError) as err:
        told = str(err)
        if isinstance(err, ValidationError):
            first = err.errors(include_url=False)[0]
            found = "" if first["type"] == "missing" else f" (found {repr(first['input'])[:60]})"
            told = f"{'.'.join(map(str, first['loc']))[:100]}: {first['msg']}{found}"
        raise StableDeviceError(
            f"{device}: the probe report is not as expected: {plain_text(told)}",
            hint="push the runner to the device again: it is of another edgepack version, or not what it claims",
        ) from err
