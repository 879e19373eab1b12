"""Which source estimates what a build's layers take: the most trusted that knows them all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgepack.backends.schemes import DENSE_INT8
from edgepack.cost.emulated import table_for
from edgepack.cost.measured import Fingerprint, MeasuredTable, fingerprint, known_measured, tables_of
from edgepack.cost.model import CostSource, EmulatedCosts, LatencyEstimate
from edgepack.cost.roofline import ERROR_SHARE, Roofline, roofline
from edgepack.model.layer import WEIGHT
from edgepack.model.point import Point, linear_point
from edgepack.model.scheme import Format, Scheme, scheme_of
from edgepack.model.structure import DENSE, low_rank
from edgepack.targets.probe import probe_host
from edgepack.targets.target import HOST, Target

Shape = tuple[int, int, int]
"""Outputs, inputs, and rows that one inference multiplies."""


def dense_int8(fmt: Format, shapes: Iterable[Shape]) -> list[Point]:
    """The dense int8 layer of every shape: the points that a source needs before it may estimate a model."""
    return [
        linear_point(DENSE_INT8[fmt][0], rows, columns, None, batch) for rows, columns, batch in dict.fromkeys(shapes)
    ]


def cost_source(
    target: Target, fmt: Format, points: Sequence[Point], threads: int = 1, root: Path | None = None
) -> CostSource:
    """The most trusted source that knows all of these points; there always is one.

    One source estimates all candidates of a format: what is measured and what a data sheet says do not compare. Schemes
    that the chosen source lacks are no candidates.

    Args:
        target: whose layers they are.
        fmt: of the points.
        points: that have to be known: `dense_int8` of the model's shapes.
        threads: of the inference.
        root: the cache folder, by default the user's.

    Raises:
        InputError: the emulated table is damaged.
        StableDeviceError: the target is this machine and the probe does not run here.
    """
    for source in _trusted(target, fmt, threads, root):
        if None not in source.estimates(points):
            return source
    return roofline(target, threads)


def _trusted(target: Target, fmt: Format, threads: int, root: Path | None) -> Iterator[CostSource]:
    """Measured tables, the latest first, then the emulated one, which knows one thread."""
    yield from (table for table in measured_tables(target, threads, root) if fmt in table.calls)
    table = table_for(target) if threads == 1 else None
    if table is not None:
        yield EmulatedCosts(table, target)


def measured_tables(target: Target, threads: int, root: Path | None = None) -> list[MeasuredTable]:
    """Tables that were measured on devices like the target, the latest first; of `host` only on this very machine."""
    if target.name == HOST:
        known = known_measured(HOST, host_fingerprint(), threads, root)
        return [] if known is None else [known]
    return [table for table in tables_of(target.name, threads, root) if _alike(target, table.fingerprint)]


def _alike(target: Target, device: Fingerprint) -> bool:
    """A target of the same name may have been redefined since."""
    return device.arch == target.arch and set(target.isa) <= set(device.isa)


@cache
def host_fingerprint() -> Fingerprint:
    """This machine with the runtimes of this Python.

    Raises:
        StableDeviceError: the probe does not run here.
    """
    probed = probe_host()
    return fingerprint(probed, {fmt: f"{name} {_version(name)}" for fmt, name in probed.runtimes.items()})


def _version(name: str) -> str:
    for distribution in (name, f"{name}-nightly"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "?"


def estimates_of(source: CostSource, points: Sequence[Point], sheet: Roofline) -> list[LatencyEstimate | None]:
    """As `CostSource.estimates`, with what the source has nothing on put together or estimated.

    Corrected layers are the sum of their parts: it leaves out the Add of the two products, and counts what a runtime
    does around one matrix once too often. A scheme that the source does not know is estimated by the one that it names
    (`Scheme.estimated_like`), and the estimate says so.

    Args:
        source: of the estimates.
        points: to estimate.
        sheet: of the same target: by how much it tells the two schemes apart, the estimate is changed.
    """
    found = source.estimates(points)
    unknown = [index for index, estimate in enumerate(found) if estimate is None]
    corrected = [index for index in unknown if points[index].structure.is_correction]
    if corrected:
        answers = estimates_of(source, [part for index in corrected for part in _parts(points[index])], sheet)
        for index, dense, pair in zip(corrected, answers[::2], answers[1::2], strict=True):
            if dense is not None and pair is not None:
                found[index] = together((dense, pair))
    likes = {index: like for index in unknown if (like := _like(source, points[index])) is not None}
    known = source.estimates(list(likes.values())) if likes else []
    for (index, like), estimate in zip(likes.items(), known, strict=True):
        if estimate is not None:
            found[index] = _estimated(estimate, like.scheme, sheet.latency_s(points[index]) / sheet.latency_s(like))
    return found


def _like(source: CostSource, point: Point) -> Point | None:
    """The layer by which one is estimated that is in a scheme unknown to the source; None where there is none."""
    like = point.scheme.estimated_like
    if like is None or point.structure.is_correction or source.knows(point.scheme):
        return None
    return replace(point, scheme=like)


def _estimated(known: LatencyEstimate, scheme: Scheme, times: float) -> LatencyEstimate:
    source = f"{known.source}, estimated from {scheme}"
    return LatencyEstimate(known.latency_s * times, source, max(known.error_share, ERROR_SHARE), extrapolated=True)


def _parts(point: Point) -> tuple[Point, Point]:
    """The dense matrix and the factors beside it, as layers of their own."""
    thin = tuple(replace(op, corrects=False) for op in point.ops if op.corrects)
    base = tuple(op for op in point.ops if not op.corrects)
    factors = Point(scheme_of(point.ops[0], point.scheme), low_rank(point.structure.ranks[0]), thin)
    return Point(point.scheme, DENSE, tuple(replace(op, role=WEIGHT) for op in base)), factors


def together(estimates: Sequence[LatencyEstimate]) -> LatencyEstimate:
    """The estimate of several layers one after the other, as uncertain as the least certain of them."""
    return LatencyEstimate(
        sum(one.latency_s for one in estimates),
        " and ".join(dict.fromkeys(one.source for one in estimates)),
        max(one.error_share for one in estimates),
        any(one.extrapolated for one in estimates),
    )
