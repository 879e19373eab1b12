"""Tensors found in a .tflite file's bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_tflitegraph import written

from edgepack.errors import ModelError
from edgepack.tflitespans import tensor_spans


def test_constants_are_found_where_they_are(tmp_path: Path) -> None:
    weight, bias = np.arange(24, dtype=np.float32).reshape(4, 6), np.arange(4, dtype=np.float32)
    content = written(tmp_path, weight, bias).read_bytes()
    found = {span.name: span for span in tensor_spans(content, "m.tflite")}
    assert {name: (span.bits, span.shape) for name, span in found.items()} == {"w": (32, (4, 6)), "b": (32, (4,))}
    for name, array in {"w": weight, "b": bias}.items():
        span = found[name]
        assert content[span.offset : span.offset + span.size_bytes] == array.tobytes()


def test_no_tflite_file() -> None:
    with pytest.raises(ModelError, match=r"m\.tflite: not a TFLite file"):
        tensor_spans(b"x" * 100, "m.tflite")
