"""GRUs in LiteRT: a product over all steps and a loop answer as torch does, in every scheme."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.kinds import refuses
from edgepack.backends.tflite.read import linear_ops, operators
from edgepack.backends.tflite.rewrite import find_places
from edgepack.backends.tflite.runtime import load
from edgepack.backends.tflite.schemes import FP32, INT4_DYNAMIC, INT8_DYNAMIC, INT8_STATIC, WEIGHTS8
from edgepack.backends.tflite.tidy import shorten_names
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement, dense, low_rank
from edgepack.model.scheme import Scheme
from edgepack.model.structure import low_rank as of_rank
from edgepack.model.types import Array
from edgepack.natives import native
from edgepack.sources import open_model
from edgepack.sources.torch import export_program, save_program
from tests.torchgraph import onnx_cells

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

FEATURES, UNITS, STEPS = 6, 16, 8
LOOPS = 2 + 1 + 4 + 2
"""A stream of single steps has none."""

# Largest difference from torch; random weights and normal inputs.
TOLERANCES = {FP32: 2e-6, WEIGHTS8: 0.02, INT8_DYNAMIC: 0.03, INT8_STATIC: 0.06, INT4_DYNAMIC: 0.3}


class Grus(nn.Module):
    """Every form of a GRU: two layers of it, sequences or steps first, both directions, a stream's states."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.GRU(FEATURES, UNITS, num_layers=2, batch_first=True)
        self.plain = nn.GRU(FEATURES, UNITS, bias=False)
        self.both = nn.GRU(FEATURES, UNITS, num_layers=2, bidirectional=True)
        self.turned = nn.GRU(FEATURES, UNITS, bidirectional=True, batch_first=True)
        self.stream = nn.GRU(FEATURES, UNITS, batch_first=True)

    def forward(self, x: Tensor, pair: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """Of x (1, steps, features), `pair` (steps, 2, features), and the state of the stream (1, 1, units)."""
        y, last = self.layers(x)
        _, output = self.plain(pair)
        both, hidden = self.both(pair)
        turned, _ = self.turned(pair.swapaxes(0, 1))
        step, h = self.stream(x[:, :1], h)
        return y, last, output, both, hidden, turned, step, h


@pytest.fixture(scope="module")
def grus(emitter: TfliteEmitter, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """The torch program, and its .tflite file."""
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("grus")
    example = tuple(torch.from_numpy(array) for array in inputs(0).values())
    save_program(export_program(Grus().eval(), example), folder / "dense.pt2")
    emitter.load_program(folder / "dense.pt2")
    emitter.emit(folder / "dense.tflite")
    shorten_names(folder / "dense.tflite")
    return open_model(str(folder / "dense.pt2"), folder, ("tflite",)), folder / "dense.tflite"


def inputs(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {"x": (1, STEPS, FEATURES), "pair": (STEPS, 2, FEATURES), "h": (1, 1, UNITS)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def answers(model: Model, parts: dict[str, Replacement], seed: int) -> list[Array]:
    return native("torch").session(model.content, parts, threads=1).run(inputs(seed))


@pytest.mark.parametrize("scheme", TOLERANCES, ids=str)
def test_every_inference_agrees_with_torch(
    emitter: TfliteEmitter, grus: tuple[Model, Path], tmp_path: Path, scheme: Scheme
) -> None:
    model, source = grus
    samples = {name: np.stack([inputs(seed)[name] for seed in range(8)]) for name in inputs(0)}
    emitter.quantize(source, tmp_path / "m.tflite", scheme, samples if scheme == INT8_STATIC else None)
    assert operators(tmp_path / "m.tflite").count("WHILE") == LOOPS
    assert {op.bits for op in linear_ops(tmp_path / "m.tflite")} == {scheme.bits}
    session = load(tmp_path / "m.tflite", threads=1)
    for seed in (1, 1, 2):
        for one, other in zip(session.run(inputs(seed)), answers(model, {}, seed), strict=True):
            np.testing.assert_allclose(one, other, atol=TOLERANCES[scheme])


@pytest.mark.parametrize(("steps", "loops"), [(16, 1), (64, 4), (29, 2), (49, 3)])
def test_long_sequences_are_several_loops_over_the_same_operators(
    emitter: TfliteEmitter, tmp_path: Path, steps: int, loops: int
) -> None:
    """Also where steps are left over, or a single one."""
    torch.manual_seed(steps)
    module, x = nn.GRU(FEATURES, UNITS, bidirectional=True).eval(), torch.randn(steps, 2, FEATURES)
    save_program(export_program(module, (x,)), tmp_path / "m.pt2")
    emitter.load_program(tmp_path / "m.pt2")
    emitter.emit(tmp_path / "m.tflite")
    names = operators(tmp_path / "m.tflite")
    assert names.count("WHILE") == 2 * loops
    assert names.count("DYNAMIC_UPDATE_SLICE") == (4 if steps == 29 else 2)
    with torch.no_grad():
        wanted = module(x)
    for one, other in zip(load(tmp_path / "m.tflite", threads=1).run({"input": x.numpy()}), wanted, strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=2e-6)


def test_a_stream_of_1000_steps_agrees_with_torch(grus: tuple[Model, Path]) -> None:
    model, path = grus
    session, other = load(path, threads=1), native("torch").session(model.content, {}, threads=1)
    given = inputs(3)
    states = given["h"], given["h"]
    for x in np.random.default_rng(5).standard_normal((1000, 1, 1, FEATURES)).astype(np.float32):
        given["x"][:, :1] = x
        states = session.run({**given, "h": states[0]})[-1], other.run({**given, "h": states[1]})[-1]
    np.testing.assert_allclose(*states, atol=1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_an_onnx_model_has_the_loop_as_well(emitter: TfliteEmitter, tmp_path: Path, direction: str) -> None:
    inputs_of, outputs = ["W", "R", "B", "", "h"], ["y", "last"]
    path = onnx_cells.write(tmp_path, "GRU", inputs_of, outputs, "h", direction=direction, linear_before_reset=1)
    ways = 2 if direction == "bidirectional" else 1
    shapes = {"x": (onnx_cells.STEPS, onnx_cells.SEQUENCES, onnx_cells.FEATURES)}
    shapes["h"] = (ways, onnx_cells.SEQUENCES, onnx_cells.UNITS)
    emitter.load_onnx(path, shapes)
    emitter.emit(tmp_path / "model.tflite")
    assert operators(tmp_path / "model.tflite").count("WHILE") == ways
    rng = np.random.default_rng(2)
    feed = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    expected = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(outputs, feed)
    for one, other in zip(load(tmp_path / "model.tflite", threads=1).run(feed), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_low_rank_inputs_are_two_products_in_front_of_the_loop(grus: tuple[Model, Path], tmp_path: Path) -> None:
    """With other biases as well."""
    model, source = grus
    parts = {}
    for layer in model.layers:
        u, s, vt = np.linalg.svd(layer.weight.astype(np.float64), full_matrices=False)
        bias = None if layer.bias is None else layer.bias + np.linspace(-0.5, 0.5, layer.out_features)
        pair = (u[:, :2] * s[:2], vt[:2], bias)
        parts[layer.name] = low_rank(*(each if each is None else each.astype(np.float32) for each in pair))
        assert refuses(layer, of_rank(2), INT8_DYNAMIC) is None
    places = find_places(source, model.layers, ())
    assert len(parts) == 7
    assert places.takes(parts)
    before = len(linear_ops(source))
    written = places.replace(tmp_path / "thin.tflite", parts)
    assert {len(written[name]) for name in parts} == {2}
    assert len(linear_ops(tmp_path / "thin.tflite")) == before + len(parts)
    session = load(tmp_path / "thin.tflite", threads=1)
    for one, other in zip(session.run(inputs(1)), answers(model, parts, 1), strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6)


def test_another_dense_weight_takes_the_place_of_the_own_one(grus: tuple[Model, Path], tmp_path: Path) -> None:
    model, source = grus
    layer = next(one for one in model.layers if one.name.startswith("both") and one.bias is not None)
    assert layer.bias is not None
    parts = {layer.name: dense(np.rint(8 * layer.weight) / 8, layer.bias + np.float32(0.25))}
    find_places(source, model.layers, ()).replace(tmp_path / "other.tflite", parts)
    found, wanted = load(tmp_path / "other.tflite", threads=1).run(inputs(1)), answers(model, parts, 1)
    assert np.abs(wanted[3] - answers(model, {}, 1)[3]).max() > 0.01
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6)
