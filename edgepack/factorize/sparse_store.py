"""Sparse matrices in two bytes per number kept: its value in 8 bits, and the gap to the one before it.

Han, Mao and Dally, "Deep Compression" (ICLR 2016), section 2: positions are stored as differences along the flat,
row-major matrix; where a difference does not fit into the bits it has, a zero is stored in between. Here a difference
has 8 bits, so the entries are decoded by a running sum and a scatter. Values are stored in units of the largest of
their row: on one grid for all, rows of small numbers would lose most of their bits.
"""

from __future__ import annotations

import numpy as np

from edgepack.coded import Writer
from edgepack.factorize.budget import most_floats
from edgepack.quantize.coded import bytes_in_8_bits
from edgepack.types import Array

LARGEST_GAP = 255
_CODES = 127


def entries_of(positions: Array) -> int:
    """How many entries are stored for these sorted positions, fillers included."""
    return len(positions) + int(_fillers(positions).sum())


def entry_bytes(entries: int) -> int:
    """Bytes of their values and gaps, in 8 bits."""
    return bytes_in_8_bits(entries) + entries


def scale_bytes(rows: int) -> int:
    """Bytes of one scale per row, in 8 bits."""
    return bytes_in_8_bits(rows, 1)


def filled(positions: Array) -> Array:
    """Sorted positions, and those in between that are stored anyway: a number kept there costs nothing."""
    return np.cumsum(_gaps(positions)) - 1


def most_that_fit(saliency: Array, left: int) -> Array:
    """Flat, sorted positions of the most salient numbers, as many as can be stored in `left` bytes, scales apart.

    One position more never takes fewer entries: it adds one, and spares one filler at most. So the number is found by
    bisection.
    """
    flat, most = saliency.reshape(-1), most_floats(left, beside=1)
    order = np.argsort(-flat, kind="stable")
    low, high = 0, min(len(flat), most)
    while low < high:
        count = (low + high + 1) // 2
        if entries_of(np.sort(order[:count])) <= most:
            low = count
        else:
            high = count - 1
    return np.sort(order[:low])


def row_scales(peaks: Array) -> Array:
    """(rows, 1) float32, each at least the row's peak, on the grid that they will be stored on: rounding keeps them."""
    unit = np.float32(peaks.max(initial=0.0)) / np.float32(_CODES)
    if not unit > np.finfo(np.float32).tiny:
        return np.ones((len(peaks), 1), np.float32)
    codes = np.clip(np.ceil(peaks / unit), 1, _CODES).astype(np.float32)
    return np.asarray(codes * unit)[:, None]


def write(w: Writer, name: str, matrix: Array, positions: Array, *, scaled: bool = True) -> str:
    """Stores the numbers of a matrix at some positions: a step that gives the matrix, and zeros elsewhere.

    Args:
        w: is written to; the constants are called `{name}.values`, `{name}.gaps` and, if scaled, `{name}.rows`.
        name: what the constants are called by.
        matrix: (rows, columns).
        positions: flat, sorted, at least one.
        scaled: whether values are stored in units of a scale per row; for rows of one peak they need none.
    """
    rows, columns = matrix.shape
    values = np.zeros(matrix.size, np.float32)
    values[positions] = matrix.reshape(-1)[positions]
    scales = row_scales(np.abs(values.reshape(rows, columns)).max(axis=1)) if scaled else np.ones((1, 1), np.float32)
    gaps = _gaps(positions)
    entries = (values.reshape(rows, columns) / scales).reshape(-1)[np.cumsum(gaps) - 1]
    steps = w.step("cast", w.constant(f"{name}.gaps", gaps.astype(np.uint8)), to="int32")
    one = w.constant(f"{name}.one", np.ones(1, np.int32))
    places = w.step("sub", w.step("cumsum", steps), one)
    flat = w.step("scatter", places, w.constant(f"{name}.values", entries), size=matrix.size)
    found = w.step("reshape", flat, shape=(rows, columns))
    return w.step("mul", found, w.constant(f"{name}.rows", scales)) if scaled else found


OVERHEAD = 4
"""Bytes of the constant 1 that positions are counted from."""


def _fillers(positions: Array) -> Array:
    """How many zeros are stored before each position."""
    return np.asarray((np.diff(positions, prepend=-1) - 1) // LARGEST_GAP)


def _gaps(positions: Array) -> Array:
    """Of every entry, fillers included: whole numbers from 1 to 255."""
    fillers = _fillers(positions)
    gaps = np.full(len(positions) + int(fillers.sum()), LARGEST_GAP)
    gaps[np.arange(len(positions)) + np.cumsum(fillers)] = np.diff(positions, prepend=-1) - LARGEST_GAP * fillers
    return gaps
