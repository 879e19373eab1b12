"""Codes of a weight as one grey JPEG image: each row is a tile, all rows are a mosaic.

The image is lossy, so that what counts are the *decoded* codes. Their largest of each row is brought back to ±127, in
whole numbers: a quantizer that looks for the largest weight of a row then finds these very codes again.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from types import ModuleType

import numpy as np

from edgepack.errors import ModelError, UsageError, install_hint
from edgepack.model.types import Array

PEAK = 127
LARGEST_CODES = 1 << 26
"""Codes of one image: below the size at which Pillow suspects a decompression bomb."""

LONGEST_SIDE = 65500
"""Pixels: the limit of libjpeg."""

_ZERO = 128


def image_sides(features: int) -> tuple[int, int]:
    """(height, width) of a row as an image: height · width = features, height ≤ width, as square as there is."""
    height = next(side for side in range(math.isqrt(features), 0, -1) if features % side == 0)
    return height, features // height


def encode(codes: Array, quality: int) -> bytes:
    """The rows as tiles of one grey baseline JPEG, with Huffman tables of its own.

    Args:
        codes: (out, in) int8, −127 … 127.
        quality: 1 … 95, libjpeg's scale.

    Raises:
        UsageError: Pillow is not installed, or the codes do not fit into one image.
    """
    pillow = _pillow()
    reason = too_large(codes.shape)
    if reason:
        raise UsageError(f"codes of shape {codes.shape} are {reason}")
    rows, columns = _grid(codes.shape)
    height, width = image_sides(codes.shape[1])
    tiles = np.full((rows * columns, height, width), _ZERO, np.uint8)
    tiles[: len(codes)] = (codes.astype(np.int16) + _ZERO).astype(np.uint8).reshape(-1, height, width)
    mosaic = tiles.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
    written = io.BytesIO()
    image = pillow.fromarray(np.ascontiguousarray(mosaic))
    image.save(written, "JPEG", quality=quality, optimize=True, progressive=False)
    return written.getvalue()


def decode(data: bytes, shape: tuple[int, int]) -> Array:
    """(out, in) int8 of what `encode` wrote: the largest |code| of each row is 127; rows of zeros stay zeros.

    Args:
        data: one JPEG file; it may come from anywhere.
        shape: of the codes.

    Raises:
        UsageError: Pillow is not installed.
        ModelError: the data are no such image, or an image of another shape.
    """
    pillow = _pillow()
    if len(shape) != 2 or min(shape) < 1 or too_large(shape):
        raise ModelError(f"weights of shape {shape} do not fit into one image")
    rows, columns = _grid(shape)
    height, width = image_sides(shape[1])
    mosaic = _pixels(pillow, data, (columns * width, rows * height))
    tiles = mosaic.reshape(rows, height, columns, width).swapaxes(1, 2).reshape(rows * columns, height * width)
    return full_scale(tiles[: shape[0]].astype(np.int32) - _ZERO)


def full_scale(codes: Array) -> Array:
    """(out, in) int8: each row times 127 / its largest |code|, rounded half away from zero, in whole numbers."""
    wide = codes.astype(np.int32)
    peak = np.maximum(np.abs(wide).max(axis=1, keepdims=True), 1)
    scaled: Array = np.sign(wide) * ((2 * PEAK * np.abs(wide) + peak) // (2 * peak))
    return scaled.astype(np.int8)


def too_large(shape: tuple[int, ...]) -> str | None:
    """Why codes of this shape do not fit into one image; None where they do."""
    if shape[0] * shape[1] > LARGEST_CODES:
        return f"more than {LARGEST_CODES} numbers"
    rows, columns = _grid(shape)
    height, width = image_sides(shape[1])
    if max(rows * height, columns * width) > LONGEST_SIDE:
        return f"more than {LONGEST_SIDE} pixels on a side"
    return None


def _grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) of tiles: the mosaic is about square."""
    height, width = image_sides(shape[1])
    columns = min(max(round(math.sqrt(shape[0] * height / width)), 1), shape[0])
    return -(-shape[0] // columns), columns


def _pixels(pillow: ModuleType, data: bytes, size: tuple[int, int]) -> Array:
    """(height, width) uint8; the header is checked before anything is unpacked."""
    if len(data) > 4 * size[0] * size[1] + 65536:
        raise ModelError(f"an image of {size[0]}×{size[1]} pixels does not take {len(data)} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a suspected decompression bomb is only a warning
            with pillow.open(io.BytesIO(data), formats=["JPEG"]) as image:
                found = (image.format, image.mode, image.size, bool(image.info.get("progressive")))
                if found == ("JPEG", "L", size, False):
                    return np.array(image)
    except (
        OSError,
        ValueError,
        SyntaxError,
        LookupError,
        TypeError,
        AttributeError,
        struct.error,
        Warning,
        MemoryError,
        pillow.DecompressionBombError,
    ) as error:
        raise ModelError(f"weights as a JPEG image cannot be read: {error}") from error
    raise ModelError(f"expected a grey baseline JPEG of {size[0]}×{size[1]} pixels, found {found}")


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError("weights as JPEG images need Pillow", hint=install_hint("methods")) from error
    return Image
