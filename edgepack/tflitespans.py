"""Where a .tflite file holds its tensors, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgepack.tflitegraph.contents import constants
from edgepack.transport.parts import Span

# schema.fbs, TensorType → bits per number.
_BITS: Mapping[int, int] = {0: 32, 1: 16, 2: 32, 3: 8, 4: 64, 6: 8, 7: 16, 9: 8, 10: 64, 12: 64, 15: 32, 16: 16, 17: 4}


def tensor_spans(content: bytes, name: str) -> list[Span]:
    """Every constant tensor once, also where several share a buffer.

    Args:
        content: the file's bytes.
        name: what to call it in an error.

    Raises:
        ModelError: a truncated or foreign file.
    """
    base = np.frombuffer(content, np.uint8).ctypes.data
    found: dict[int, Span] = {}
    for tensor, kind, shape, raw in constants(content, name):
        span = Span(tensor, raw.ctypes.data - base, _BITS.get(kind, 8), shape)
        if span.size_bytes == raw.size and 0 <= span.offset <= len(content) - raw.size:
            found.setdefault(span.offset, span)
    return list(found.values())
