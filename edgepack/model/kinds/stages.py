"""Structures of a convolution that are several convolutions in a row, each of which takes some of its axes.

| structure | stages |
|---|---|
| low-rank (channel SVD) | the kernel to r channels, then 1×1 |
| spatial-svd | kh×1 to r channels, then 1×kw |
| input-svd | 1×1 to r channels, then the kernel |
| tucker-2 | 1×1 to r₁ channels, the kernel to r₂ channels, then 1×1 |
| cp | 1×1 to r channels, the kernel over each of these by itself, then 1×1 |

A stage has strides, steps between places and paddings of the axes that it takes, and goes along the others place by
place. The axes of a stage come before those of the stages behind it, so that the stages multiply up to one kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from edgepack.model.replacement import Replacement
from edgepack.model.structure import Op, Structure

if TYPE_CHECKING:
    from edgepack.model.kinds.conv import ConvGeometry
    from edgepack.model.layer import Array

T = TypeVar("T")

SPATIAL_SVD, INPUT_SVD, TUCKER_2, CP = "spatial-svd", "input-svd", "tucker-2", "cp"

_ALL, _NONE, _FIRST, _OTHERS = slice(None), slice(0), slice(1), slice(1, None)
_STAGES: Mapping[str, tuple[tuple[str, slice], ...]] = {
    "dense": (("weight", _ALL),),
    "constexpr": (("weight", _ALL),),
    "low-rank": (("B", _ALL), ("A", _NONE)),
    SPATIAL_SVD: (("B", _FIRST), ("A", _OTHERS)),
    INPUT_SVD: (("B", _NONE), ("A", _ALL)),
    TUCKER_2: (("B", _NONE), ("core", _ALL), ("A", _NONE)),
    CP: (("B", _NONE), ("core", _ALL), ("A", _NONE)),
}
_DEPTHWISE: Mapping[str, str] = {CP: "core"}
"""The stage that takes every channel by itself, and gives as many."""


@dataclass(frozen=True)
class Stage:
    """One of the convolutions.

    Attributes:
        role: of its weight in the `Replacement`: (rows, columns · places of its own kernel).
        rows: channels that it gives.
        columns: channels that each of them is made of.
        geometry: of its own.
        skipped: how many of its places there are for each that the last stage gives: strides of the stages behind it.
    """

    role: str
    rows: int
    columns: int
    geometry: ConvGeometry
    skipped: int

    @property
    def kernel(self) -> tuple[int, ...]:
        """Shape of its weight."""
        return self.rows, self.columns, *self.geometry.kernel


def stages(structure: Structure, outputs: int, channels: int, geometry: ConvGeometry) -> tuple[Stage, ...]:
    """The convolutions of a structure, in their order.

    Args:
        structure: one that a matrix can have, or one of those above.
        outputs: channels that the layer gives.
        channels: that it takes.
        geometry: of the layer.

    Raises:
        ValueError: a convolution has no such structure.
    """
    parts, alone = _STAGES.get(structure.name, ()), _DEPTHWISE.get(structure.name)
    others = [role for role, _ in parts if role != alone]
    if len(structure.ranks) != len(others) - 1:
        raise ValueError(f"a convolution cannot be {structure}, expected one of {', '.join(_STAGES)} and its ranks")
    widths = dict(zip(others, pairwise((channels, *structure.ranks, outputs)), strict=True))
    taken = [prod(geometry.strides[axes]) for _, axes in parts]
    found, given = [], channels
    for number, (role, axes) in enumerate(parts):
        columns, rows = widths.get(role, (1, given))
        own = _along(geometry, axes) if role in widths else replace(geometry, groups=given)
        found.append(Stage(role, rows, columns, own, prod(taken[number + 1 :])))
        given = rows
    return tuple(found)


def kernels(part: Replacement, outputs: int, channels: int, geometry: ConvGeometry) -> tuple[tuple[Stage, Array], ...]:
    """The convolutions of a replacement, in their order, each with its kernel (rows, columns, *sizes).

    Raises:
        ValueError: a convolution has no such structure, or the tensors do not fit the layer.
    """
    found, tensors = stages(part.structure, outputs, channels, geometry), stage_tensors(part)
    shapes, fitting = ([one.shape for one in tensors], [(one.rows, prod(one.kernel[1:])) for one in found])
    if shapes != fitting:
        raise ValueError(f"found factors {shapes}, expected {fitting}")
    return tuple((stage, tensor.reshape(stage.kernel)) for stage, tensor in zip(found, tensors, strict=True))


def stage_ops(found: Sequence[Stage], vectors: int) -> tuple[Op, ...]:
    """The products of stages whose last one gives so many vectors. How many the ones before it give is what strides
    make of these: places at a border that a kernel without paddings only reaches are left out."""
    return tuple(_op(stage, vectors * stage.skipped) for stage in found)


def _op(stage: Stage, vectors: int) -> Op:
    kernel = stage.geometry.kernel
    if prod(kernel) == 1:
        return Op(stage.role, "matmul", stage.rows, stage.columns, vectors)
    return Op(stage.role, "conv", stage.rows, stage.columns, vectors, kernel)


def roles(structure: Structure) -> tuple[str, ...]:
    """Of the weights of all stages, in their order."""
    return tuple(role for role, _ in _STAGES[structure.name])


def taken_first(structure: Structure) -> slice:
    """Axes of the first stage."""
    return _STAGES[structure.name][0][1]


def behind_first(structure: Structure) -> Structure:
    """What a structure is behind its first stage, as that of a convolution of the axes that are left."""
    name = {2: "dense", 3: "low-rank"}[len(_STAGES[structure.name])]
    return Structure(name, structure.ranks[1:])


def put_in_front(structure: Structure, first: Array, rest: Replacement) -> Replacement:
    """The whole from its first stage and what is behind it, with the bias of that.

    Args:
        structure: of the whole.
        first: (r, channels · places that it takes).
        rest: of `behind_first`.
    """
    (front, _), *others = _STAGES[structure.name]
    inner = ("weight",) if rest.structure.is_dense else ("B", "A")
    tensors = {role: rest.tensors[own] for (role, _), own in zip(others, inner, strict=True)}
    return Replacement(structure, {front: first, **tensors}, rest.bias)


def stage_tensors(part: Replacement) -> tuple[Array, ...]:
    """The weights of all stages, in their order."""
    if part.structure.is_constexpr:
        return (part.weight,)
    return tuple(part.tensors[role] for role in roles(part.structure))


def composed(part: Replacement) -> Array:
    """(out, in · places) float32: the one matrix that stages come to."""
    alone = _DEPTHWISE.get(part.structure.name)
    pairs = zip(roles(part.structure), stage_tensors(part), strict=True)
    return reduce(_behind, [_of_all_channels(tensor) if role == alone else tensor for role, tensor in pairs])


def _of_all_channels(depthwise: Array) -> Array:
    """(r, r · places) of (r, places): zeros for all channels but its own."""
    return (np.eye(len(depthwise), dtype=np.float32)[:, :, None] * depthwise[:, None, :]).reshape(len(depthwise), -1)


def _behind(first: Array, second: Array) -> Array:
    """(out, in · places of both) of two matrices, (r, in · places) and (out, r · places)."""
    (rank, inputs), outputs = first.shape, len(second)
    product = second.reshape(outputs, rank, -1).swapaxes(1, 2) @ first  # by place of the second
    return np.ascontiguousarray(product.swapaxes(1, 2)).reshape(outputs, inputs * product.shape[1])


def _along(geometry: ConvGeometry, axes: slice) -> ConvGeometry:
    spatial = len(geometry.kernel)
    chosen = range(spatial)[axes]

    def own(values: Sequence[int], neutral: int) -> tuple[int, ...]:
        return tuple(value if axis in chosen else neutral for axis, value in enumerate(values))

    before, behind = geometry.pads[:spatial], geometry.pads[spatial:]
    return replace(
        geometry,
        kernel=own(geometry.kernel, 1),
        strides=own(geometry.strides, 1),
        dilations=own(geometry.dilations, 1),
        pads=own(before, 0) + own(behind, 0),
    )
