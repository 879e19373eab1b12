"""LSTM and GRU of ONNX become torch's own; what torch has no counterpart for is refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgepack.errors import ModelError
from edgepack.torchgraph.from_onnx import onnx_to_program

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

STEPS, SEQUENCES, FEATURES, UNITS = 5, 2, 3, 4
GATES = {"LSTM": 4, "GRU": 3}
BARE = ["W", "R"]
FULL = ["W", "R", "B"]
STATES = ["W", "R", "B", "", "h", "c"]


def write(
    folder: Path, operator: str, inputs: list[str], outputs: list[str], computed: str = "", **attributes: Any
) -> Path:
    """A file of one node: weights and states of random constants, x and `computed` from outside."""
    ways = 2 if attributes.get("direction") == "bidirectional" else 1
    rows = GATES[operator] * UNITS
    shapes = {"x": (STEPS, SEQUENCES, FEATURES), "W": (ways, rows, FEATURES), "R": (ways, rows, UNITS)}
    shapes |= {"B": (ways, 2 * rows), "y": (STEPS, ways, SEQUENCES, UNITS), "P": (ways, 3 * UNITS)}
    shapes |= dict.fromkeys(("h", "c", "last", "cell"), (ways, SEQUENCES, UNITS))
    rng = np.random.default_rng(1)
    constants = {name: rng.normal(size=shapes[name]).astype(np.float32) for name in ("W", "R", "B", "h", "c", "P")}
    constants |= {"lengths": np.full(SEQUENCES, STEPS, np.int32), "short": np.array([STEPS, 2], np.int32)}
    del constants[computed or "P"]

    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name])

    graph = helper.make_graph(
        [helper.make_node(operator, ["x", *inputs], outputs, name="cells", hidden_size=UNITS, **attributes)],
        "recurrent",
        [value(name) for name in ("x", computed) if name],
        [value(name) for name in outputs if name],
        [numpy_helper.from_array(constants[name], name) for name in inputs if name in constants],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.parametrize(
    ("operator", "inputs", "outputs", "attributes"),
    [
        ("LSTM", BARE, ["", "last"], {}),
        ("LSTM", STATES, ["y", "", "cell"], {"activations": ["Sigmoid", "Tanh", "Tanh"]}),
        ("LSTM", [*FULL, "lengths"], ["y", "last", "cell"], {"direction": "bidirectional"}),
        ("LSTM", FULL, ["y"], {"direction": "reverse"}),
        ("GRU", STATES[:-1], ["y", "last"], {"direction": "bidirectional", "linear_before_reset": 1}),
    ],
)
def test_a_node_becomes_what_torch_runs(
    tmp_path: Path, operator: str, inputs: list[str], outputs: list[str], attributes: dict[str, Any]
) -> None:
    path = write(tmp_path, operator, inputs, outputs, **attributes)
    program = onnx_to_program(path, {"x": (STEPS, SEQUENCES, FEATURES)})  # compares it with onnxruntime
    targets = [node.target for node in program.graph.nodes]
    assert {"LSTM": torch.ops.aten.lstm.input, "GRU": torch.ops.aten.gru.input}[operator] in targets


@pytest.mark.parametrize(
    ("operator", "inputs", "computed", "attributes", "reason"),
    [
        ("LSTM", FULL, "", {"activations": ["HardSigmoid", "Tanh", "Tanh"]}, "activations of its own"),
        ("LSTM", [*STATES, "P"], "c", {}, "weights of the cell"),
        ("LSTM", STATES[:-1], "", {}, "one first state of two"),
        ("LSTM", FULL, "W", {}, "weights that are computed"),
        ("LSTM", [*FULL, "short"], "", {}, "lengths of sequences"),
        ("GRU", FULL, "", {}, "reset gate"),
    ],
)
def test_what_torch_does_not_have_is_named(
    tmp_path: Path, operator: str, inputs: list[str], computed: str, attributes: dict[str, Any], reason: str
) -> None:
    path = write(tmp_path, operator, inputs, ["y"], computed, **attributes)
    shapes = {"x": (STEPS, SEQUENCES, FEATURES), "W": (1, 4 * UNITS, FEATURES), "c": (1, SEQUENCES, UNITS)}
    with pytest.raises(ModelError, match=rf"node 'cells' \({operator}\) has .*{reason}"):
        onnx_to_program(path, shapes)
