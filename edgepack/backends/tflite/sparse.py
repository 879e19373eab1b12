"""Sparse constants of a TFLite file, which DENSIFY lays out when the model is loaded.

A tensor's axes, and those of the blocks that they may be cut into, are gone through in an order of the file's own; each
is dense, or lists for every place before it which of its own places are there (CSR). Blocks are dense. Format:
`SparsityParameters` of the schema.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from edgepack.model.types import Array

MOST_TIMES = 1024
"""As many numbers as stored ones, at most, may a small file stand for."""
_CSR = 1  # schema.fbs, DimensionType


def densified(values: Array, shape: tuple[int, ...], sparsity: Any) -> Array:
    """The whole tensor, zeros and all.

    Args:
        values: (n,) what is stored.
        shape: of the tensor.
        sparsity: the schema's SparsityParametersT.

    Raises:
        ValueError: its lists do not fit each other, the shape or the values, or it would be too large.
    """
    order, blocks = _list(sparsity.traversalOrder), _list(sparsity.blockMap)
    levels = list(sparsity.dimMetadata or [])
    if prod(shape) > MOST_TIMES * max(values.size, 1):
        raise ValueError(f"{values.size} stored numbers stand for {prod(shape)}, at most {MOST_TIMES} times as many do")
    if sorted(order) != list(range(len(shape) + len(blocks))) or len(levels) != len(order):
        raise ValueError("the axes of a sparse constant are not gone through once each")
    if any(not 0 <= axis < len(shape) for axis in blocks) or len(set(blocks)) < len(blocks):
        raise ValueError("a sparse constant has blocks along an axis that is not there")
    parents, places = np.zeros(1, np.int64), np.zeros((len(order), 1), np.int64)
    sizes = np.ones(len(order), np.int64)
    for axis, level in zip(order, levels, strict=True):
        extent = shape[axis if axis < len(shape) else blocks[axis - len(shape)]]
        if axis >= len(shape) and level.format == _CSR:
            raise ValueError("a sparse constant has blocks that are not dense")
        kept, own, parents, sizes[axis] = _level(level, parents, extent, prod(shape))
        places = places[:, kept]
        places[axis] = own
    if len(parents) != values.size:
        raise ValueError(f"a sparse constant lists {len(parents)} places and stores {values.size} numbers")
    where = [places[axis] for axis in range(len(shape))]
    for block, axis in enumerate(blocks):
        size = sizes[len(shape) + block]
        where[axis] = where[axis] * size + places[len(shape) + block]
    if any((own >= side).any() for own, side in zip(where, shape, strict=True)):
        raise ValueError("a sparse constant has numbers outside of its shape")
    dense = np.zeros(shape, values.dtype)
    dense[tuple(where)] = values
    return dense


def _level(level: Any, parents: Array, extent: int, most: int) -> tuple[Array, Array, Array, int]:
    """One axis behind others: for each of its places that are there the one before it, its own number, its place in the
    list of the next axis; and how many places it has, where it is dense."""
    if level.format != _CSR:
        size = int(level.denseSize)
        if not 0 < size <= extent or len(parents) * size > most:
            raise ValueError(f"a sparse constant has an axis of {size}, at most {extent} fit")
        kept, own = np.repeat(np.arange(len(parents)), size), np.tile(np.arange(size), len(parents))
        return kept, own, np.repeat(parents, size) * size + own, size
    segments, indices = _vector(level.arraySegments), _vector(level.arrayIndices)
    if parents.max(initial=-1) + 1 >= max(len(segments), 1) or (np.diff(segments) < 0).any():
        raise ValueError("a sparse constant has lists of places that do not follow each other")
    counts = segments[parents + 1] - segments[parents]
    if counts.sum() > most or segments.min(initial=0) < 0 or segments.max(initial=0) > len(indices):
        raise ValueError("a sparse constant lists more places than there are")
    kept = np.repeat(np.arange(len(parents)), counts)
    starts = np.repeat(segments[parents] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
    at = starts + np.arange(len(kept))
    own = indices[at]
    if (own < 0).any() or (own >= extent).any():
        raise ValueError(f"a sparse constant has a place outside of the {extent} of its axis")
    return kept, own, at, 1


def _list(numbers: Any) -> list[int]:
    return [] if numbers is None else [int(one) for one in numbers]


def _vector(held: Any) -> Array:
    """The numbers of one of the schema's vectors."""
    return np.zeros(0, np.int64) if held is None or held.values is None else np.asarray(held.values, np.int64)
