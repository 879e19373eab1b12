from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgepack.backends.tflite.file import File, Writing, whole
from edgepack.backends.tflite.read import linear_ops
from edgepack.errors import ModelError


def test_a_constant_is_read_from_an_array_and_from_bytes_behind_the_flatbuffer(tflite_models: Path) -> None:
    path = tflite_models / "fp32.tflite"
    writing = Writing(File(whole(path)), 0)
    graph = writing.graph
    buffer = writing.file.model.buffers[graph.tensors[graph.operators[0].inputs[1]].buffer]
    content = bytes(buffer.data)
    for buffer.data in (content, np.frombuffer(content, np.uint8)):
        value = writing.value(graph.operators[0].inputs[1])
        np.testing.assert_array_equal(value.reshape(len(value), -1), linear_ops(path)[0].weight)
    with pytest.raises(ModelError, match="no float32 constant"):
        writing.value(graph.inputs[0])
