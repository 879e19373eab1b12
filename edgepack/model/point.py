"""One layer in one structure and scheme: what costs are asked of, and what files of a single layer are written for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isqrt

from edgepack.model.kinds.matrix import linear_ops
from edgepack.model.layer import WEIGHT
from edgepack.model.scheme import Format, Scheme
from edgepack.model.structure import DENSE, Op, Structure, low_rank


@dataclass(frozen=True)
class Point:
    """One layer in one structure and scheme: what a cost is asked of.

    Attributes:
        scheme: how its matrices are stored.
        structure: how it is arranged.
        ops: its products.
    """

    scheme: Scheme
    structure: Structure
    ops: tuple[Op, ...]

    @property
    def format(self) -> Format:
        """The file format that it is written in."""
        return self.scheme.backend

    @property
    def out_features(self) -> int:
        """Outputs of the layer: rows of its last product."""
        return self.ops[-1].rows

    @property
    def in_features(self) -> int:
        """Inputs of the layer: columns of its first product."""
        return self.ops[0].columns

    @property
    def rank(self) -> int | None:
        """Of low-rank factors; None for the dense layer."""
        return self.structure.rank

    @property
    def batch(self) -> int:
        """Vectors that one inference multiplies."""
        return self.ops[0].vectors

    @property
    def kernel(self) -> tuple[int, ...]:
        """Sizes of the kernel of a convolution, empty for any other layer."""
        return self.ops[0].kernel

    @property
    def weights(self) -> int:
        """Elements of all its matrices."""
        return sum(op.weights for op in self.ops)


def is_linear(ops: Iterable[Op]) -> bool:
    """Whether all products are those of plain matrices, as in linear layers."""
    return all(op.kind == "matmul" for op in ops)


def is_convolution(point: Point) -> bool:
    """Whether it is one convolution, dense, each of whose outputs looks at all channels of its input."""
    return point.structure.is_dense and point.ops[0].kind == "conv"


def layer_of(point: Point) -> tuple[int, int, int, tuple[int, ...]]:
    """Outputs, inputs, vectors and kernel: the same for all points of one layer."""
    return point.out_features, point.in_features, point.batch, point.kernel


def linear_point(scheme: Scheme, rows: int, columns: int, rank: int | None, batch: int) -> Point:
    """A linear layer (rows, columns), dense or with low-rank factors in its place."""
    return linear_point_in(scheme, DENSE if rank is None else low_rank(rank), (rows, columns), batch)


def linear_point_in(scheme: Scheme, structure: Structure, sides: tuple[int, int], batch: int) -> Point:
    """A linear layer of these outputs and inputs in any structure."""
    return Point(scheme, structure, linear_ops(*sides, structure, batch))


def conv_point(scheme: Scheme, rows: int, columns: int, kernel: tuple[int, ...], places: int) -> Point:
    """A dense convolution of `columns` channels to `rows`, which gives so many places."""
    return Point(scheme, DENSE, (Op(WEIGHT, "conv", rows, columns, places, kernel),))


def image_of(point: Point) -> tuple[int, ...]:
    """Sizes, one per axis of its kernel, of an image of as many places as a convolution gives, as square as can be."""
    if len(point.kernel) == 1:
        return (point.batch,)
    side = next(side for side in range(isqrt(point.batch), 0, -1) if point.batch % side == 0)
    return (side, point.batch // side)


def point_record(point: Point) -> dict[str, str | int | None]:
    """A point as JSON holds it."""
    return {
        "format": point.format,
        "scheme": point.scheme.name,
        "structure": point.structure.name,
        "out_features": point.out_features,
        "in_features": point.in_features,
        "rank": point.rank,
        "kernel": "x".join(map(str, point.kernel)) or None,
        "batch": point.batch,
    }
