"""The schemas of the reports of probe and sweep: types, bounds, and texts that may be printed."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

_ARCHITECTURES = {name: name for name in ("aarch64", "armv7l", "armv6l", "riscv64", "x86_64", "i686")}
_ARCHITECTURES.update(arm64="aarch64", armv8l="armv7l", amd64="x86_64", AMD64="x86_64", i386="i686", i586="i686")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa1-\u2027\u2030-\u2065\u2070-\ud7ff]|[\u200e\u200f\u202a-\u202e]")


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
