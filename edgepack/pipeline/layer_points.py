"""Which layers a device is measured at: those of a model, or a grid for models yet unknown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from edgepack.backends.schemes import CORRECTED, SCHEMES
from edgepack.model.point import Point, linear_point, linear_point_in
from edgepack.model.scheme import FORMATS, Format, Scheme
from edgepack.model.structure import low_rank_correction
from edgepack.plan.candidates import RANK_TILE, break_even_rank, residual_ranks
from edgepack.plan.measured import STANDARD_GRID, grid_points
from edgepack.plan.sources import Shape


def points_for(
    shapes: Iterable[Shape],
    formats: Iterable[Format] = FORMATS,
    schemes: Mapping[Format, Sequence[Scheme]] = SCHEMES,
    *,
    ranks: Mapping[tuple[int, int], Iterable[int]] | None = None,
) -> list[Point]:
    """What to measure for the layers of a model: each dense and at sparse ranks up to its break-even, in all schemes.

    Where a dense matrix may have a pair beside it, that as well.

    Args:
        shapes: outputs, inputs and rows of every layer.
        formats: to measure in.
        schemes: by format.
        ranks: by outputs and inputs: measure these instead, and nothing beside a dense matrix.
    """
    shapes = dict.fromkeys(shapes)
    points = [
        linear_point(scheme, rows, columns, rank, batch)
        for fmt in formats
        for rows, columns, batch in shapes
        for rank in (None, *(sparse_ranks(rows, columns) if ranks is None else ranks.get((rows, columns), ())))
        for scheme in schemes[fmt]
    ]
    if ranks is not None:
        return points
    both = [one for fmt in formats for one in CORRECTED[fmt] if {one, one.correction} <= {*schemes[fmt]}]
    return points + [
        linear_point_in(scheme, low_rank_correction(rank), (rows, columns), batch)
        for rows, columns, batch in shapes
        for rank in residual_ranks(rows, columns)
        for scheme in both
    ]


def sparse_ranks(rows: int, columns: int) -> list[int]:
    """Multiples of the tile, each twice the one before, and the last that saves multiplications."""
    last = break_even_rank(rows, columns) // RANK_TILE * RANK_TILE
    ranks = []
    rank = RANK_TILE
    while rank < last:
        ranks.append(rank)
        rank *= 2
    return [*ranks, last] if last else []


def standard_points(formats: Iterable[Format]) -> list[Point]:
    """The standard grid in all schemes: what a device is measured at before a model is known."""
    found = [point for fmt in formats for scheme in SCHEMES[fmt] for point in grid_points(STANDARD_GRID, scheme)]
    return sorted(found, key=near)


def near(point: Point) -> tuple[Format, int, int, int]:
    """Ways to write one layer are measured in one process, so that what passes there falls on them alike."""
    return point.format, point.batch, point.out_features, point.in_features
