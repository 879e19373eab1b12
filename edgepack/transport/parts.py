"""What goes into a container: files, and where the tensors are in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgepack.types import Array

JpegStream = tuple[Array, bytes]
"""Codes (out, in) int8, and the JPEG file of which `mosaic.decode` makes these very codes."""


@dataclass(frozen=True)
class Span:
    """A tensor in a file's bytes.

    Attributes:
        name: for people; it is not packed.
        offset: of its first byte.
        bits: per number, 4 to 64; 4-bit numbers lie two in a byte.
        shape: rows along the last axis are contiguous.
    """

    name: str
    offset: int
    bits: int
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return (math.prod(self.shape) * self.bits + 7) // 8

    @property
    def row_bytes(self) -> int:
        """Bytes between the beginnings of two rows, 0 where rows do not begin at bytes."""
        bits = (self.shape[-1] if self.shape else 1) * self.bits
        return 0 if bits % 8 else bits // 8


@dataclass(frozen=True)
class Source:
    """A file to pack.

    Attributes:
        name: a plain file name, without a folder.
        content: its bytes.
        spans: its tensors, in any order; where two overlap the first counts.
        streams: codes that are known to come from JPEG files; a tensor with the same codes travels as the JPEG file.
    """

    name: str
    content: bytes
    spans: Sequence[Span] = ()
    streams: Sequence[JpegStream] = ()


@dataclass(frozen=True)
class Travelled:
    """One part of a file on the wire.

    Attributes:
        name: the tensor's; "" for all the bytes that are coded together as bytes.
        codec: how it is coded.
        size_bytes: in the file.
        wire_bytes: in the container.
    """

    name: str
    codec: str
    size_bytes: int
    wire_bytes: int


@dataclass(frozen=True)
class Packed:
    """A container, and how the parts of each of its files travel, by file name."""

    content: bytes
    parts: dict[str, tuple[Travelled, ...]]


def apart(spans: Sequence[Span], size_bytes: int) -> list[Span]:
    """The spans in order of place, without those that are empty, lie outside of the file or overlap an earlier one."""
    kept, end = [], 0
    for span in sorted(spans, key=lambda s: s.offset):
        if span.size_bytes > 0 and span.offset >= end and span.offset + span.size_bytes <= size_bytes:
            kept.append(span)
            end = span.offset + span.size_bytes
    return kept


def laid(codes: Array, transposed: bool, flip: int) -> bytes:
    """Codes as they lie in a file.

    Args:
        codes: (out, in) int8.
        transposed: whether the file holds (in, out).
        flip: 128 where it holds them as unsigned bytes with zero point 128, else 0.
    """
    return ((codes.T if transposed else codes).astype(np.int8).view(np.uint8) ^ np.uint8(flip)).tobytes()
