"""Benches a pack on several devices at once: one measurement on each, and what one fails at stops no other."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgepack.bench.packs import bench_pack
from edgepack.bench.results import BenchResult
from edgepack.bench.session import STANDARD, Settings
from edgepack.errors import EdgepackError
from edgepack.model.scheme import Format
from edgepack.pipeline.reach import Place, Reach, reached
from edgepack.workspace import Progress


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
    session: Session, places: Sequence[Place], reach: Reach, progress: Mapping[str, Progress]
) -> list[Benched]:
    """Runs a session on every device at once; each result is in the pack as soon as its device is done.

    Args:
        session: what to measure.
        places: at least one, each once.
        reach: how they are reached.
        progress: by the title of a place.
    """
    if len(places) == 1:
        return [_bench(session, places[0], reach, progress[places[0].title])]
    stop = threading.Event()

    def stoppable(tell: Progress) -> Progress:
        def told(stage: str, done: int = 0, total: int = 0) -> None:
            if stop.is_set():
                raise KeyboardInterrupt
            tell(stage, done, total)

        return told

    with ThreadPoolExecutor(len(places)) as pool:
        try:
            tasks = [pool.submit(_bench, session, one, reach, stoppable(progress[one.title])) for one in places]
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


def _bench(session: Session, place: Place, reach: Reach, progress: Progress) -> Benched:
    try:
        with reached(place, reach, progress) as device:
            result = bench_pack(
                session.pack,
                target=place.target,
                device=device,
                settings=session.settings,
                progress=progress,
                formats=session.formats,
            )
            return Benched(place, result, taken_up=device.resumed)
    except EdgepackError as err:
        return Benched(place, error=err)
