"""Real small models whose layers are thinner than they look, and their factors."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from edgepack.factorize import svd
from edgepack.model.kinds import kind_of, views_of
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array
from edgepack.plan.candidates import GivenRanks
from edgepack.sources.torch import export_program
from edgepack.torchgraph import find_linears, flat_module
from edgepack.torchgraph.layers import name_layers
from tests.contracts.test_kinds import replaced

Case = tuple[ExportedProgram, list[Layer], dict[str, Replacement]]


def factored(model: nn.Module, rank: int, *inputs: torch.Tensor) -> Case:
    """The model's program, its layers under the names of their weights, and factors of all but thin ones."""
    program = export_program(model.eval(), inputs)
    found = {site.name: site for site in find_linears(flat_module(program))}
    uses = {name: sum(s.name == name for s in find_linears(flat_module(program))) for name in found}
    layers = [linear_layer(name, s.weight, s.bias, "Gemm", uses[name]) for name, s in found.items()]
    wide = [view for view in views_of(layers) if min(view.weight.shape) > rank]
    return program, layers, {view.name: svd.factors(view, svd.spectrum(view), rank) for view in wide}


def taken_apart(structure: str) -> Case:
    """A program of two convolutions, its layers, and both in a structure that takes kernels apart, of rank 4."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(5, 8, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(8, 6, (3, 2), bias=False))
    program = export_program(model.eval(), (torch.zeros(1, 5, 8, 8),))
    layers = list(name_layers(flat_module(program)))
    parts = {}
    for layer in layers:
        kind = kind_of(layer)
        own = next(one for one in kind.structures(layer, GivenRanks((4,), ())) if one.name == structure)
        parts[layer.name] = replaced(kind, layer, own)
    return program, layers, parts


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4))


def samples(count: int, *shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


class Mixed(nn.Module):
    """A convolution, a matmul from the left, a product without bias, an added bias, a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(6, 8, 1, stride=2)
        self.left = nn.Parameter(torch.randn(7, 9) / 3)
        self.plain = nn.Linear(8, 8, bias=False)
        self.twice = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.shift = nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y = self.conv(x).flatten(2).transpose(1, 2)  # (batch, 9, 8)
        y = torch.relu(self.left @ y)  # (batch, 7, 8)
        y = self.norm(self.plain(y) + self.shift)
        y = self.twice(torch.relu(self.twice(y)))
        return y.mean(1), y, y.argmax(-1)


class Encoder(nn.Module):
    """Two blocks of attention: fourteen layers, so that they are factored in stages."""

    def __init__(self, size: int = 16, blocks: int = 3) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(size, 2, 32, batch_first=True) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return nn.functional.normalize(x.mean(1), dim=-1)
