"""Prices of a dense matrix with a pair beside it: measured as one, else the sum of what both cost alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgepack.model.layer import WEIGHT
from edgepack.model.point import Point
from edgepack.model.scheme import scheme_of
from edgepack.model.structure import DENSE, low_rank
from edgepack.plan.cost import CostSource, Price


def prices_of(source: CostSource, points: Sequence[Point]) -> list[Price | None]:
    """As `CostSource.prices`. Corrected layers that the source has nothing on are put together.

    The sum leaves out the Add of the two products, and counts what a runtime does around one matrix once too often.
    """
    found = source.prices(points)
    unknown = [index for index, price in enumerate(found) if price is None and points[index].structure.is_correction]
    if not unknown:
        return found
    parts = [part for index in unknown for part in _parts(points[index])]
    answers = source.prices(parts)
    for index, dense, pair in zip(unknown, answers[::2], answers[1::2], strict=True):
        if dense is not None and pair is not None:
            found[index] = _sum(dense, pair)
    return found


def _parts(point: Point) -> tuple[Point, Point]:
    """The dense matrix and the factors beside it, as layers of their own."""
    thin = tuple(replace(op, corrects=False) for op in point.ops if op.corrects)
    base = tuple(op for op in point.ops if not op.corrects)
    factors = Point(scheme_of(point.ops[0], point.scheme), low_rank(point.structure.ranks[0]), thin)
    return Point(point.scheme, DENSE, tuple(replace(op, role=WEIGHT) for op in base)), factors


def _sum(dense: Price, pair: Price) -> Price:
    return Price(
        dense.latency_s + pair.latency_s,
        dense.source,
        max(dense.error_share, pair.error_share),
        dense.extrapolated or pair.extrapolated,
    )
