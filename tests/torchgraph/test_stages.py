"""Kernels that are taken apart in a torch graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import Interpreter, Node

from edgepack.errors import ModelError
from edgepack.methods.registry import compress
from edgepack.model.kinds import kind_of, views_of
from edgepack.model.layer import WEIGHT
from edgepack.model.replacement import Replacement, dense
from edgepack.natives.torch import TorchModel, TorchNative, read_torch
from edgepack.plan.candidates import GivenRanks
from edgepack.sources.torch import export_program, save_program
from edgepack.torchgraph.layers import with_parts
from tests.contracts.test_kinds import replaced


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.skipping = nn.Conv2d(6, 8, 3, stride=(2, 1), padding=(1, 2))
        self.wide = nn.Conv2d(8, 8, (3, 2), dilation=(2, 1), bias=False)
        self.same = nn.Conv2d(8, 6, (2, 4), padding="same")
        self.flat = nn.Conv1d(6, 8, 5, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.flat(self.same(self.wide(self.skipping(x))).flatten(2))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("stages") / "m.pt2"
    save_program(export_program(Convolutions(), (torch.zeros(1, 6, 11, 9),)), path)
    return read_torch(path)


class _Shapes(Interpreter):  # type: ignore[misc]
    """Runs a graph and looks whether each node gives what it says."""

    def run_node(self, n: Node) -> object:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and "val" in n.meta:
            assert tuple(value.shape) == tuple(n.meta["val"].shape), n
        return value


def test_stages_answer_like_the_kernel_that_they_come_to(model: TorchModel) -> None:
    x, native, tried = np.random.default_rng(0).normal(size=(1, 6, 11, 9)).astype(np.float32), TorchNative(), set()
    for layer in model.layers:
        kind = kind_of(layer)
        cp = compress("cp", views_of([layer])[0], 0.4)
        assert isinstance(cp, Replacement)
        for structure in (*kind.structures(layer, GivenRanks((3, 4), ())), cp.structure):
            if structure.ranks:
                tried.add((layer.name, structure.name))
                part = cp if structure == cp.structure else replaced(kind, layer, structure)
                whole = dense(kind.effective(layer, part)[WEIGHT], part.bias)
                found, wanted = (
                    native.session(model, {layer.name: one}, threads=1).run({"x": x}) for one in (part, whole)
                )
                np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4, atol=1e-5)
                module, names = with_parts(model.module, model.layers, {layer.name: part})
                assert names[layer.name] == tuple(f"{layer.name}.{op.role}" for op in kind.ops(layer, structure, 1))
                _Shapes(module).run(torch.from_numpy(x))
    assert len(tried) == 3 * 5 + 4, "the convolution along one axis has no spatial-svd"


def test_stages_of_another_layer_are_refused(model: TorchModel, tmp_path: Path) -> None:
    layer = model.layers[0]
    kind = kind_of(layer)
    for structure in kind.structures(layer, GivenRanks((4,), ())):
        if structure.ranks:
            part = replaced(kind, layer, structure)
            wrong = Replacement(structure, {role: tensor[:, 1:] for role, tensor in part.tensors.items()}, part.bias)
            with pytest.raises(ModelError, match=layer.name):
                TorchNative().session(model, {layer.name: wrong}, threads=1)
