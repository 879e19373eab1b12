"""How one tensor is coded: as bytes, as differences along its rows, as nibbles, or in planes of bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edgepack.transport import entropy
from edgepack.transport.needs import need
from edgepack.types import Array

LEVEL = 19
WINDOW_LOG = 27
"""Of zstandard: repeats are found this many bytes (as a power of two) back, and a decoder holds as many."""


@dataclass(frozen=True)
class Codec:
    """A codec of tensors.

    Attributes:
        encode: (bytes of the tensor, its parameter) → coded bytes.
        decode: (coded bytes, size of the tensor, its parameter) → the bytes; ValueError for what cannot be.
    """

    encode: Callable[[Array, int], bytes]
    decode: Callable[[bytes, int, int], bytes]


def zstd(data: bytes | Array) -> bytes:
    """One zstandard frame, with long-range matches, that says how much it holds."""
    library = need("zstandard")
    size = len(data)
    log = min(max(size.bit_length(), 10), WINDOW_LOG)
    parameters = library.ZstdCompressionParameters.from_level(LEVEL, source_size=size, window_log=log, enable_ldm=True)
    written: bytes = library.ZstdCompressor(compression_params=parameters).compress(bytes(data))
    return written


def unzstd(data: bytes, size: int) -> bytes:
    """What a frame holds, of exactly this size.

    Raises:
        ValueError: it holds more, less, or is no frame.
    """
    library = need("zstandard")
    try:
        # The library allocates what the frame declares, so that is looked at first.
        declared = library.get_frame_parameters(data).content_size
        if declared != size:
            raise ValueError(f"a zstandard frame of {declared} bytes, expected {size}")
        reader = library.ZstdDecompressor(max_window_size=1 << WINDOW_LOG)
        content: bytes = reader.decompress(data, max_output_size=size, allow_extra_data=False)
    except library.ZstdError as err:
        raise ValueError(f"a zstandard frame cannot be read: {err}") from err
    if len(content) != size:
        raise ValueError(f"a zstandard frame of {len(content)} bytes, expected {size}")
    return content


def differences(data: Array, row: int) -> Array:
    """Each byte minus the one before it in its row, modulo 256.

    Args:
        data: (n,) uint8.
        row: bytes of a row; the last row may be shorter.
    """
    result = np.diff(data, prepend=np.uint8(0))
    result[::row] = data[::row]
    return result


def sums(data: Array, row: int) -> Array:
    """The inverse of `differences`."""
    whole = len(data) // row * row
    rows = np.cumsum(data[:whole].reshape(-1, row), axis=1, dtype=np.uint8).reshape(-1)
    return np.concatenate([rows, np.cumsum(data[whole:], dtype=np.uint8)])


def nibbles(data: Array) -> Array:
    """(2n,) uint8 of (n,): the lower half of each byte, then its upper half."""
    return np.stack([data & 15, data >> 4], axis=1).reshape(-1)


def planes(data: Array, width: int) -> Array:
    """All first bytes of the numbers of `width` bytes, then all second ones and so on; what is left over comes last."""
    whole = len(data) // width * width
    return np.concatenate([data[:whole].reshape(-1, width).T.reshape(-1), data[whole:]])


def _unplanes(data: Array, width: int) -> Array:
    whole = len(data) // width * width
    return np.concatenate([data[:whole].reshape(width, -1).T.reshape(-1), data[whole:]])


def _symbols(data: bytes, count: int) -> Array:
    parts = list(entropy.decode(data, count))
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)


def _decode_nibbles(data: bytes, size: int, _: int) -> bytes:
    halves = _symbols(data, 2 * size).reshape(-1, 2)
    if size and int(halves.max()) > 15:
        raise ValueError("a nibble above 15")
    joined: Array = halves[:, 0] | halves[:, 1] << 4
    return joined.astype(np.uint8).tobytes()


CODECS: Mapping[str, Codec] = {
    "bytes": Codec(lambda data, _: entropy.encode(data), lambda data, size, _: _symbols(data, size).tobytes()),
    "delta": Codec(
        lambda data, row: entropy.encode(differences(data, row)),
        lambda data, size, row: sums(_symbols(data, size), row).tobytes(),
    ),
    "nibbles": Codec(lambda data, _: entropy.encode(nibbles(data)), _decode_nibbles),
    "planes": Codec(
        lambda data, width: zstd(planes(data, width)),
        lambda data, size, width: _unplanes(np.frombuffer(unzstd(data, size), np.uint8), width).tobytes(),
    ),
}
"""By the name that the container knows them by. The parameter of "delta" is the bytes of a row, that of "planes" the
bytes of a number, and that of the others 0."""
