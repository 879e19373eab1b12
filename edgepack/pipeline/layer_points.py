"""Which layers a device is measured at: those of a model, or a grid for models yet unknown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from edgepack.formats import FORMATS, FORMS, RESIDUAL_FORMS, Format
from edgepack.plan.candidates import RANK_TILE, break_even_rank, residual_ranks
from edgepack.plan.measured import STANDARD_GRID, grid_points
from edgepack.plan.sources import Shape
from edgepack.plan.table import Point


def points_for(
    shapes: Iterable[Shape],
    formats: Iterable[Format] = FORMATS,
    forms: Mapping[Format, Sequence[str]] = FORMS,
    *,
    ranks: Mapping[tuple[int, int], Iterable[int]] | None = None,
) -> list[Point]:
    """What to measure for the layers of a model: each dense and at sparse ranks up to its break-even, in all forms.

    Where a dense matrix may have a pair beside it, that as well.

    Args:
        shapes: outputs, inputs and rows of every layer.
        formats: to measure in.
        forms: by format.
        ranks: by outputs and inputs: measure these instead, and nothing beside a dense matrix.
    """
    shapes = dict.fromkeys(shapes)
    points = [
        Point(fmt, form, rows, columns, rank, batch)
        for fmt in formats
        for rows, columns, batch in shapes
        for rank in (None, *(sparse_ranks(rows, columns) if ranks is None else ranks.get((rows, columns), ())))
        for form in forms[fmt]
    ]
    if ranks is not None:
        return points
    both = [form for form, parts in RESIDUAL_FORMS.items() if set(parts) <= set(forms["onnx"]) and "onnx" in formats]
    return points + [
        Point("onnx", form, rows, columns, rank, batch)
        for rows, columns, batch in shapes
        for rank in residual_ranks(rows, columns)
        for form in both
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
    """The standard grid in all forms: what a device is measured at before a model is known."""
    found = [point for fmt in formats for form in FORMS[fmt] for point in grid_points(STANDARD_GRID, fmt, form)]
    return sorted(found, key=near)


def near(point: Point) -> tuple[Format, int, int, int]:
    """Ways to write one layer are measured in one process, so that what passes there falls on them alike."""
    return point.format, point.batch, point.out_features, point.in_features
