"""The example inputs that a pack holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepack.backends.registry import backend
from edgepack.pipeline.build import place_examples


@pytest.mark.parametrize(("taken", "files"), [(TensorProto.INT32, 2), (TensorProto.INT64, 1)])
def test_each_model_has_inputs_that_fit(taken: int, files: int, tmp_path: Path) -> None:
    ids, out = (helper.make_tensor_value_info(name, taken, [1, 4]) for name in ("ids", "out"))
    graph = helper.make_graph([helper.make_node("Add", ["ids", "ids"], ["out"])], "g", [ids], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    given = {"ids": np.arange(4).reshape(1, 4)}
    place_examples(tmp_path, given, ("onnx",))
    written = sorted(tmp_path.glob("*.npz"))
    assert [path.name for path in written] == ["example_inputs.npz", "example_inputs.onnx.npz"][:files]
    with np.load(written[-1]) as arrays:
        feed = dict(arrays)
    (spec,) = backend("onnx").load(tmp_path / "model.onnx").inputs
    assert feed["ids"].dtype == spec.dtype
    np.testing.assert_array_equal(feed["ids"], given["ids"])
