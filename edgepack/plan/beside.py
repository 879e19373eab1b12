"""Prices of a dense matrix with a pair beside it: measured as one, else the sum of what both cost alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgepack.plan.cost import CostSource, Price
from edgepack.plan.table import Point


def prices_of(source: CostSource, points: Sequence[Point]) -> list[Price | None]:
    """As `CostSource.prices`. Corrected layers that the source has nothing on are put together.

    The sum leaves out the Add of the two products, and counts what a runtime does around one matrix once too often.
    """
    found = source.prices(points)
    unknown = [index for index, price in enumerate(found) if price is None and points[index].scheme.corrected]
    if not unknown:
        return found
    parts = [part for index in unknown for part in _parts(points[index])]
    answers = source.prices(parts)
    for index, dense, pair in zip(unknown, answers[::2], answers[1::2], strict=True):
        if dense is not None and pair is not None:
            found[index] = _sum(dense, pair)
    return found


def _parts(point: Point) -> tuple[Point, Point]:
    dense, thin = point.scheme.corrected or (point.scheme, point.scheme)
    return replace(point, scheme=dense, rank=None), replace(point, scheme=thin)


def _sum(dense: Price, pair: Price) -> Price:
    return Price(
        dense.latency_s + pair.latency_s,
        dense.source,
        max(dense.error_share, pair.error_share),
        dense.extrapolated or pair.extrapolated,
    )
