"""Layers of a torch program: what they are called, what flows into them, and answers with others in their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgepack.backends.observation import joined
from edgepack.data import Samples
from edgepack.errors import ModelError
from edgepack.model.kinds import kind_of
from edgepack.model.layer import WEIGHT, Layer
from edgepack.model.replacement import dense, low_rank, low_rank_correction
from edgepack.natives.torch import TorchModel, TorchNative, read_torch
from edgepack.sources.onnx import open_onnx
from edgepack.sources.torch import export_program, load_pt2, program_to_onnx, save_program
from edgepack.torchgraph.digest import program_digest
from edgepack.torchgraph.layers import depths
from edgepack.torchgraph.run import input_specs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


PLACES = {"padded.weight": 4, "same.weight": 6}
"""Of larger kernels."""


class Odd(nn.Module):
    """A tied weight, one that is chunked, products with a bias apart or of their own, and operators in place."""

    def __init__(self) -> None:
        super().__init__()
        self.tied, self.packed = nn.Linear(6, 6, bias=False), nn.Parameter(torch.randn(10, 6))
        self.matrix, self.shift = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5))
        self.left = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key = self.packed.chunk(2)
        y = self.tied(x)
        y = self.tied(torch.relu_(y))
        both = nn.functional.linear(y, query) + nn.functional.linear(y, key) * 2
        answer = self.left @ (both + (y @ self.matrix + self.shift))
        y.zero_()
        return answer


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain, self.strided = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1, stride=2)
        self.padded, self.grouped = nn.Conv2d(5, 6, 2, padding=(1, 0)), nn.Conv2d(6, 6, 1, groups=2)
        self.last = nn.Conv2d(6, 7, 1, bias=False)
        self.same = nn.Conv2d(7, 5, (3, 2), padding="same", dilation=(1, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.same(self.last(self.grouped(self.padded(self.strided(self.plain(x))))))


def opened(module: nn.Module, shape: tuple[int, ...], folder: Path) -> TorchModel:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    save_program(export_program(module, (torch.zeros(shape),)), folder / "m.pt2")
    return read_torch(folder / "m.pt2")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    return opened(Odd(), (1, 3, 6), tmp_path_factory.mktemp("odd"))


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    return opened(Convolutions(), (1, 3, 4, 4), tmp_path_factory.mktemp("conv"))


def described(layers: tuple[Layer, ...]) -> list[tuple[Any, ...]]:
    return [(one.name, one.weight.shape, one.geometry.operator, one.bias is not None, one.uses) for one in layers]


def test_layers_have_the_names_of_their_parameters(odd: TorchModel, convolutions: TorchModel) -> None:
    assert described(odd.layers) == [
        ("tied.weight", (6, 6), "MatMul", False, 2),
        ("linear_2", (5, 6), "MatMul", False, 1),  # two halves of one parameter have the names of their nodes
        ("linear_3", (5, 6), "MatMul", False, 1),
        ("matrix", (5, 6), "MatMul", True, 1),
        ("left", (4, 3), "MatMul", False, 1),
    ]
    assert described(convolutions.layers) == [
        ("plain.weight", (4, 3), "Conv", True, 1),
        ("strided.weight", (5, 4), "Conv", True, 1),
        ("padded.weight", (6, 20), "Conv", True, 1),
        ("last.weight", (7, 6), "Conv", False, 1),
        ("same.weight", (5, 42), "Conv", True, 1),
    ]


def test_onnx_finds_the_same(convolutions: TorchModel, tmp_path: Path) -> None:
    assert convolutions.path is not None
    program_to_onnx(load_pt2(convolutions.path), tmp_path / "m.onnx")
    found = open_onnx(tmp_path / "m.onnx").layers
    assert described(found) == described(convolutions.layers)
    x = np.random.default_rng(2).normal(size=(1, 9, 8, 7)).astype(np.float32)
    for one, other in zip(found, convolutions.layers, strict=True):
        image = x[..., : one.in_features // PLACES.get(one.name, 1)]
        rows = (kind_of(layer).rows(layer, WEIGHT)(image) for layer in (one, other))
        np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize("name", ["odd", "convolutions"])
def test_what_is_watched_is_what_flows_in(name: str, request: pytest.FixtureRequest) -> None:
    """Also where a later operator works in place on what a layer was given."""
    model: TorchModel = request.getfixturevalue(name)
    shape = input_specs(model.module)[0].shape
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)  # type: ignore[arg-type]
    names = [layer.name for layer in model.layers]
    watched = TorchNative().observe(model, names, threads=1)
    (run,) = watched.rows(Samples({"x": x}))
    for layer in model.layers:
        key = joined(watched.keys[layer.name])
        assert run[key].shape[1] == layer.in_features
        assert len(run[key]) == watched.row_counts({"x": x})[key]
    if name == "odd":
        tied = model.layers[0].weight
        first = x.reshape(-1, 6)
        second = np.maximum(first @ tied.T, 0)
        rows = run[joined(watched.keys["tied.weight"])]
        np.testing.assert_allclose(rows, np.concatenate([first, second]), rtol=1e-5, atol=1e-6)
        left = run[joined(watched.keys["left"])]
        assert left.shape == (5, 3)
        assert watched.row_counts({"x": x})[joined(watched.keys["left"])] == 5
    else:
        np.testing.assert_array_equal(run[joined(watched.keys["plain.weight"])], np.moveaxis(x, 1, -1).reshape(-1, 3))


@pytest.mark.parametrize("name", ["odd", "convolutions"])
def test_parts_that_come_to_the_layer_answer_as_the_model(name: str, request: pytest.FixtureRequest) -> None:
    model: TorchModel = request.getfixturevalue(name)
    shape = input_specs(model.module)[0].shape
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)  # type: ignore[arg-type]
    before = program_digest(model.module)
    native = TorchNative()
    (wanted,) = native.session(model, {}, threads=1).run({"x": x})
    for layer in model.layers:
        base = np.rint(layer.weight)
        u, s, v = np.linalg.svd(layer.weight, full_matrices=False)
        du, ds, dv = np.linalg.svd(layer.weight - base, full_matrices=False)
        parts = (
            low_rank((u * s).astype(np.float32), v.astype(np.float32), layer.bias),
            low_rank_correction((du * ds).astype(np.float32), dv.astype(np.float32), layer.bias, base),
            dense(layer.weight.copy(), layer.bias),
        )
        for part in parts:
            (found,) = native.session(model, {layer.name: part}, threads=1).run({"x": x})
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    shifted = {one.name: dense(one.weight, np.ones(one.out_features, np.float32)) for one in model.layers[-1:]}
    (found,) = native.session(model, shifted, threads=1).run({"x": x})
    assert np.abs(found - wanted).max() > 0.5, "a bias is heard"
    assert program_digest(model.module) == before


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.mix, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9)
        self.head.weight = self.tokens.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.tokens(x.long())))


def test_a_layer_whose_rows_are_looked_up_is_tied(tmp_path: Path) -> None:
    layers = opened(Language(), (1, 3), tmp_path).layers
    assert [(layer.weight.shape, layer.tied) for layer in layers] == [((6, 6), False), ((9, 6), True)]


def test_depths(odd: TorchModel) -> None:
    names = [layer.name for layer in odd.layers]
    found = depths(odd.module, names)
    assert found["tied.weight"] == 1, "where it lies deepest"
    assert found["left"] == 3
    assert {found[name] for name in names[1:-1]} == {2}


def test_a_digest_tells_programs_apart(tmp_path: Path) -> None:
    digests = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        program = export_program(nn.Linear(3, 2), (torch.zeros(1, 3),))
        save_program(program, tmp_path / "m.pt2")
        digests.append(program_digest(read_torch(tmp_path / "m.pt2").module))
    assert digests[0] == digests[1] != digests[2]
    save_program(export_program(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), (torch.zeros(1, 3),)), tmp_path / "m.pt2")
    assert program_digest(read_torch(tmp_path / "m.pt2").module) not in digests


def test_every_run_begins_with_the_same_state(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)
            self.register_buffer("count", torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count.view(-1).add_(1)
            self.count.mul_(2)
            return self.fc(x) + self.count

    save_program(export_program(Counting(), (torch.zeros(1, 3),)), tmp_path / "m.pt2")
    model = read_torch(tmp_path / "m.pt2")
    before = program_digest(model.module)
    session = TorchNative().session(model, {}, threads=1)
    feed = {"x": np.ones((1, 3), np.float32)}
    (layer,) = model.layers
    for _ in range(3):
        (found,) = session.run(feed)
        np.testing.assert_allclose(found[0], layer.weight.sum(1) + layer.bias + 2, rtol=1e-5)
    assert program_digest(model.module) == before


def test_inputs_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    class Halved(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    save_program(export_program(Halved(), (torch.zeros(1, 3, dtype=torch.bfloat16),)), tmp_path / "m.pt2")
    with pytest.raises(ModelError, match=r"'x' is torch\.bfloat16, which numpy does not know"):
        input_specs(read_torch(tmp_path / "m.pt2").module)
