"""Results of an emulated bench: counts per inference and what they were taken with. No times: an emulator has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from edgepack.emulator.counts import Counts
from edgepack.model.scheme import Format


@dataclass(frozen=True)
class LayerCounts:
    """What one layer, or the part between two, contributes to an inference.

    Attributes:
        layer: whether it is a layer of the manifest.
    """

    name: str
    layer: bool
    counts: Counts


@dataclass(frozen=True)
class EmulatedVariant:
    """One model file.

    Attributes:
        rounds: counts of one inference, once per round.
        layers: in order of execution; empty where the model could not be taken apart, and `layers_missing` says why.
        agreement_db: signal to noise ratio of its answers against this machine's, dB, at most 200; None where the
            inputs were seeded.
    """

    name: str
    format: Format
    file: str
    size_bytes: int
    sha256: str
    rounds: tuple[Counts, ...]
    layers: tuple[LayerCounts, ...] = ()
    layers_missing: str | None = None
    agreement_db: float | None = None


@dataclass(frozen=True)
class Emulation:
    """With what was counted.

    Attributes:
        caches: the plugin's arguments: "l1d=32768:2:64" …
        cpu: QEMU's CPU model.
        runtimes: version by name.
        notes: where the emulated CPU is not the target's.
    """

    caches: tuple[str, ...]
    cpu: str
    qemu: str
    runtimes: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class EmulatedResult:
    """One emulated session: every variant of a pack on one target."""

    # Read by pydantic when a file is loaded; the classes inside inherit it.
    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "strict": True,
        "extra": "forbid",
        "allow_inf_nan": False,
        "str_max_length": 1000,
    }

    created: str
    edgepack_version: str
    model: str
    target: str
    threads: int
    inputs: str
    emulation: Emulation
    variants: tuple[EmulatedVariant, ...]
    schema_version: Literal[1] = 1
    kind: Literal["edgepack-emulated"] = "edgepack-emulated"

    @property
    def file_name(self) -> str:
        """`<target>.emulated.<threads>t.json`."""
        return f"{self.target}.emulated.{self.threads}t.json"
