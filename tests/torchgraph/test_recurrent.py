"""Recurrent layers of a torch program: what they are called, what flows into them, and others in their place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgepack.backends.observation import joined
from edgepack.data import Samples
from edgepack.model.layer import Layer
from edgepack.model.replacement import dense, low_rank
from edgepack.model.types import Array
from edgepack.natives.onnx import OnnxNative
from edgepack.natives.torch import TorchModel, TorchNative, read_torch
from edgepack.sources.onnx import open_onnx
from edgepack.sources.torch import export_program, load_pt2, program_to_onnx, save_program
from edgepack.torchgraph.layers import depths
from edgepack.torchgraph.recurrent import find_recurrent

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

FEATURES, UNITS, STEPS = 6, 4, 5


class Cells(nn.Module):
    """Two layers of both directions, cells without biases whose state is an input, and plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.LSTM(FEATURES, UNITS, num_layers=2, bidirectional=True, batch_first=True)
        self.stream = nn.GRU(2 * UNITS, UNITS, bias=False, num_layers=2)
        self.plain = nn.RNN(UNITS, UNITS, nonlinearity="relu")
        self.head = nn.Linear(UNITS, 3)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """Of x (2, steps, features) and the states of the stream (2, 2, units)."""
        y, (hidden, cells) = self.both(x)
        y, h = self.stream(y.swapaxes(0, 1), h)
        y, _ = self.plain(y)
        return self.head(y), h, hidden, cells


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("cells") / "m.pt2"
    save_program(export_program(Cells(), tuple(map(torch.from_numpy, feed(0).values()))), path)
    return read_torch(path)


def feed(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {"x": (2, STEPS, FEATURES), "h": (2, 2, UNITS)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def answers(model: TorchModel, **parts: object) -> list[Array]:
    return TorchNative().session(model, dict(parts), threads=1).run(feed(1))  # type: ignore[arg-type]


def test_each_layer_has_the_matrix_of_all_its_gates_and_directions(cells: TorchModel) -> None:
    found = [(one.name, one.geometry.operator, one.weight.shape, one.bias is not None) for one in cells.layers]
    assert found == [
        ("both.weight_ih_l0", "LSTM", (8 * UNITS, FEATURES), True),
        ("both.weight_ih_l1", "LSTM", (8 * UNITS, 2 * UNITS), True),
        ("stream.weight_ih_l0", "GRU", (3 * UNITS, 2 * UNITS), False),
        ("stream.weight_ih_l1", "GRU", (3 * UNITS, UNITS), False),
        ("plain.weight_ih_l0", "RNN", (UNITS, UNITS), True),
        ("head.weight", "MatMul", (3, UNITS), True),
    ]
    names = [layer.name for layer in cells.layers]
    assert depths(cells.module, names) == {name: depth for depth, name in enumerate(names)}


def test_nodes_of_several_layers_compute_the_same_as_one_node_each(cells: TorchModel) -> None:
    assert cells.path is not None
    with torch.no_grad():
        wanted = load_pt2(cells.path).module()(*map(torch.from_numpy, feed(1).values()))
    for one, other in zip(answers(cells), wanted, strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-6)


def test_onnx_has_the_same_matrices(cells: TorchModel, tmp_path: Path) -> None:
    assert cells.path is not None
    program_to_onnx(load_pt2(cells.path), tmp_path / "m.onnx")
    found = [one for one in open_onnx(tmp_path / "m.onnx").layers if one.kind == "recurrent"]
    assert len(found) == 4, "of LSTM and GRU"
    for one, other in zip(found, cells.layers, strict=False):
        np.testing.assert_array_equal(one.weight, other.weight)
        assert other.bias is None or np.array_equal(one.bias, other.bias)


def test_what_is_watched_is_what_flows_in(cells: TorchModel) -> None:
    names = [layer.name for layer in cells.layers]
    watched = TorchNative().observe(cells, names, threads=1)
    (run,) = watched.rows(Samples(feed(2)))
    rows = {layer.name: run[joined(watched.keys[layer.name])] for layer in cells.layers}
    assert {name: found.shape for name, found in rows.items()} == {
        layer.name: (2 * STEPS, layer.in_features) for layer in cells.layers
    }
    np.testing.assert_array_equal(rows["both.weight_ih_l0"], feed(2)["x"].reshape(-1, FEATURES))


def factors(layer: Layer, bias: Array | None, rank: int | None = None) -> object:
    u, s, v = np.linalg.svd(layer.weight, full_matrices=False)
    return low_rank((u * s)[:, :rank].astype(np.float32), v[:rank].astype(np.float32), bias)


def test_parts_that_come_to_the_layer_answer_as_the_model(cells: TorchModel) -> None:
    wanted = answers(cells)
    for layer in cells.layers:
        for part in (factors(layer, layer.bias), dense(layer.weight.copy(), layer.bias)):
            for one, other in zip(answers(cells, **{layer.name: part}), wanted, strict=True):
                np.testing.assert_allclose(one, other, atol=1e-5)


def test_other_biases_are_heard_as_in_onnx(cells: TorchModel, tmp_path: Path) -> None:
    """Also those of cells that have none."""
    assert cells.path is not None
    program_to_onnx(load_pt2(cells.path), tmp_path / "m.onnx")
    source = open_onnx(tmp_path / "m.onnx")
    for one, other in list(zip(source.layers, cells.layers, strict=False))[:4]:
        part = factors(other, np.linspace(-1, 1, other.out_features).astype(np.float32), 2)
        session = OnnxNative().session(source.model, {one.name: part}, threads=1)  # type: ignore[dict-item]
        given = dict(zip([spec.name for spec in session.inputs], feed(1).values(), strict=True))
        found = answers(cells, **{other.name: part})
        assert np.abs(found[0] - answers(cells)[0]).max() > 1e-3
        for have, want in zip(found, session.run(given), strict=True):
            np.testing.assert_allclose(have, want, atol=1e-5)


def test_what_was_factored_is_layers_again(cells: TorchModel) -> None:
    name = "both.weight_ih_l1"
    layer = next(layer for layer in cells.layers if layer.name == name)
    made, names = TorchNative().with_factors(cells, {name: factors(layer, layer.bias, 2)})  # type: ignore[dict-item]
    assert names[name] == (f"{name}.B", f"{name}.A")
    watched = TorchNative().observe(made, names[name], threads=1)
    (run,) = watched.rows(Samples(feed(3)))
    assert [run[joined(watched.keys[each])].shape[1] for each in names[name]] == [2 * UNITS, 2]
    assert [site.weight.shape[1] for site in find_recurrent(made.module)][:2] == [FEATURES, 2]
