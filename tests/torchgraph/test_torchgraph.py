from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgepack.errors import ModelError
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array
from edgepack.sources.torch import export_program
from edgepack.torchgraph import find_linears, flat_module, match_layers, with_factors

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def exact(weight: Array, bias: Array | None) -> Replacement:
    """Full-rank factors: the product is the weight itself."""
    u, s, v = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    return low_rank((u * s).astype(np.float32), v.astype(np.float32), bias)


def flat(model: nn.Module, *inputs: torch.Tensor) -> torch.fx.GraphModule:
    return flat_module(export_program(model, inputs))


class Products(nn.Module):
    """Every way to multiply by a constant matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 6))
        self.left = nn.Parameter(torch.randn(5, 3))
        self.bias = nn.Parameter(torch.randn(6))
        self.conv = nn.Conv2d(2, 4, 1, stride=2)
        self.conv1 = nn.Conv1d(6, 3, 1)
        self.grouped = nn.Conv2d(2, 2, 1, groups=2)

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a = torch.addmm(self.bias, x, self.w)
        b = x @ self.w + self.bias
        c = self.left @ x
        d = torch.mm(x, self.w)
        return a, b, c, d, self.conv(image), self.conv1(a.T[None]), self.grouped(image)


def test_finds_every_kind_and_full_rank_factors_change_nothing() -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(3, 4), torch.randn(1, 2, 5, 5))
    module = flat(Products(), *inputs)
    sites = find_linears(module)
    assert [s.kind for s in sites] == ["addmm", "linear", "left", "linear", "conv", "conv"]
    layers = [
        linear_layer("w", sites[0].weight, None, "MatMul", 3),
        linear_layer("left", sites[2].weight, None, "MatMul"),
        linear_layer("conv", sites[4].weight, sites[4].bias, "Conv"),
        linear_layer("conv1", sites[5].weight, sites[5].bias, "Conv"),
    ]
    thin = with_factors(module, layers, {layer.name: exact(layer.weight, layer.bias) for layer in layers})
    assert len(find_linears(thin)) == 2 * len(sites)
    for want, have in zip(module(*inputs), thin(*inputs), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)
    # The weight used three times is factored once.
    factors = [p for n, p in thin.named_parameters() if n.startswith(("edgepack_0_A", "edgepack_0_B"))]
    assert sum(p.numel() for p in factors) == 4 * 4 + 4 * 6


@settings(max_examples=20, deadline=None)
@given(own=st.booleans(), theirs=st.sampled_from(["none", "same", "other"]), new=st.booleans())
def test_the_change_of_bias_is_carried_over_wherever_the_bias_lives(own: bool, theirs: str, new: bool) -> None:
    torch.manual_seed(1)
    model = nn.Linear(4, 3, bias=own)
    x = torch.randn(2, 4)
    module = flat(model, x)
    weight = model.weight.detach().numpy()
    bias = {"none": None, "other": np.float32([1, 2, 3])}.get(
        theirs, model.bias.detach().numpy() if own else np.zeros(3, np.float32)
    )
    corrected = np.float32([0.5, -1, 2]) if new else None
    layer = linear_layer("layer", weight, bias, "MatMul")
    thin = with_factors(module, [layer], {"layer": exact(weight, corrected)})
    change = (0 if corrected is None else corrected) - (0 if bias is None else bias)
    want = model(x).detach().numpy() + change
    np.testing.assert_allclose(thin(x)[0].detach().numpy(), want, rtol=1e-4, atol=1e-5)


def test_left_product_gets_its_bias_per_row() -> None:
    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.w @ x

    x = torch.randn(4, 2)
    model = Left()
    weight = model.w.detach().numpy()
    bias = np.float32([1, 2, 3])
    thin = with_factors(flat(model, x), [linear_layer("l", weight, None, "MatMul")], {"l": exact(weight, bias)})
    np.testing.assert_allclose(
        thin(x)[0].detach().numpy(), model(x).detach().numpy() + bias[:, None], rtol=1e-4, atol=1e-5
    )


def test_packed_projection_of_cross_attention_is_three_layers() -> None:
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    module = flat(model, torch.randn(1, 3, 8), torch.randn(1, 4, 8), torch.randn(1, 4, 8))
    packed = model.in_proj_weight.detach().numpy()
    sites = find_linears(module)
    assert [s.name for s in sites] == ["in_proj_weight"] * 3 + ["out_proj.weight"]
    for index, site in enumerate(sites[:3]):
        np.testing.assert_array_equal(site.weight, packed[8 * index : 8 * index + 8])


def test_clones_are_told_apart_by_name_then_by_order() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    module = flat(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(1, 3, 8))
    weight = layer.linear1.weight.detach().numpy()
    named = [linear_layer(f"layers.{i}.linear1.weight", weight, None) for i in (1, 0)]
    nodes = match_layers(module, named).nodes
    assert [[s.name for s in nodes[layer.name]] for layer in named] == [[layer.name] for layer in named]
    unnamed = [linear_layer(f"val_{i}", weight, None) for i in (7, 3)]
    nodes = match_layers(module, unnamed).nodes
    assert [nodes[n][0].name for n in ("val_7", "val_3")] == ["layers.0.linear1.weight", "layers.1.linear1.weight"]


def test_what_is_not_there_is_reported_and_cannot_be_factored() -> None:
    module = flat(nn.Linear(4, 3), torch.randn(1, 4))
    stranger = linear_layer("stranger", np.ones((3, 4), np.float32), None)
    assert match_layers(module, [stranger]).missing == ("stranger",)
    with pytest.raises(ModelError, match="no torch layer has the weights of stranger"):
        with_factors(module, [stranger], {"stranger": exact(stranger.weight, None)})


def test_factors_of_another_shape_are_refused() -> None:
    model = nn.Linear(4, 3)
    layer = linear_layer("l", model.weight.detach().numpy(), None)
    with pytest.raises(ModelError, match="do not fit"):
        with_factors(flat(model, torch.randn(1, 4)), [layer], {"l": exact(np.ones((4, 3), np.float32), None)})


def test_the_dense_module_is_left_alone() -> None:
    model = nn.Linear(4, 3)
    x = torch.randn(1, 4)
    module = flat(model, x)
    before, code = module(x)[0].clone(), str(module.graph)
    layer = linear_layer("l", model.weight.detach().numpy(), model.bias.detach().numpy())
    with_factors(module, [layer], {"l": exact(layer.weight, np.zeros(3, np.float32))})
    assert str(module.graph) == code
    torch.testing.assert_close(module(x)[0], before)
