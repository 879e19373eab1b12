from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgepack.errors import UsageError
from edgepack.model.replacement import Replacement, low_rank
from edgepack.training.modules import CompressedLinear, FactoredLinear, finished


def factors(layer: nn.Linear, rank: int, *, bias: bool) -> Replacement:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(layer.out_features, rank)), rng.normal(size=(rank, layer.in_features))
    offset = rng.normal(size=layer.out_features).astype(np.float32) if bias else None
    return low_rank(a.astype(np.float32), b.astype(np.float32), offset)


@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)),
    alpha=st.floats(0, 1),
    own_bias=st.booleans(),
    new_bias=st.booleans(),
)
def test_the_layer_computes_with_the_blend_of_weight_and_product(
    sizes: tuple[int, int, int], alpha: float, own_bias: bool, new_bias: bool
) -> None:
    n, m, rank = sizes
    torch.manual_seed(0)
    layer = nn.Linear(n, m, bias=own_bias).double()
    pair = factors(layer, rank, bias=new_bias)
    compressed = CompressedLinear(layer, rank)
    compressed.begin(pair)
    compressed.alpha = alpha
    x = torch.randn(2, 3, n, dtype=torch.float64)
    a, b = torch.from_numpy(pair.A).double(), torch.from_numpy(pair.B).double()
    weight = alpha * layer.weight + (1 - alpha) * a @ b
    before = layer.bias if own_bias else torch.zeros(m, dtype=torch.float64)
    after = torch.from_numpy(pair.bias).double() if pair.bias is not None else before
    bias = alpha * before + (1 - alpha) * after
    assert torch.allclose(compressed(x), x @ weight.T + bias, atol=1e-9)
    assert torch.allclose(compressed.weight, weight, atol=1e-9)
    assert torch.allclose(torch.zeros(m).double() if compressed.bias is None else compressed.bias, bias, atol=1e-9)


def test_gradients_are_those_of_the_blended_weight() -> None:
    layer = nn.Linear(6, 5).double()
    compressed = CompressedLinear(layer, 2)
    compressed.begin(factors(layer, 2, bias=True))
    compressed.alpha = 0.3
    x = torch.randn(4, 6, dtype=torch.float64)
    compressed(x).square().sum().backward()
    direct = [p.detach().clone().requires_grad_() for p in (layer.weight, compressed.A, compressed.B)]
    y = nn.functional.linear(x, 0.3 * direct[0] + 0.7 * direct[1] @ direct[2], compressed.bias.detach())
    y.square().sum().backward()
    for own, expected in zip((compressed.dense, compressed.A, compressed.B), direct, strict=True):
        assert torch.allclose(own.grad, expected.grad)


@pytest.mark.parametrize("own_bias", [True, False])
@pytest.mark.parametrize("new_bias", [True, False])
def test_the_finished_pair_computes_what_the_layer_did_to_the_bit(own_bias: bool, new_bias: bool) -> None:
    layer = nn.Linear(12, 10, bias=own_bias)
    compressed = CompressedLinear(layer, 3).eval()
    compressed.begin(factors(layer, 3, bias=new_bias))
    compressed.drop_dense()
    x = torch.randn(7, 12)
    expected = compressed(x)
    pair = finished(compressed)
    assert torch.equal(pair(x), expected)
    assert not pair.training
    assert pair[0].weight is compressed.B
    assert set(pair.state_dict()) == {"0.weight", "1.weight"} | ({"1.bias"} if own_bias or new_bias else set())
    assert (pair.in_features, pair.out_features, tuple(pair.weight.shape)) == (12, 10, (10, 12))


def test_attention_and_encoder_layers_that_read_weights_agree_with_their_slow_path() -> None:
    """In eval mode torch's encoder layer hands `linear1.weight` to a fused kernel instead of calling the layer."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 3, 16)
    compressed = CompressedLinear(encoder.linear1, 4)
    compressed.begin(factors(encoder.linear1, 4, bias=True))
    compressed.alpha = 0.4
    encoder.linear1 = compressed
    slow = encoder(x)
    with torch.no_grad():
        fast = encoder(x)
    assert torch.allclose(fast, slow.detach(), atol=1e-5)
    compressed.drop_dense()
    encoder.linear1 = finished(compressed)
    slow = encoder(x)
    with torch.no_grad():
        assert torch.allclose(encoder(x), slow.detach(), atol=1e-5)
    assert isinstance(encoder.linear1, FactoredLinear)


def test_a_fresh_layer_follows_the_state_of_any_later_stage() -> None:
    source = nn.Linear(9, 8)
    later = CompressedLinear(source, 2)
    fresh = CompressedLinear(copy.deepcopy(source), 2)
    assert set(later.state_dict()) == {"weight", "bias"}
    later.begin(factors(source, 2, bias=True))
    later.alpha = 1 / 3
    x = torch.randn(4, 9)
    fresh.load_state_dict(later.state_dict())
    assert fresh.alpha == 1 / 3
    assert torch.equal(fresh(x), later(x))
    later.drop_dense()
    fresh = CompressedLinear(copy.deepcopy(source), 2)
    fresh.load_state_dict(later.state_dict())
    assert fresh.dense is None
    assert torch.equal(fresh(x), later(x))
    with pytest.raises(RuntimeError, match="Missing key"):
        later.load_state_dict(CompressedLinear(source, 2).state_dict())


def test_a_layer_whose_factors_were_not_restored_refuses_to_compute() -> None:
    layer = CompressedLinear(nn.Linear(9, 8), 2)
    layer.restore(factors=True, dense=False)
    with pytest.raises(UsageError, match="the factors were not"):
        layer(torch.zeros(1, 9))
