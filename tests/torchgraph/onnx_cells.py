"""ONNX files of one recurrent node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STEPS, SEQUENCES, FEATURES, UNITS = 5, 2, 3, 4
GATES = {"LSTM": 4, "GRU": 3}
BARE = ["W", "R"]
FULL = ["W", "R", "B"]
STATES = ["W", "R", "B", "", "h", "c"]


def write(
    folder: Path, operator: str, inputs: list[str], outputs: list[str], computed: Sequence[str] = "", **attributes: Any
) -> Path:
    """A file of one node: weights and states of random constants, x and each of `computed` from outside."""
    ways = 2 if attributes.get("direction") == "bidirectional" else 1
    rows = GATES[operator] * UNITS
    shapes = {"x": (STEPS, SEQUENCES, FEATURES), "W": (ways, rows, FEATURES), "R": (ways, rows, UNITS)}
    shapes |= {"B": (ways, 2 * rows), "y": (STEPS, ways, SEQUENCES, UNITS), "P": (ways, 3 * UNITS)}
    shapes |= dict.fromkeys(("h", "c", "last", "cell"), (ways, SEQUENCES, UNITS)) | {"short": (SEQUENCES,)}
    rng = np.random.default_rng(1)
    constants = {name: rng.normal(size=shapes[name]).astype(np.float32) for name in ("W", "R", "B", "h", "c", "P")}
    constants |= {"lengths": np.full(SEQUENCES, STEPS, np.int32), "short": np.array([STEPS, 2], np.int32)}
    for name in computed or "P":
        del constants[name]

    def value(name: str) -> onnx.ValueInfoProto:
        kind = TensorProto.INT32 if name == "short" else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, shapes[name])

    graph = helper.make_graph(
        [helper.make_node(operator, ["x", *inputs], outputs, name="cells", hidden_size=UNITS, **attributes)],
        "recurrent",
        [value(name) for name in ("x", *computed)],
        [value(name) for name in outputs if name],
        [numpy_helper.from_array(constants[name], name) for name in inputs if name in constants],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path
