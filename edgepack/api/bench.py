"""`edgepack.bench` and `edgepack.compare`: packs measured or counted, and side by side."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TypedDict, Unpack

from edgepack.api.given import given_formats
from edgepack.api.progress import Wanted, heard
from edgepack.api.results import Comparison, Pack, open_pack
from edgepack.api.target import load_target
from edgepack.benchmark.emulate import emulate_pack
from edgepack.benchmark.pack import Session, bench_places, failure
from edgepack.benchmark.session import Settings
from edgepack.devices.connect import ConnectOptions, places
from edgepack.errors import UsageError
from edgepack.pack.facts import read_facts
from edgepack.report.comparison import compare_packs, compare_results, rows_of_emulated
from edgepack.targets.target import Target

GivenPack = str | PathLike[str] | Pack


class BenchKeywords(TypedDict, total=False):
    """How it is measured, as `edgepack bench` has it."""

    formats: str | Sequence[str]
    threads: int
    quick: bool
    cold: bool
    sustained: bool
    install: bool
    emulate: bool


def bench(
    pack: GivenPack,
    target: str | Target | None = None,
    *,
    host: str | None = None,
    serial: str | None = None,
    progress: Wanted = True,
    **how: Unpack[BenchKeywords],
) -> Comparison:
    """Measure a pack against its dense fp32 and dense int8 baselines, in turns; results go into the pack.

    Args:
        pack: from `build`, or its folder.
        target: what the device is; None for the pack's own.
        host: of a device over SSH, `pi@raspberrypi.local`; None for this machine.
        serial: of a device over adb.
        progress: see `build`.
        **how: `formats`, `threads`, `quick` and less certain, `cold` caches as well, `sustained` for a minute,
            `install` edgepack's environment on the device first, or `emulate`: count in the emulator instead.

    Raises:
        PackError: it is no pack.
        DeviceError: the device cannot be reached, or fails.
        UsageError, TargetsError: what was asked for does not go together, or there is no such target.
    """
    folder = _folder(pack)
    facts = read_facts(folder)
    chosen = load_target(facts.target_name if target is None else target)
    asked = how.get("formats")
    formats = None if asked is None else given_formats(asked)
    settings = Settings(
        how.get("threads", 1), how.get("quick", False), how.get("cold", True), how.get("sustained", False)
    )
    with heard(progress) as told:
        if how.get("emulate", False):
            if host is not None or serial is not None:
                raise UsageError("emulate counts on this machine: leave host and serial out")
            counted = emulate_pack(folder, target=chosen, threads=settings.threads, formats=formats, progress=told)
            return Comparison((), tuple(rows_of_emulated(counted, facts, chosen)))
        hosts, serials = ([one] if one is not None else [] for one in (host, serial))
        options = ConnectOptions(hosts, serials, local=not hosts and not serials, install=how.get("install", False))
        (place,) = places([chosen], options)
        benched = bench_places(Session(folder, settings, formats), [place], options, {place.title: told})
    if (error := failure(benched)) is not None:
        raise error
    compared = compare_results([one.result for one in benched if one.result is not None], folder)
    return Comparison(compared.rows, compared.emulated, sources=compared.sources)


def compare(packs: Sequence[GivenPack], *, targets_file: str | PathLike[str] | None = None) -> Comparison:
    """All measured and counted results of some packs, side by side.

    Raises:
        PackError: one is no pack, has no model, or holds a result that cannot be used.
        TargetsError: the targets file cannot be used.
    """
    compared = compare_packs([_folder(pack) for pack in packs], None if targets_file is None else Path(targets_file))
    return Comparison(compared.rows, compared.emulated, compared.unmeasured, compared.sources)


def _folder(pack: GivenPack) -> Path:
    return pack.path if isinstance(pack, Pack) else open_pack(pack).path
