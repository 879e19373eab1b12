"""Entropy coding of bytes and nibbles: a range coder (Martin 1979) from the library constriction, static model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgepack.transport.histogram import Histogram, fitted, from_bytes
from edgepack.transport.needs import need
from edgepack.types import Array

CHUNK = 1 << 20
"""Symbols at a time: the library wants four bytes for each."""


def cost_bytes(symbols: Array) -> float:
    """What `encode` comes to, within a few bytes."""
    counts = np.bincount(symbols, minlength=256)
    return fitted(counts).cost_bytes(counts)


def encode(symbols: Array) -> bytes:
    """The model and the coded symbols.

    Args:
        symbols: (n,) uint8, n > 0.
    """
    queue = need("constriction").stream.queue
    histogram = fitted(np.bincount(symbols, minlength=256))
    head = histogram.to_bytes()
    if histogram.low == histogram.high:
        return head
    model, coder = _model(histogram), queue.RangeEncoder()
    for start in range(0, len(symbols), CHUNK):
        flipped = symbols[start : start + CHUNK] ^ np.uint8(histogram.flip)
        coder.encode(flipped.astype(np.int32) - histogram.low, model)
    return head + np.asarray(coder.get_compressed()).astype("<u4").tobytes()


def decode(data: bytes, count: int) -> Iterator[Array]:
    """The symbols, uint8, in chunks of at most `CHUNK`: `count` of them in all.

    Raises:
        ValueError: the data cannot be what `encode` wrote.
    """
    queue = need("constriction").stream.queue
    histogram, start = from_bytes(data)
    if histogram.low == histogram.high:
        if start != len(data):
            raise ValueError(f"{len(data) - start} bytes after a tensor of one value")
        for size in _chunks(count):
            yield np.full(size, histogram.low ^ histogram.flip, np.uint8)
        return
    if (len(data) - start) % 4:
        raise ValueError(f"{len(data) - start} bytes of coded symbols, expected whole words of 4")
    model = _model(histogram)
    try:
        coder = queue.RangeDecoder(np.frombuffer(data, "<u4", offset=start).astype(np.uint32))
        for size in _chunks(count):
            yield (np.asarray(coder.decode(model, size)) + histogram.low).astype(np.uint8) ^ np.uint8(histogram.flip)
    except AssertionError as err:  # the library's word for data that no encoder writes
        raise ValueError(f"coded symbols cannot be read: {err}") from err


def _chunks(count: int) -> Iterator[int]:
    for start in range(0, count, CHUNK):
        yield min(CHUNK, count - start)


def _model(histogram: Histogram) -> Any:
    """Whole numbers far below 2^53: the probabilities that the library computes are the same everywhere."""
    frequencies = histogram.frequencies.astype(np.float64)
    return need("constriction").stream.model.Categorical(frequencies, lazy=False, perfect=False)
