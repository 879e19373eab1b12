"""Integer grids of weights, per matrix, output channel or block, and of activations, per tensor.

Block grids: one scale for every run of consecutive weights of an output, codes of 2, 4 or 8 bits around a zero point.

The layout is that of the operator MatMulNBits of ONNX Runtime: weight = (code − zero point) × scale, the zero point in
the middle of the codes, each output's last block padded with zeros, codes that share a byte with the first one low.

Where the weights of a matrix may lie: steps and codes per run of weights, made so that rounding again is exact.

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
from edgepack.model.types import Array

WEIGHT_MAX = 127

BLOCK = 32
"""Weights per scale. Larger blocks are read a few percent faster and round a decibel worse per doubling; smaller ones
spend half as many bits on scales as on 4-bit weights. Kernels for Arm want multiples of 32."""

SMALLEST_BLOCK = 16
"""Of the operator; for layers with no more inputs than this, which would be padded to twice their size."""

PANEL_ROWS = 512
"""Rows that are rounded in blocks at a time."""

ZERO_WEIGHT = 1e-35
"""Blocks with no weight above this are zeros: their scale would not be a normal float."""

SIGNIFICANT_BITS = 16


def weight_scales(weight: Array, *, axis: int = 0, qmax: int = WEIGHT_MAX) -> Array:
    """One float32 scale per output channel: max |w| / 127, and 1 for a channel of zeros.

    Args:
        weight: any shape; `axis` holds the output channels.
        qmax: largest code: 127, or 63 where the target's int8 dot products saturate.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    peak = np.abs(weight).max(axis=others).astype(np.float32)
    smallest = np.finfo(np.float32).tiny
    return np.where(peak > 0, np.maximum(peak / np.float32(qmax), smallest), np.float32(1)).astype(np.float32)


def quantize_weight(weight: Array, *, axis: int = 0, qmax: int = WEIGHT_MAX) -> tuple[Array, Array]:
    """Round to nearest on the symmetric grid of each output channel.

    Returns:
        (codes int8 of the weight's shape, scales (channels,) float32); codes × scales ≈ weight, |error| ≤ scale / 2.
    """
    scales = weight_scales(weight, axis=axis, qmax=qmax)
    shape = [1] * weight.ndim
    shape[axis] = -1
    codes = np.rint(weight / scales.reshape(shape))
    return np.clip(codes, -qmax, qmax).astype(np.int8), scales


def quantize_matrix(weight: Array, *, qmax: int = WEIGHT_MAX) -> tuple[Array, Array]:
    """`quantize_weight` of a matrix (out, in), with one scale () for all of it where that gives the weights exactly.

    Returns:
        (codes int8 (out, in), scales (out,) or () float32).
    """
    scale = _one_scale(weight, qmax)
    if scale is None:
        return quantize_weight(weight, qmax=qmax)
    return np.rint(weight / scale).astype(np.int8), scale


def has_one_scale(weight: Array, *, qmax: int) -> bool:
    """Whether a matrix (out, in) lies on the grid of its largest weight: one scale () gives it exactly."""
    return _one_scale(weight, qmax) is not None


def _one_scale(weight: Array, qmax: int) -> Array | None:
    """() float32; the first row alone nearly always says that there is none."""
    (scale,) = weight_scales(np.asarray(weight).reshape(1, -1), qmax=qmax)
    exact = (np.array_equal(np.rint(part / scale) * scale, part) for part in (weight[:1], weight))
    return np.asarray(scale) if len(weight) > 1 and all(exact) else None


def activation_grid(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of an int8 tensor that covers low … high and represents 0 exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 0:
        return 1.0, 0
    scale = max(float(np.float32((high - low) / 255)), float(np.finfo(np.float32).tiny))
    zero_point = round(-128 - low / scale)
    return scale, int(np.clip(zero_point, -128, 127))


def block_for(in_features: int) -> int:
    """The block size for a layer with so many inputs."""
    return SMALLEST_BLOCK if in_features <= SMALLEST_BLOCK else BLOCK


def zero_point(bits: int) -> int:
    """The code of a zero: 8 of 16, 128 of 256."""
    return 1 << (bits - 1)


def quantize_blocks(weight: Array, bits: int, block: int = BLOCK) -> tuple[Array, Array]:
    """Round to nearest on the grid of each block.

    A block's largest weight gets the largest code, 7 or 127, on a grid that is the same on both sides of zero; or it
    gets the code −8 or −128, of which there is one more, on a finer grid that cuts off what lies on the other side. The
    one with the smaller squared error is taken. In 4 bits that is a gain of 1 dB on normal weights.

    Args:
        weight: (out, in) float32.
        bits: 2, 4 or 8.
        block: weights per scale, a power of two from 16.

    Returns:
        (codes (out, blocks, block) int8 without the zero point, scales (out, blocks) float32 of either sign).
    """
    parts = [
        _quantize_blocks(weight[start : start + PANEL_ROWS], bits, block)
        for start in range(0, max(len(weight), 1), PANEL_ROWS)
    ]
    codes, scales = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return codes, scales


def _quantize_blocks(weight: Array, bits: int, block: int) -> tuple[Array, Array]:
    """Of some rows: what is made on the way is several times as large as they are."""
    top = zero_point(bits)
    blocks = _blocks(weight, block)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)
    known = np.abs(peak) > ZERO_WEIGHT
    shares = np.where(known, blocks, 0) / np.where(known, peak, 1)
    even = np.rint(shares * (top - 1))
    finer = np.clip(np.rint(shares * -top), -top, top - 1)
    is_finer = _error(finer / -top, shares) < _error(even / (top - 1), shares)
    steps = np.where(known, peak / np.where(is_finer, -top, top - 1), 1)
    codes = np.where(is_finer, finer, even).astype(np.int8)
    return codes, steps[..., 0].astype(np.float32)


def dequantize_blocks(codes: Array, scales: Array, in_features: int) -> Array:
    """(out, in) float32: what the codes stand for, without the padding."""
    weight = (codes * scales[..., None]).astype(np.float32)
    return weight.reshape(len(codes), -1)[:, :in_features]


def pack(codes: Array, bits: int) -> Array:
    """(out, blocks, block × bits / 8) uint8 of codes (out, blocks, block) without the zero point."""
    moved = (codes.astype(np.int16) + zero_point(bits)).astype(np.uint8)
    return np.asarray(np.bitwise_or.reduce(moved.reshape(*moved.shape[:-1], -1, 8 // bits) << _shifts(bits), axis=-1))


def unpack(packed: Array, bits: int) -> Array:
    """Undo `pack`."""
    moved = (packed[..., None] >> _shifts(bits) & ((1 << bits) - 1)).reshape(*packed.shape[:-1], -1)
    return (moved.astype(np.int16) - zero_point(bits)).astype(np.int8)


def pack_pairs(codes: Array) -> Array:
    """(1, ⌈n/2⌉) uint8 of n codes −8 … 7 in their order, the first one low; `PAIRS` undoes it."""
    flat = codes.reshape(1, -1)
    return pack(np.pad(flat, ((0, 0), (0, flat.size % 2))), 4)


def _shifts(bits: int) -> Array:
    """Of the codes that share a byte, the first one low."""
    return np.arange(0, 8, bits, dtype=np.uint8)


def stored_block_bytes(out_features: int, in_features: int, bits: int, block: int | None = None) -> int:
    """Bytes of a layer's codes and scales, padding included; `block` as `block_for` says unless it is given."""
    block = block or block_for(in_features)
    return out_features * -(-in_features // block) * (block * bits // 8 + 4)


PAIRS = unpack(np.arange(256, dtype=np.uint8)[:, None], 4)
"""(256, 2) int8: the two codes of every byte, the low one first."""


def _blocks(weight: Array, block: int) -> Array:
    """(out, blocks, block) float32."""
    padding = -weight.shape[1] % block
    return np.pad(np.asarray(weight, np.float32), ((0, 0), (0, padding))).reshape(len(weight), -1, block)


def _error(rounded: Array, shares: Array) -> Array:
    return np.asarray(np.square(rounded - shares).sum(axis=-1, keepdims=True))


@dataclass(frozen=True)
class WeightGrid:
    """The integer grid of a matrix.

    Attributes:
        qmax: largest code of a symmetric grid per output channel: 127, 63 or 7. In blocks, 127 or 7; there the code
            −128 or −8 may be used as well.
        block: weights per scale; None for all weights of an output channel.
        shared: whether one scale is for all output channels.
    """

    qmax: int
    block: int | None = None
    shared: bool = False

    @property
    def bits(self) -> int:
        """Per weight: the fewest of 2, 4 and 8 that hold the code."""
        return next(bits for bits in (2, 4, 8) if self.qmax < zero_point(bits))


def grid_of(scheme: Scheme, in_features: int, *, qmax: int = WEIGHT_MAX) -> WeightGrid | None:
    """The weight grid of a scheme for a matrix with so many inputs; None for fp32.

    Args:
        scheme: of a dense layer or of low-rank factors.
        in_features: columns of the matrix, which choose the block size of the block-wise schemes.
        qmax: largest code that the target's kernels allow; see `Scheme.qmax_within`.
    """
    if scheme.is_float:
        return None
    if scheme.granularity == "block":
        return WeightGrid(scheme.qmax, block_for(in_features))
    return WeightGrid(scheme.qmax_within(qmax))


@dataclass(frozen=True)
class Lattice:
    """A grid with its scales, for one matrix (out, in). Runs are `size` columns wide, the last one may be shorter.

    Attributes:
        size: columns per run.
        steps: (runs, out) float32, positive or, in blocks, of either sign; 1 for a run of zeros.
        low, high: (runs, out) float32, smallest and largest code; both 0 for a run of zeros, which stays one.
        pins: (runs, out) int64, the column of the weight with the largest code, −1 for a run of zeros, and for all runs
            but one where they share a scale.
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
        return replace(self, steps=np.where(self.high > 0, steps, np.float32(1)))


def lattice(weight: Array, grid: WeightGrid) -> Lattice:
    """The lattice whose steps let the largest weight of each run have the largest code.

    Args:
        weight: (out, in) float32.
        grid: per matrix, per output channel, or in blocks, where the better of the two grids of `quantize_blocks` is
            taken.
    """
    weight = np.asarray(weight, np.float32)
    columns = weight.shape[1]
    size = grid.block or max(columns, 1)
    runs = _runs(weight, size)
    at = np.abs(runs).argmax(axis=2)
    extreme = np.take_along_axis(runs, at[..., None], axis=2)[..., 0]
    known = np.abs(extreme) > ZERO_WEIGHT
    held = known
    if grid.block is None:
        peaks = np.abs(extreme)
        if grid.shared:
            peaks, held = np.full_like(peaks, peaks.max(initial=0)), known & (peaks == peaks.max(initial=0))
            held &= np.cumsum(held).reshape(held.shape) == 1
        steps = np.where(known, peaks / np.float32(grid.qmax), 1)
        low, high = np.full_like(steps, -grid.qmax), np.full_like(steps, grid.qmax)
        pinned = np.where(known, np.sign(extreme) * np.float32(grid.qmax), 0)
    else:
        codes, scales = quantize_blocks(weight, grid.bits, grid.block)
        steps = np.where(known, scales.T, 1)
        low, high = np.full_like(steps, -grid.qmax - 1), np.full_like(steps, grid.qmax)
        pinned = np.take_along_axis(codes.swapaxes(0, 1), at[..., None], axis=2)[..., 0]
    steps = np.where(known, few_bits(steps), 1).astype(np.float32)
    pins = np.where(held, at + size * np.arange(len(at))[:, None], -1)
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
