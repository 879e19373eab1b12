"""Block grids: one scale for every run of consecutive weights of an output, codes of 4 or 8 bits around a zero point.

The layout is that of the operator MatMulNBits of ONNX Runtime: weight = (code − zero point) × scale, the zero point in
the middle of the codes, each output's last block padded with zeros, 4-bit codes two to a byte, the first one low.
"""

from __future__ import annotations

import numpy as np

from edgepack.types import Array

BLOCK = 32
"""Weights per scale. Larger blocks are read a few percent faster and round a decibel worse per doubling; smaller ones
spend half as many bits on scales as on 4-bit weights. Kernels for Arm want multiples of 32."""

SMALLEST_BLOCK = 16
"""Of the operator; for layers with no more inputs than this, which would be padded to twice their size."""

ZERO_WEIGHT = 1e-35
"""Blocks with no weight above this are zeros: their scale would not be a normal float."""


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
        bits: 4 or 8.
        block: weights per scale, a power of two from 16.

    Returns:
        (codes (out, blocks, block) int8 without the zero point, scales (out, blocks) float32 of either sign).
    """
    top = zero_point(bits)
    blocks = _blocks(weight, block)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)
    known = np.abs(largest) > ZERO_WEIGHT
    shares = np.where(known, blocks, 0) / np.where(known, largest, 1)
    even = np.rint(shares * (top - 1))
    finer = np.clip(np.rint(shares * -top), -top, top - 1)
    is_finer = _error(finer / -top, shares) < _error(even / (top - 1), shares)
    steps = np.where(known, largest / np.where(is_finer, -top, top - 1), 1)
    codes = np.where(is_finer, finer, even).astype(np.int8)
    return codes, steps[..., 0].astype(np.float32)


def dequantize_blocks(codes: Array, scales: Array, in_features: int) -> Array:
    """(out, in) float32: what the codes stand for, without the padding."""
    weight = (codes * scales[..., None]).astype(np.float32)
    return weight.reshape(len(codes), -1)[:, :in_features]


def pack(codes: Array, bits: int) -> Array:
    """(out, blocks, block × bits / 8) uint8 of codes (out, blocks, block) without the zero point."""
    moved = (codes.astype(np.int16) + zero_point(bits)).astype(np.uint8)
    return moved if bits == 8 else moved[..., 0::2] | moved[..., 1::2] << 4


def unpack(packed: Array, bits: int) -> Array:
    """Undo `pack`."""
    moved = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return (moved.astype(np.int16) - zero_point(bits)).astype(np.int8)


def stored_bytes(out_features: int, in_features: int, bits: int, block: int | None = None) -> int:
    """Bytes of a layer's codes and scales, padding included; `block` as `block_for` says unless it is given."""
    block = block or block_for(in_features)
    return out_features * -(-in_features // block) * (block * bits // 8 + 4)


def _blocks(weight: Array, block: int) -> Array:
    """(out, blocks, block) float32."""
    padding = -weight.shape[1] % block
    return np.pad(np.asarray(weight, np.float32), ((0, 0), (0, padding))).reshape(len(weight), -1, block)


def _error(rounded: Array, shares: Array) -> Array:
    return np.asarray(np.square(rounded - shares).sum(axis=-1, keepdims=True))
