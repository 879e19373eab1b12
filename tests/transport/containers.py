"""Containers made by hand, good ones and those that no edgepack writes."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from edgepack.transport.codecs import unzstd, zstd
from edgepack.transport.container import MAGIC, VERSION
from edgepack.transport.packing import pack
from edgepack.transport.parts import Source, Span

Header = dict[str, Any]


def gaussian_codes(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """(rows, columns) int8: Gaussian weights, each row's largest at ±127."""
    weight = np.random.default_rng(seed).normal(size=(rows, columns))
    return np.rint(weight / np.abs(weight).max(axis=1, keepdims=True) * 127).astype(np.int8)


def sample() -> tuple[bytes, bytes]:
    """A file with an int8 tensor and a float tensor between other bytes, and its container."""
    codes = gaussian_codes(24, 100).tobytes()
    floats = np.random.default_rng(1).normal(size=(30, 40)).astype(np.float32).tobytes()
    content = b"structure " * 10 + codes + b" and more " * 10 + floats + b"end"
    spans = [Span("codes", 100, 8, (24, 100)), Span("floats", 100 + len(codes) + 100, 32, (30, 40))]
    return content, pack([Source("model.onnx", content, spans)]).content


def taken_apart(container: bytes) -> tuple[Header, bytes]:
    """Header and payload."""
    coded, size = struct.unpack_from("<II", container, 14)
    return json.loads(unzstd(container[22 : 22 + coded], size)), container[22 + coded :]


def put_together(header: Header | bytes, payload: bytes, version: int = VERSION, size: int | None = None) -> bytes:
    """A container with a right checksum around whatever is given."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    coded = zstd(text)
    rest = struct.pack("<II", len(coded), len(text) if size is None else size) + coded + payload
    return MAGIC + struct.pack("<HI", version, zlib.crc32(rest)) + rest


def changed(container: bytes, change: Callable[[Header], object]) -> bytes:
    """The container with another header."""
    header, payload = taken_apart(container)
    change(header["files"][0])
    return put_together(header, payload)
