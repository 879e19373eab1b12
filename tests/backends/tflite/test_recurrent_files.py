"""Files of LSTMs whose inputs are factored: a product in front of the fused operator, in floats and in 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgepack.backends.runtime import Session
from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.kinds import refuses
from edgepack.backends.tflite.read import linear_ops, operators
from edgepack.backends.tflite.rewrite import find_places
from edgepack.backends.tflite.runtime import load
from edgepack.backends.tflite.schemes import FP32, INT4_DYNAMIC, INT8_DYNAMIC, WEIGHTS8
from edgepack.metrics.values import sqnr_db
from edgepack.model.kinds.recurrent import RecurrentGeometry, recurrent_layer
from edgepack.model.layer import Layer
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement, dense, low_rank
from edgepack.model.scheme import Scheme
from edgepack.model.structure import CONSTEXPR, DENSE
from edgepack.model.structure import low_rank as of_rank
from edgepack.model.types import Array
from edgepack.natives import native
from edgepack.quantize.gptq import round_to_nearest
from edgepack.quantize.grids import WeightGrid
from edgepack.sources import open_model
from edgepack.sources.torch import export_program, save_program
from tests.torchgraph.onnx_cells import FEATURES, SEQUENCES, STATES, STEPS, UNITS, write

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

RANK = 2
OUTPUTS = ["y", "last", "cell"]


def factors(layer: Layer) -> Replacement:
    """Of the weights, with another bias as well."""
    u, s, vt = np.linalg.svd(layer.weight.astype(np.float64), full_matrices=False)
    assert layer.bias is not None
    bias = layer.bias + np.linspace(-0.5, 0.5, layer.out_features)
    return low_rank(*(part.astype(np.float32) for part in (u[:, :RANK] * s[:RANK], vt[:RANK], bias)))


@dataclass(frozen=True)
class Files:
    """A model of one LSTM, its converted file, and one with factors in place."""

    model: Model
    dense: Path
    thin: Path

    @property
    def layer(self) -> Layer:
        (layer,) = self.model.layers
        return layer

    @property
    def other(self) -> Session:
        """ONNX Runtime on the same factors."""
        return native("onnx").session(self.model.content, {self.layer.name: factors(self.layer)}, threads=1)

    def put(self, part: Replacement, out: Path) -> tuple[str, ...]:
        """Write a file with a part in place; returns what its operators write."""
        places, parts = find_places(self.dense, self.model.layers, ()), {self.layer.name: part}
        assert places.takes(parts)
        return places.replace(out, parts)[self.layer.name]


def converted(emitter: TfliteEmitter, folder: Path, computed: str = "", **attributes: str) -> Files:
    path = write(folder, "LSTM", STATES, OUTPUTS, computed, **attributes)
    states = dict.fromkeys(computed, (1, SEQUENCES, UNITS))
    emitter.load_onnx(path, {"x": (STEPS, SEQUENCES, FEATURES), **states})
    emitter.emit(folder / "dense.tflite")
    files = Files(open_model(str(path), folder, ("onnx",)), folder / "dense.tflite", folder / "thin.tflite")
    names = files.put(factors(files.layer), files.thin)
    assert names == tuple(op.output for op in linear_ops(files.thin))
    return files


@pytest.fixture(scope="module")
def stream(emitter: TfliteEmitter, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """One direction, its states from outside."""
    return converted(emitter, tmp_path_factory.mktemp("stream"), "hc")


class Stream(nn.Module):
    """Two layers of both directions, their states from outside and back."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(FEATURES, UNITS, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        y, (h, c) = self.cells(x, (h, c))
        return y, h, c


@pytest.fixture(scope="module")
def program(emitter: TfliteEmitter, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """A torch program of `Stream`, and its converted file."""
    folder = tmp_path_factory.mktemp("program")
    torch.manual_seed(3)
    state = torch.zeros(4, 1, UNITS)
    save_program(export_program(Stream(), (torch.zeros(1, STEPS, FEATURES), state, state)), folder / "m.pt2")
    model = open_model(str(folder / "m.pt2"), folder, ("tflite",))
    assert model.program is not None
    emitter.load_program(model.program)
    emitter.emit(folder / "dense.tflite")
    return model, folder / "dense.tflite"


def agree(session: Session, other: Session, atol: float) -> None:
    """Over 1,000 steps, each with the states that it gave itself."""
    states = wanted = [np.zeros((4, 1, UNITS), np.float32)] * 2
    for x in normal(1000 // STEPS, 1, STEPS, FEATURES):
        y, *states = session.run({"x": x, "h": states[0], "c": states[1]})
        expected, *wanted = other.run({"x": x, "h": wanted[0], "c": wanted[1]})
        np.testing.assert_allclose(y, expected, atol=atol)


def test_a_torch_stream_of_two_layers_and_both_directions_agrees_over_1000_steps(
    emitter: TfliteEmitter, program: tuple[Model, Path], tmp_path: Path
) -> None:
    model, dense_file = program
    parts = {layer.name: factors(layer) for layer in model.layers}
    places = find_places(dense_file, model.layers, ())
    assert len(parts) == 2
    assert places.takes(parts)
    places.replace(tmp_path / "thin.tflite", parts)
    assert [op.op for op in linear_ops(tmp_path / "thin.tflite")] == [
        *("FULLY_CONNECTED", "BIDIRECTIONAL_SEQUENCE_LSTM") * 2,
    ]
    reference = native("torch").session(model.content, parts, threads=1)
    agree(load(tmp_path / "thin.tflite", threads=1), reference, 1e-5)
    emitter.quantize(tmp_path / "thin.tflite", tmp_path / "int8.tflite", INT8_DYNAMIC)
    assert {op.bits for op in linear_ops(tmp_path / "int8.tflite")} == {8}
    agree(load(tmp_path / "int8.tflite", threads=1), reference, 0.05)


@pytest.mark.parametrize("stored", ["floats", "8 bits"])
def test_a_tflite_source_is_factored_by_editing_it(
    emitter: TfliteEmitter, program: tuple[Model, Path], tmp_path: Path, stored: str
) -> None:
    """Also where the operators of the source have integers already, which round the activations."""
    model, source = program
    if stored == "8 bits":
        emitter.quantize(source, tmp_path / "source.tflite", INT8_DYNAMIC)
        source = tmp_path / "source.tflite"
    given = open_model(str(source), tmp_path)
    for one, other in zip(given.layers, model.layers, strict=True):
        assert one.geometry == other.geometry
        np.testing.assert_allclose(one.weight, other.weight, atol=0.0 if stored == "floats" else 0.01)
    dense_session = native("tflite").session(given.content, {}, threads=1)
    agree(dense_session, load(source, threads=1), 1e-6 if stored == "floats" else 0.05)
    parts = {one.name: factors(one) for one in given.layers}
    edited = native("tflite").session(given.content, parts, threads=1)
    if stored == "floats":
        # There a bias is that of input and state together.
        same = {other.name: factors(other) for other in model.layers}
        agree(edited, native("torch").session(model.content, same, threads=1), 1e-5)
    made, names = native("tflite").with_factors(given.content, parts)
    agree(native("tflite").session(made, {}, threads=1), edited, 1e-6)
    assert {len(own) for own in names.values()} == {2}


def normal(*shape: int) -> Array:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_factors_stand_in_front_of_the_fused_operator_and_answer_like_those_in_onnx(
    emitter: TfliteEmitter, tmp_path: Path, direction: str
) -> None:
    files = converted(emitter, tmp_path, direction=direction)
    ways = 2 if direction == "bidirectional" else 1
    fused = {1: "UNIDIRECTIONAL_SEQUENCE_LSTM", 2: "BIDIRECTIONAL_SEQUENCE_LSTM"}[ways]
    kept = [name for name in operators(files.thin) if name in ("FULLY_CONNECTED", fused)]
    assert kept == ["FULLY_CONNECTED", fused]
    assert [op.weight.shape for op in linear_ops(files.thin)] == [(RANK, FEATURES), (4 * ways * UNITS, RANK)]
    emitter.quantize(files.thin, tmp_path / "int8.tflite", INT8_DYNAMIC)
    assert {op.bits for op in linear_ops(tmp_path / "int8.tflite")} == {8}
    feed = {"x": normal(STEPS, SEQUENCES, FEATURES)}
    exact, rounded = (load(path, threads=1).run(feed) for path in (files.thin, tmp_path / "int8.tflite"))
    for wanted, one, other in zip(files.other.run(feed), exact, rounded, strict=True):
        np.testing.assert_allclose(one, wanted, atol=2e-6)
        assert sqnr_db(other, wanted) > 20


def test_a_factored_stream_of_1000_steps_agrees_with_onnx(stream: Files) -> None:
    session, other = load(stream.thin, threads=1), stream.other
    states = wanted = [np.zeros((1, SEQUENCES, UNITS), np.float32)] * 2
    for x in normal(1000 // STEPS, STEPS, SEQUENCES, FEATURES):
        y, *states = session.run({"x": x, "h": states[0], "c": states[1]})
        expected, *wanted = other.run({"x": x, "h": wanted[0], "c": wanted[1]})
        np.testing.assert_allclose(y, expected, atol=1e-5)


def test_the_operator_has_the_scheme_of_its_layer(emitter: TfliteEmitter, stream: Files, tmp_path: Path) -> None:
    outputs = [op.output for op in linear_ops(stream.thin)]

    def bits(base: Scheme, own: Scheme) -> list[int]:
        emitter.quantize(stream.thin, tmp_path / "own.tflite", base, None, dict.fromkeys(outputs, own))
        return [op.bits for op in linear_ops(tmp_path / "own.tflite")]

    assert bits(INT8_DYNAMIC, FP32) == [32, 32]
    assert bits(FP32, INT8_DYNAMIC) == [8, 8]


def test_gates_on_one_grid_are_stored_exactly(emitter: TfliteEmitter, stream: Files, tmp_path: Path) -> None:
    part, grid = factors(stream.layer), WeightGrid(127, shared=True)
    part = low_rank(round_to_nearest(part.A, grid).weight, part.B, part.bias)
    stream.put(part, tmp_path / "thin.tflite")
    emitter.quantize(tmp_path / "thin.tflite", tmp_path / "int8.tflite", INT8_DYNAMIC)
    exact, stored = (linear_ops(tmp_path / f"{name}.tflite")[-1].values for name in ("thin", "int8"))
    np.testing.assert_array_equal(stored, exact)


def test_other_weights_for_its_gates_are_refused(stream: Files) -> None:
    places, layer = find_places(stream.dense, stream.model.layers, ()), stream.layer
    assert "rounded each by itself" in str(places.refuses(layer.name, dense(layer.weight, layer.bias)))


def test_what_recurrent_layers_cannot_be_is_refused() -> None:
    def layer(operator: str) -> Layer:
        weight: Array = np.zeros((48, 20), np.float32)
        return recurrent_layer("cells", weight, None, RecurrentGeometry(operator, 12))

    lstm, gru, rnn = layer("LSTM"), layer("GRU"), layer("RNN")
    for scheme in (FP32, INT8_DYNAMIC):
        assert refuses(lstm, of_rank(4), scheme) is None
        assert refuses(gru, of_rank(4), scheme) is None
        assert refuses(rnn, DENSE, scheme) is None
        assert "unrolled" in str(refuses(rnn, of_rank(4), scheme))
    for scheme in (WEIGHTS8, INT4_DYNAMIC):
        assert "8 bits" in str(refuses(lstm, of_rank(4), scheme))
        assert refuses(gru, of_rank(4), scheme) is None
    assert "4-bit" in str(refuses(gru, of_rank(3), INT4_DYNAMIC))
    assert "code" in str(refuses(gru, CONSTEXPR, FP32))
