"""Measured latency of a pack and its base: file after file in turns, in one session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepack.benchmark.pack import PACKED, pack_variants
from edgepack.benchmark.results import latencies
from edgepack.benchmark.session import Settings, Variant, bench_variants
from edgepack.benchmark.stats import Comparison, compare, summarize
from edgepack.devices.connect import ConnectOptions, Place, connected
from edgepack.model.scheme import Format
from edgepack.pack.folder import example_of
from edgepack.workspace import Progress

BASE = "base"


@dataclass(frozen=True)
class Measuring:
    """Where and how latency is measured."""

    place: Place
    options: ConnectOptions
    quick: bool = False


@dataclass(frozen=True)
class Latency:
    """One format on one device: seconds, medians over processes, and what the test says of their difference."""

    format: Format
    base_s: float
    own_s: float
    comparison: Comparison


def measure(
    pack: Path, base: Path, measuring: Measuring, formats: Sequence[Format] | None, progress: Progress
) -> list[Latency]:
    """Latencies of the model files that both packs have, one thread, warm caches.

    Raises:
        PackError, TargetsError: see `pack_variants`.
        DeviceError, DataError, UsageError: see `bench_variants`.
    """
    target = measuring.place.target
    own = {one.format: one for one in pack_variants(pack, target, formats) if one.name == PACKED}
    variants = []
    for fmt, variant in own.items():
        earlier = base / variant.path.name
        if earlier.is_file():
            variants += [variant, Variant(BASE, fmt, earlier)]
    if not variants:
        return []
    with connected(measuring.place, measuring.options, progress) as device:
        result = bench_variants(
            variants,
            target=target,
            device=device,
            settings=Settings(quick=measuring.quick, cold=False),
            progress=progress,
            inputs=example_of(pack),
        )
    found = {(one.format, one.name): latencies(one.warm) for one in result.variants}
    return [
        Latency(
            fmt,
            summarize(found[fmt, BASE]).median,
            summarize(found[fmt, PACKED]).median,
            compare(found[fmt, PACKED], found[fmt, BASE]),
        )
        for fmt in own
        if (fmt, BASE) in found
    ]
