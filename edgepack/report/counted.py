"""What a report needs to know of an emulated session. The bench gives it; neither imports the other."""

# The attributes speak for themselves and carry their units.
# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from edgepack.emulator.counts import Counts
from edgepack.model.scheme import Format


class CountedPart(Protocol):
    """A layer, or what stands between two."""

    @property
    def name(self) -> str: ...
    @property
    def layer(self) -> bool: ...
    @property
    def counts(self) -> Counts: ...


class CountedFile(Protocol):
    """One model file: `rounds` are counts of one inference each."""

    @property
    def name(self) -> str: ...
    @property
    def format(self) -> Format: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def rounds(self) -> Sequence[Counts]: ...
    @property
    def layers(self) -> Sequence[CountedPart]: ...
    @property
    def layers_missing(self) -> str | None: ...
    @property
    def agreement_db(self) -> float | None: ...


class Conditions(Protocol):
    """With what was counted; `caches` as `l1d=bytes:ways:line[:shared]`, the last level last."""

    @property
    def caches(self) -> Sequence[str]: ...
    @property
    def cpu(self) -> str: ...
    @property
    def qemu(self) -> str: ...
    @property
    def runtimes(self) -> Mapping[str, str]: ...
    @property
    def notes(self) -> Sequence[str]: ...


class CountedSession(Protocol):
    """`edgepack.bench.emulated_results.EmulatedResult` is one."""

    @property
    def model(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def emulation(self) -> Conditions: ...
    @property
    def variants(self) -> Sequence[CountedFile]: ...
