"""Targets: facts about a CPU, the runtimes it can run, and how to reach it.

The facts come from the shipped `targets.yaml` with a user's own file merged over it. `host` is this machine, probed
live. Sizes are bytes, frequencies MHz, bandwidths GB/s (10^9 bytes per second).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgepack.backends.registry import FORMATS
from edgepack.errors import TargetsError
from edgepack.model.scheme import Format

HOST = "host"
Source = Literal["reference", "estimate", "probed"]


@dataclass(frozen=True)
class Cache:
    """One cache: how big, how many ways (None: unknown), and who shares it."""

    size_bytes: int
    shared: Literal["core", "cluster", "all"]
    ways: int | None = None
    line_bytes: int = 64
    source: Source = "reference"


@dataclass(frozen=True)
class Bandwidth:
    """Streaming read bandwidth, GB/s: the range seen."""

    low_gb_s: float
    high_gb_s: float
    source: Source = "reference"


@dataclass(frozen=True)
class Ipc:
    """Instructions per cycle: what the core sustains where the code suits it ill, and the most that it can issue."""

    low: float
    high: float
    source: Source = "estimate"


@dataclass(frozen=True)
class Cluster:
    """Cores of one kind. A cache that the CPU lacks, or that nobody has documented, is None."""

    name: str
    core: str
    cores: int
    frequency_mhz: int | None = None
    frequency_source: Source = "reference"
    ipc: Ipc | None = None
    L1d: Cache | None = None
    L1i: Cache | None = None
    L2: Cache | None = None
    L3: Cache | None = None
    read: Bandwidth | None = None
    read_all_cores: Bandwidth | None = None

    @property
    def data_caches(self) -> tuple[Cache, ...]:
        """The caches that data pass through, smallest level first."""
        return tuple(cache for cache in (self.L1d, self.L2, self.L3) if cache is not None)


@dataclass(frozen=True)
class KnownBad:
    """A version of a runtime that fails on the target."""

    runtime: str
    version: str
    reason: str


@dataclass(frozen=True)
class Target:
    """One CPU with its runtimes. The first cluster is the one that inference runs on.

    Attributes:
        ram_bytes: the smallest variant sold; `ram_max_bytes` the largest, None where there is only one.
        runtimes: format → PyPI name of the runtime that serves it; empty where the CPU has none.
        no_runtime_reason: why `runtimes` lacks a format, for the error message.
        hosts: where such devices are reached, `user@host`.
    """

    name: str
    description: str
    arch: str
    isa: tuple[str, ...]
    clusters: tuple[Cluster, ...]
    ram_bytes: int
    ram_max_bytes: int | None = None
    system_cache: Cache | None = None
    runtimes: Mapping[Format, str] = field(default_factory=dict)
    no_runtime_reason: str | None = None
    known_bad: tuple[KnownBad, ...] = ()
    hosts: tuple[str, ...] = ()

    @property
    def main_cluster(self) -> Cluster:
        """The cores that inference runs on."""
        return self.clusters[0]

    @property
    def cores(self) -> int:
        """All cores of all clusters."""
        return sum(cluster.cores for cluster in self.clusters)

    @property
    def formats(self) -> tuple[Format, ...]:
        """The formats that the target has a runtime for."""
        return tuple(fmt for fmt in FORMATS if fmt in self.runtimes)

    @property
    def last_level_cache_bytes(self) -> int | None:
        """Size of the largest data cache, None where no cache is known."""
        caches = [cache for cluster in self.clusters for cache in cluster.data_caches]
        if self.system_cache is not None:
            caches.append(self.system_cache)
        return max((cache.size_bytes for cache in caches), default=None)

    def require_format(self, fmt: Format) -> str:
        """PyPI name of the runtime that serves `fmt`.

        Raises:
            TargetsError: the target has no runtime for it.
        """
        if fmt in self.runtimes:
            return self.runtimes[fmt]
        has = f"it runs {', '.join(self.formats)}" if self.formats else "it runs no format"
        reason = f": {self.no_runtime_reason}" if self.no_runtime_reason else ""
        raise TargetsError(
            f"target {self.name} cannot run {fmt} ({has}){reason}",
            hint=f"ask for {', '.join(self.formats)} instead" if self.formats else "choose another target",
        )


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a targets file. `target`, `key` and `line` are None where they do not apply."""

    message: str
    target: str | None = None
    key: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        where = [f"line {self.line}"] if self.line is not None else []
        if self.target is not None:
            where.append(f"target {self.target}")
        if self.key:
            where.append(self.key)
        return ": ".join([*where, self.message])


def suggestion(word: str, known: Iterable[str]) -> str:
    """`did you mean "rpi4"?`, or an empty string where nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f'did you mean "{near[0]}"?' if near else ""
