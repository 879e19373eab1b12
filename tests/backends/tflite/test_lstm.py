"""LSTMs in LiteRT: the fused operators answer as torch does, with nothing left of the inference before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.read import operators, read_file, shape_of
from edgepack.backends.tflite.runtime import load
from edgepack.backends.tflite.schemes import FP32, INT4_DYNAMIC, INT8_DYNAMIC, INT8_STATIC, WEIGHTS8
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array
from edgepack.sources.torch import export_program, save_program
from tests.torchgraph import onnx_cells

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

FEATURES, UNITS, STEPS = 6, 16, 8
ONE, BOTH = "UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM"
FUSED = [ONE, ONE, ONE, BOTH, BOTH, BOTH, ONE, ONE]

# Largest difference from torch; random weights and normal inputs.
TOLERANCES = {FP32: 2e-6, WEIGHTS8: 0.02, INT8_DYNAMIC: 0.02, INT8_STATIC: 0.04, INT4_DYNAMIC: 0.05}


class Lstms(nn.Module):
    """Every form of an LSTM: two layers of it, sequences or steps first, both directions, a stream's states."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(FEATURES, UNITS, num_layers=2, batch_first=True)
        self.plain = nn.LSTM(FEATURES, UNITS, bias=False)
        self.hidden = nn.Linear(FEATURES, 7)
        self.both = nn.LSTM(7, UNITS, num_layers=2, bidirectional=True)
        self.turned = nn.LSTM(FEATURES, UNITS, bidirectional=True, batch_first=True)
        self.stream = nn.LSTM(FEATURES, UNITS, batch_first=True)
        self.learnt = nn.LSTM(UNITS, UNITS, batch_first=True)
        self.state = nn.Parameter(torch.randn(1, 1, UNITS))

    def forward(self, x: Tensor, pair: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        """Of x (1, steps, features), `pair` (steps, 2, features), and the states of the stream (1, 1, units)."""
        y, (last, _) = self.layers(x)
        _, (output, cell) = self.plain(pair)
        both, (hidden, cells) = self.both(torch.relu(self.hidden(pair)))
        turned, _ = self.turned(pair.swapaxes(0, 1))
        step, (h, c) = self.stream(x[:, :1], (h, c))
        learnt, _ = self.learnt(step, (self.state, self.state))
        return y, last, output, cell, both, hidden, cells, turned, h, c, learnt


@pytest.fixture(scope="module")
def lstms(emitter: TfliteEmitter, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """The model, and its .tflite file."""
    torch.manual_seed(4)
    model, folder = Lstms().eval(), tmp_path_factory.mktemp("lstms")
    example = tuple(torch.from_numpy(array) for array in inputs(0).values())
    save_program(export_program(model, example), folder / "dense.pt2")
    emitter.load_program(folder / "dense.pt2")
    emitter.emit(folder / "dense.tflite")
    return model, folder / "dense.tflite"


def inputs(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {"x": (1, STEPS, FEATURES), "pair": (STEPS, 2, FEATURES), "h": (1, 1, UNITS), "c": (1, 1, UNITS)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("scheme", TOLERANCES, ids=str)
def test_every_inference_agrees_with_torch(
    emitter: TfliteEmitter, lstms: tuple[nn.Module, Path], tmp_path: Path, scheme: Scheme
) -> None:
    model, dense = lstms
    path = tmp_path / "model.tflite"
    samples = {name: np.stack([inputs(seed)[name] for seed in range(8)]) for name in inputs(0)}
    emitter.quantize(dense, path, scheme, samples if scheme == INT8_STATIC else None)
    assert [name for name in operators(path) if "LSTM" in name] == FUSED
    session = load(path, threads=1)
    for seed in (1, 1, 2):
        with torch.no_grad():
            want = model(*map(torch.from_numpy, inputs(seed).values()))
        for one, other in zip(session.run(inputs(seed)), want, strict=True):
            np.testing.assert_allclose(one, other.numpy(), atol=TOLERANCES[scheme])


def test_integer_schemes_store_the_weights_of_input_and_state_in_8_bits(
    emitter: TfliteEmitter, lstms: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    emitter.quantize(lstms[1], tmp_path / "int8.tflite", INT8_DYNAMIC)
    for path, kind in ((lstms[1], "float32"), (tmp_path / "int8.tflite", "int8")):
        assert matrices(path) == {kind}


def matrices(path: Path) -> set[str]:
    """The types of all constants of the shapes of gates."""
    names = {0: "float32", 9: "int8"}

    def read(model: object) -> set[str]:
        graph = model.Subgraphs(0)  # type: ignore[attr-defined]
        tensors = [graph.Tensors(index) for index in range(graph.TensorsLength())]
        shapes = {(UNITS, width) for width in (FEATURES, 7, UNITS, 2 * UNITS)}
        return {names[each.Type()] for each in tensors if shape_of(each) in shapes}

    return read_file(path, read)


def test_a_stream_of_1000_steps_agrees_with_torch(lstms: tuple[nn.Module, Path]) -> None:
    model, path = lstms
    session, given = load(path, threads=1), inputs(3)
    steps = np.random.default_rng(5).standard_normal((1000, 1, 1, FEATURES)).astype(np.float32)
    h, c = given["h"], given["c"]
    with torch.no_grad():
        _, state = model.stream(
            torch.from_numpy(steps.reshape(1, 1000, FEATURES)), (torch.from_numpy(h), torch.from_numpy(c))
        )
    for step in steps:
        given["x"][:, :1] = step
        *_, h, c, _ = session.run({**given, "h": h, "c": c})
    np.testing.assert_allclose(h, state[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(c, state[1].numpy(), atol=1e-5)


def test_an_onnx_model_has_the_fused_operator_as_well(emitter: TfliteEmitter, tmp_path: Path) -> None:
    outputs = ["y", "last", "cell"]
    path = onnx_cells.write(tmp_path, "LSTM", onnx_cells.STATES, outputs, direction="bidirectional")
    x = np.random.default_rng(2).standard_normal((onnx_cells.STEPS, onnx_cells.SEQUENCES, onnx_cells.FEATURES))
    emitter.load_onnx(path, {"x": x.shape})
    emitter.emit(tmp_path / "model.tflite")
    assert [name for name in operators(tmp_path / "model.tflite") if "LSTM" in name] == [BOTH]
    feed = {"x": x.astype(np.float32)}
    expected = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(outputs, feed)
    for one, other in zip(load(tmp_path / "model.tflite", threads=1).run(feed), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
