"""Small TFLite files: short names, no notes and empty tables, one of equal vectors; and the same answers to the bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.backends.runtime import load
from edgepack.backends.tflite.file import packed
from edgepack.backends.tflite.read import linear_ops, read_file
from edgepack.backends.tflite.runtime import signature
from edgepack.backends.tflite.tidy import shorten_names, tidy
from edgepack.model.types import Array

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def answer(path: Path) -> Array:
    session = load(path, "tflite")
    (spec,) = session.inputs
    x = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    return session.run({spec.name: x})[0]


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_smaller_and_the_same(tflite_models: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.tflite"
    shutil.copy(tflite_models / f"{name}.tflite", path)
    wanted, called, size = answer(path), signature(path), path.stat().st_size
    written = [op.output for op in linear_ops(path)]
    tidy(path)
    np.testing.assert_array_equal(answer(path), wanted)
    assert signature(path) == called
    assert [op.output for op in linear_ops(path)] == written
    assert path.stat().st_size < size
    content = path.read_bytes()
    tidy(path)
    assert path.read_bytes() == content


def test_only_inputs_and_outputs_keep_their_names(tflite_models: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    shutil.copy(tflite_models / "fp32.tflite", path)
    wanted, called = answer(path), signature(path)
    before = set(_names(path))
    shorten_names(path)
    np.testing.assert_array_equal(answer(path), wanted)
    assert signature(path) == called
    names = _names(path)
    assert len(set(names)) == len(names)
    kept = set(names) & before
    assert len(kept) == 2
    assert all(name.isdigit() for name in set(names) - kept)


def test_equal_biases_are_stored_once(tmp_path: Path, tflite_models: Path) -> None:
    """The second bias is given the ten first numbers of the first, and a copy of the file's own."""
    from ai_edge_litert.tools import flatbuffer_utils

    path = tmp_path / "m.tflite"
    model = flatbuffer_utils.read_model_from_bytearray((tflite_models / "fp32.tflite").read_bytes())
    graph = model.subgraphs[0]
    first, second = (model.buffers[graph.tensors[op.inputs[2]].buffer] for op in graph.operators)
    assert len(first.data) > len(second.data)
    twin = graph.operators[1]
    bias = graph.tensors[twin.inputs[2]]
    model.buffers.append(type(first)())
    model.buffers[-1].data = bytes(second.data)
    graph.tensors.append(type(bias)())
    graph.tensors[-1].__dict__.update({**bias.__dict__, "buffer": len(model.buffers) - 1, "name": b"twin"})
    added = type(twin)()
    added.__dict__.update({**twin.__dict__, "inputs": [*twin.inputs[:2], len(graph.tensors) - 1]})
    graph.tensors.append(type(bias)())
    graph.tensors[-1].__dict__.update({**graph.tensors[twin.outputs[0]].__dict__, "name": b"second"})
    added.outputs = [len(graph.tensors) - 1]
    graph.operators.append(added)
    graph.outputs = [*graph.outputs, added.outputs[0]]
    path.write_bytes(packed(model))
    tidy(path)
    ops = linear_ops(path)
    assert len(ops) == 3
    np.testing.assert_array_equal(ops[1].bias, ops[2].bias)
    assert _bias_buffers(path)[1] == _bias_buffers(path)[2] != _bias_buffers(path)[0]


def _names(path: Path) -> list[str]:
    def read(model: Any) -> list[str]:
        graph = model.Subgraphs(0)
        return [graph.Tensors(index).Name().decode() for index in range(graph.TensorsLength())]

    return read_file(path, read)


def _bias_buffers(path: Path) -> list[int]:
    def read(model: Any) -> list[int]:
        graph = model.Subgraphs(0)
        operators = [graph.Operators(index) for index in range(graph.OperatorsLength())]
        return [graph.Tensors(each.Inputs(2)).Buffer() for each in operators if each.InputsLength() == 3]

    return read_file(path, read)
