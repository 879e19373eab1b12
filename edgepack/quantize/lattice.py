"""Where the weights of a matrix may lie: steps and codes per run of weights, made so that rounding again is exact.

Files are written by quantizers that round what they are given to nearest, on a scale that they take from its largest
weight. Weights chosen by a better rounding survive that, to the bit, if in every run one weight has the largest code
(it is *pinned* there) and if codes × step are exact in float32: steps keep 16 significant bits, codes need 8 of the
24 that there are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgepack.model.scheme import Scheme
from edgepack.quantize.blocks import ZERO_WEIGHT, block_for, quantize_blocks
from edgepack.quantize.grid import WEIGHT_MAX
from edgepack.types import Array

INT4_MAX = 7
SIGNIFICANT_BITS = 16


@dataclass(frozen=True)
class WeightGrid:
    """The integer grid of a matrix.

    Attributes:
        largest: largest code of a symmetric grid per output channel: 127, 63 or 7. In blocks, 127 or 7; there the code
            −128 or −8 may be used as well.
        block: weights per scale; None for all weights of an output channel.
    """

    largest: int
    block: int | None = None

    @property
    def bits(self) -> int:
        """Per weight: 4 or 8."""
        return 4 if self.largest <= INT4_MAX else 8


def grid_of(scheme: Scheme, in_features: int, *, largest: int = WEIGHT_MAX) -> WeightGrid | None:
    """The weight grid of a scheme for a matrix with so many inputs; None for fp32.

    Args:
        scheme: of a dense layer or of low-rank factors.
        in_features: columns of the matrix, which choose the block size of the block-wise schemes.
        largest: largest code of per-channel int8: 127, or 63 where the target's int8 dot products saturate.
    """
    if scheme.is_float:
        return None
    if scheme.granularity == "block":
        return WeightGrid(scheme.qmax, block_for(in_features))
    return WeightGrid(largest if scheme.per_channel_int8 else scheme.qmax)


@dataclass(frozen=True)
class Lattice:
    """A grid with its scales, for one matrix (out, in). Runs are `size` columns wide, the last one may be shorter.

    Attributes:
        size: columns per run.
        steps: (runs, out) float32, positive or, in blocks, of either sign; 1 for a run of zeros.
        low, high: (runs, out) float32, smallest and largest code; both 0 for a run of zeros, which stays one.
        pins: (runs, out) int64, the column of the weight with the largest code, −1 for a run of zeros.
        pinned: (runs, out) float32, its code.
    """

    size: int
    steps: Array
    low: Array
    high: Array
    pins: Array
    pinned: Array

    def take(self, rows: Any) -> Lattice:
        """Of some of the outputs, in any way that indexes an axis."""
        parts = (self.steps, self.low, self.high, self.pins, self.pinned)
        return Lattice(self.size, *(part[:, rows] for part in parts))

    def shrunk(self, by: Array | float) -> Lattice:
        """With steps times (runs, out), or one number: below 1 where cutting off the largest weights pays."""
        steps = few_bits(self.steps * np.asarray(by, np.float32))
        return replace(self, steps=np.where(self.pins >= 0, steps, np.float32(1)))


def lattice(weight: Array, grid: WeightGrid) -> Lattice:
    """The lattice whose steps let the largest weight of each run have the largest code.

    Args:
        weight: (out, in) float32.
        grid: per output channel, or in blocks, where the better of the two grids of `quantize_blocks` is taken.
    """
    weight = np.asarray(weight, np.float32)
    columns = weight.shape[1]
    size = grid.block or max(columns, 1)
    runs = _runs(weight, size)
    at = np.abs(runs).argmax(axis=2)
    largest = np.take_along_axis(runs, at[..., None], axis=2)[..., 0]
    known = np.abs(largest) > ZERO_WEIGHT
    if grid.block is None:
        steps = np.where(known, np.abs(largest) / np.float32(grid.largest), 1)
        low, high = np.full_like(steps, -grid.largest), np.full_like(steps, grid.largest)
        pinned = np.where(known, np.sign(largest) * np.float32(grid.largest), 0)
    else:
        codes, scales = quantize_blocks(weight, grid.bits, grid.block)
        steps = np.where(known, scales.T, 1)
        low, high = np.full_like(steps, -grid.largest - 1), np.full_like(steps, grid.largest)
        pinned = np.take_along_axis(codes.swapaxes(0, 1), at[..., None], axis=2)[..., 0]
    steps = np.where(known, few_bits(steps), 1).astype(np.float32)
    pins = np.where(known, at + size * np.arange(len(at))[:, None], -1)
    return Lattice(size, steps, np.where(known, low, 0), np.where(known, high, 0), pins, pinned.astype(np.float32))


def nearest(weight: Array, on: Lattice) -> Array:
    """(out, in) float32 codes: round to nearest, what lies outside is cut off, pins hold."""
    columns = weight.shape[1]
    runs = _runs(np.asarray(weight, np.float32), on.size)
    codes = np.clip(np.rint(runs / on.steps[..., None]), on.low[..., None], on.high[..., None])
    flat = codes.swapaxes(0, 1).reshape(len(weight), -1)[:, :columns]
    run, row = np.nonzero(on.pins >= 0)
    flat[row, on.pins[run, row]] = on.pinned[run, row]
    return np.ascontiguousarray(flat)


def decoded(codes: Array, on: Lattice) -> Array:
    """(out, in) float32: what codes (out, in) stand for, exactly."""
    return np.asarray(codes * np.repeat(on.steps.T, on.size, axis=1)[:, : codes.shape[1]], np.float32)


def few_bits(steps: Array) -> Array:
    """Rounded to 16 significant bits: a relative change of at most 2⁻¹⁶."""
    mantissa, exponent = np.frexp(np.asarray(steps, np.float32))
    levels = np.float32(1 << SIGNIFICANT_BITS)
    return np.asarray(np.ldexp(np.rint(mantissa * levels) / levels, exponent), np.float32)


def _runs(weight: Array, size: int) -> Array:
    """(runs, out, size), padded with zeros."""
    rows, columns = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -columns % size)))
    return padded.reshape(rows, -1, size).swapaxes(0, 1)
