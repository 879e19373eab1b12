"""LSTM and GRU of ONNX: torch's own where it computes the same, else one step after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgepack.torchgraph.from_onnx import onnx_to_program
from tests.torchgraph.onnx_cells import BARE, FEATURES, FULL, SEQUENCES, STATES, STEPS, UNITS, write

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

SHAPES = {"x": (STEPS, SEQUENCES, FEATURES), "W": (1, 4 * UNITS, FEATURES), "c": (1, SEQUENCES, UNITS)}
OWN = {"LSTM": torch.ops.aten.lstm.input, "GRU": torch.ops.aten.gru.input}


@pytest.mark.parametrize(
    ("operator", "inputs", "outputs", "attributes"),
    [
        ("LSTM", BARE, ["", "last"], {}),
        ("LSTM", STATES, ["y", "", "cell"], {"activations": ["Sigmoid", "Tanh", "Tanh"]}),
        ("LSTM", STATES[:-1], ["y"], {}),
        ("LSTM", [*FULL, "lengths"], ["y", "last", "cell"], {"direction": "bidirectional"}),
        ("LSTM", FULL, ["y"], {"direction": "reverse"}),
        ("GRU", STATES[:-1], ["y", "last"], {"direction": "bidirectional", "linear_before_reset": 1}),
    ],
)
def test_a_node_becomes_what_torch_runs(
    tmp_path: Path, operator: str, inputs: list[str], outputs: list[str], attributes: dict[str, Any]
) -> None:
    path = write(tmp_path, operator, inputs, outputs, **attributes)
    program = onnx_to_program(path, {"x": SHAPES["x"]})  # compares it with onnxruntime
    assert OWN[operator] in [node.target for node in program.graph.nodes]


@pytest.mark.parametrize("computed", [(), ("short",)])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_sequences_of_different_lengths_need_no_steps(
    tmp_path: Path, direction: str, computed: tuple[str, ...]
) -> None:
    settings = {"direction": direction, "linear_before_reset": 1}
    path = write(tmp_path, "GRU", [*FULL, "short", "h"], ["y", "last"], computed, **settings)
    x = np.random.default_rng(0).normal(size=SHAPES["x"]).astype(np.float32)
    feed = {"x": x} | {name: np.array([2, STEPS - 1], np.int32) for name in computed}
    shapes = {name: array.shape for name, array in feed.items()}
    program = onnx_to_program(path, shapes, [feed])  # compares it with onnxruntime
    assert OWN["GRU"] in [node.target for node in program.graph.nodes]


@pytest.mark.parametrize(
    ("operator", "inputs", "computed", "attributes"),
    [
        ("LSTM", FULL, "", {"activations": ["HardSigmoid", "Tanh", "Tanh"]}),
        ("LSTM", FULL, "", {"clip": 0.25, "input_forget": 1}),
        ("LSTM", [*STATES, "P"], "c", {}),
        ("LSTM", [*FULL, "short"], "", {"direction": "bidirectional"}),
        ("GRU", FULL, "", {"direction": "reverse"}),
    ],
)
def test_what_torch_does_not_have_goes_by_steps(
    tmp_path: Path, operator: str, inputs: list[str], computed: str, attributes: dict[str, Any]
) -> None:
    path = write(tmp_path, operator, inputs, ["y", "last"], computed, **attributes)
    program = onnx_to_program(path, {name: SHAPES[name] for name in ("x", computed) if name})
    assert OWN[operator] not in [node.target for node in program.graph.nodes]
