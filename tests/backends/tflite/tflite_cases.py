"""Small torch models, dense and with random factors, and what they answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.read import TfliteLinear, linear_ops, operators
from edgepack.backends.tflite.runtime import load
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array
from edgepack.sources.torch import export_program, save_program
from edgepack.torchgraph import find_linears, flat_module, with_factors


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.mix = nn.Conv2d(16, 32, 1)
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.head = nn.Linear(32, 24)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.stem(image)))
        return self.head(self.pool(torch.relu(self.mix(hidden))).flatten(1))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tied = nn.Linear(32, 32)

    def forward(self, tokens: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.tied(torch.relu(self.tied(tokens))), scale + 1


class Mlp(nn.Module):
    """Three layers, the first of which the converter gives a layer norm's scale and shift."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.normal_(self.norm.bias)
        self.layers = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(self.norm(x))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    nn.init.normal_(layer.self_attn.in_proj_bias)  # a bias of zeros would be dropped by the converter
    nn.init.normal_(layer.self_attn.out_proj.bias)
    return layer


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10)), ((1, 784),)),
    "encoder": (encoder, ((1, 6, 32),)),
    "cnn": (Cnn, ((1, 3, 8, 8),)),
    "normed": (Mlp, ((3, 64),)),
    "shared": (Shared, ((1, 5, 32), (1, 2))),
    "attention": (lambda: nn.MultiheadAttention(32, 4, batch_first=True), ((1, 4, 32), (1, 3, 32), (1, 3, 32))),
}


STEM = (16, 27)
"""The 3×3 convolution of `Cnn` as a matrix: no layer of its case."""


def known_ops(path: Path) -> list[TfliteLinear]:
    """The operators of a file that are layers of a case, or of what took their place."""
    return [op for op in linear_ops(path) if op.weight.shape != STEM]


@dataclass(frozen=True)
class Case:
    program: Path
    inputs: dict[str, Array]
    samples: dict[str, Array]
    layers: list[Layer]
    factors: dict[str, Replacement]
    dense: list[Array]
    thin: list[Array]


def factored(layer: Layer, rng: np.random.Generator) -> Replacement:
    u, s, v = np.linalg.svd(layer.weight.astype(np.float64), full_matrices=False)
    rank = max(4, min(layer.weight.shape) // 4)
    bias = np.zeros(layer.out_features) if layer.bias is None else layer.bias
    bias = (bias + rng.normal(size=layer.out_features) * 0.1).astype(np.float32)
    return low_rank((u[:, :rank] * s[:rank]).astype(np.float32), v[:rank].astype(np.float32), bias)


def prepare(name: str, folder: Path) -> Case:
    make, shapes = MODELS[name]
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    tensors = tuple(torch.randn(shape) for shape in shapes)
    program = export_program(make(), tensors)
    save_program(program, folder / f"{name}.pt2")
    module = flat_module(program)
    found: dict[str, Layer] = {}
    for site in (site for site in find_linears(module) if set(site.kernel) <= {1}):  # linear layers alone
        key = f"{site.name}:{site.weight.tobytes()[:16].hex()}"
        uses = found[key].uses + 1 if key in found else 1
        found[key] = linear_layer(key, site.weight, site.bias, "Gemm", uses)
    factors = {layer.name: factored(layer, rng) for layer in found.values()}
    thin = with_factors(module, list(found.values()), factors)
    names = [str(n.target) for n in module.graph.nodes if n.op == "placeholder"]
    with torch.no_grad():
        dense_out, thin_out = ([t.numpy() for t in m(*tensors)] for m in (module, thin))
    inputs = {n: t.numpy() for n, t in zip(names, tensors, strict=True)}
    samples = {n: rng.normal(size=(24, *a.shape)).astype(np.float32) for n, a in inputs.items()}
    samples = {n: np.concatenate([a, inputs[n][None]]) for n, a in samples.items()}
    return Case(folder / f"{name}.pt2", inputs, samples, list(found.values()), factors, dense_out, thin_out)


def error(have: list[Array], want: list[Array]) -> float:
    return max(float(np.sqrt(((a - b) ** 2).sum() / (b**2).sum())) for a, b in zip(have, want, strict=True))


def converted_alike(emitter: TfliteEmitter, model: nn.Module, x: torch.Tensor, folder: Path) -> list[str]:
    """The operators of the file of a model with one input, which answers as torch does."""
    save_program(export_program(model, (x,)), folder / "m.pt2")
    loaded = emitter.load_program(folder / "m.pt2")
    emitter.emit(folder / "m.tflite")
    (answer,) = load(folder / "m.tflite", threads=1).run({loaded.inputs[0]: x.numpy()})
    np.testing.assert_allclose(answer, model(x).detach().numpy(), atol=1e-5)
    return list(operators(folder / "m.tflite"))
