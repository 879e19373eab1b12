"""LSTM and GRU of ONNX become torch's own; what torch has no counterpart for is refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from edgepack.errors import ModelError
from edgepack.torchgraph.from_onnx import onnx_to_program
from tests.torchgraph.onnx_cells import BARE, FEATURES, FULL, SEQUENCES, STATES, STEPS, UNITS, write

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


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
