"""Benches a pack on one device or several: its models against their own dense baselines, the results kept in it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgepack.backends.registry import FORMATS
from edgepack.benchmark.results import BenchResult
from edgepack.benchmark.results_file import save_result
from edgepack.benchmark.session import STANDARD, Settings, Variant, bench_variants
from edgepack.devices.browser import BrowserDevice
from edgepack.devices.connect import ConnectOptions, Place, connected
from edgepack.devices.device import Device
from edgepack.errors import EdgepackError, PackError
from edgepack.model.scheme import Format
from edgepack.pack.facts import read_facts
from edgepack.pack.folder import RESULTS, example_of
from edgepack.targets.target import Target
from edgepack.workspace import Progress

PACKED = "edgepack"
BASELINES = ("fp32", "int8")


def bench_pack(
    pack_dir: Path,
    *,
    target: Target,
    device: Device,
    settings: Settings = STANDARD,
    progress: Progress | None = None,
    formats: Sequence[Format] | None = None,
) -> BenchResult:
    """Measures `model.*` of a pack against `baseline/fp32.*` and `baseline/int8.*`, as far as they are there.

    The result is written to `results/` of the pack, over an earlier one of the same target, device, cluster, threads
    and length.

    Args:
        pack_dir: with `manifest.json`.
        target: the one that the pack is for, or the one that the device is.
        device: where to measure; the caller closes it.
        settings: what is measured, and for how long.
        progress: told of every finished process.
        formats: which to measure; by default all in the pack that the target runs.

    Raises:
        PackError: not a pack, or without a model of an asked format.
        TargetsError: the target has no runtime for a format.
        DeviceError, DataError, UsageError: see `bench_variants`.
    """
    name = read_facts(pack_dir).model_name
    variants = pack_variants(pack_dir, target, formats)
    result = bench_variants(
        variants,
        target=target,
        device=device,
        settings=settings,
        progress=progress,
        model=name,
        inputs=example_of(pack_dir),
    )
    save_result(result, pack_dir / RESULTS / result.file_name)
    return result


def pack_variants(pack_dir: Path, target: Target, formats: Sequence[Format] | None = None) -> list[Variant]:
    """The model files of a pack that a target can run: per format the packed one, dense fp32, dense int8.

    Raises:
        PackError: the pack has no model of an asked format, or none at all.
        TargetsError: the target runs none of them, or not an asked one.
    """
    there = [fmt for fmt in FORMATS if (pack_dir / f"model.{fmt}").is_file()]
    if not there:
        lacks = " and ".join(f"no model.{fmt}" for fmt in FORMATS)
        raise PackError(f"{pack_dir}: {lacks}", hint="build the pack again")
    for fmt in formats or ():
        target.require_format(fmt)
        if fmt not in there:
            raise PackError(f"{pack_dir}: no model.{fmt}; it holds {', '.join(there)}")
    chosen = [fmt for fmt in formats or there if fmt in target.formats]
    if not chosen:
        target.require_format(there[0])
    variants = []
    for fmt in chosen:
        variants.append(Variant(PACKED, fmt, pack_dir / f"model.{fmt}"))
        for precision in BASELINES:
            path = pack_dir / "baseline" / f"{precision}.{fmt}"
            if path.is_file():
                variants.append(Variant(f"dense-{precision}", fmt, path))
    return variants


@dataclass(frozen=True)
class Session:
    """What is measured on every device; see `bench_pack`."""

    pack: Path
    settings: Settings = STANDARD
    formats: Sequence[Format] | None = None


@dataclass(frozen=True)
class Benched:
    """What became of one device: its result, or the error that says why there is none.

    Attributes:
        taken_up: processes whose answers an earlier session that was cut had left on the device.
    """

    place: Place
    result: BenchResult | None = None
    error: EdgepackError | None = None
    taken_up: int = 0


def bench_places(
    session: Session, places: Sequence[Place], options: ConnectOptions, progress: Mapping[str, Progress]
) -> list[Benched]:
    """Runs a session on every device at once; each result is in the pack as soon as its device is done.

    Args:
        session: what to measure.
        places: at least one, each once.
        options: how they are reached.
        progress: by the title of a place.
    """
    if len(places) == 1:
        return [_bench(session, places[0], options, progress[places[0].title])]
    stop = threading.Event()

    def stoppable(tell: Progress) -> Progress:
        def told(stage: str, done: int = 0, total: int = 0) -> None:
            if stop.is_set():
                raise KeyboardInterrupt
            tell(stage, done, total)

        return told

    with ThreadPoolExecutor(len(places)) as pool:
        try:
            tasks = [pool.submit(_bench, session, one, options, stoppable(progress[one.title])) for one in places]
            return [task.result() for task in tasks]
        except BaseException:
            stop.set()  # the devices end after the process that they are at
            raise


def failure(found: Sequence[Benched]) -> EdgepackError | None:
    """One error that tells of every device that failed, of the kind of the first; None where all is well."""
    failed = [one for one in found if one.error is not None]
    errors = [one.error for one in failed if one.error is not None]
    if len(errors) < 2:
        return errors[0] if errors else None
    lines = [f"{len(errors)} of {len(found)} devices failed"]
    for one, error in zip(failed, errors, strict=True):
        lines.append(f"  {one.place.title}: {error.message}" + (f" ({error.hint})" if error.hint else ""))
    return type(errors[0])("\n".join(lines))


def _bench(session: Session, place: Place, options: ConnectOptions, progress: Progress) -> Benched:
    try:
        with connected(place, options, progress) as device:
            result = bench_pack(
                session.pack,
                target=place.target,
                device=device,
                settings=session.settings,
                progress=device.showing(progress) if isinstance(device, BrowserDevice) else progress,
                formats=session.formats,
            )
            return Benched(place, result, taken_up=device.resumed)
    except EdgepackError as err:
        return Benched(place, error=err)
