from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgepack.errors import UsageError
from edgepack.methods.budget import in_8_bits
from edgepack.model.constexpr import Writer, evaluate, xxh32
from edgepack.model.replacement import Replacement
from edgepack.training import parts
from edgepack.training.constexpr import ConstexprLinear
from edgepack.training.modules import FactoredLinear
from tests.training.constexpr_cases import CASES, blocks, codebook, convolved, hashed
from tests.training.initial import random_start

BIAS = np.linspace(-1, 1, 9).astype(np.float32)


@given(name=st.sampled_from(sorted(CASES)), sides=st.tuples(st.integers(1, 9), st.integers(3, 6)), bias=st.booleans())
@settings(max_examples=40)
def test_torch_computes_what_the_steps_mean(name: str, sides: tuple[int, int], bias: bool) -> None:
    m, n = sides[0], 2 * sides[1]
    constexpr = CASES[name](m, n, np.ones(m, np.float32) if bias else None, 1)
    module = ConstexprLinear(constexpr)
    x = np.random.default_rng(2).normal(size=(4, n)).astype(np.float32)
    expected = evaluate(constexpr, x) + (1 if bias else 0)
    tensor = torch.from_numpy(x)
    np.testing.assert_allclose(module(tensor).detach().numpy(), expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(module.weight.detach().numpy(), constexpr.weight, atol=1e-5, rtol=1e-5)
    assert torch.allclose(module(tensor.reshape(2, 2, n)), module(tensor).reshape(2, 2, m), atol=1e-5)
    assert torch.allclose(module(tensor[0]), module(tensor)[0], atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_numerical_ones(name: str) -> None:
    module = ConstexprLinear(CASES[name](3, 6, BIAS[:3], 0), like=torch.empty(0, dtype=torch.float64))
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    parameters = list(module.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: module(x), (x, *parameters))
    assert torch.autograd.gradcheck(lambda *_: module.weight, tuple(parameters))


def test_the_gradient_of_a_shared_number_is_the_sum_over_its_places() -> None:
    module = ConstexprLinear(hashed(9, 6, None))
    x = torch.randn(5, 6)
    module(x).square().sum().backward()
    dense = module.weight.detach().clone().requires_grad_()
    nn.functional.linear(x, dense).square().sum().backward()
    places = np.arange(54, dtype=np.uint32)
    signs = 2.0 * (xxh32(places, 1) % np.uint32(2)) - 1
    expected = np.bincount(xxh32(places, 0) % np.uint32(11), signs * dense.grad.numpy().ravel(), 11)
    np.testing.assert_allclose(module.constant("shared").grad.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_floats_are_trained_and_what_belongs_to_the_method_is_not() -> None:
    module = ConstexprLinear(hashed(9, 6, BIAS))
    assert {name for name, _ in module.named_parameters()} == {"constants.shared", "bias"}
    assert {name for name, _ in module.constants.named_buffers()} == {"signs"}
    assert {name for name, _ in ConstexprLinear(convolved(9, 6, None), frozen=["filters"]).named_parameters()} == {
        "constants.weights"
    }
    assert set(ConstexprLinear(codebook(9, 6, None)).state_dict()) == {
        "constants.codes",
        "constants.type_",
        "_extra_state",
    }


@pytest.mark.parametrize("name", CASES)
def test_a_trained_layer_goes_back_into_code(name: str) -> None:
    before = CASES[name](9, 12, BIAS, 0)
    kept = {key: array.copy() for key, array in before.tensors.items()}
    module = ConstexprLinear(before)
    optimizer = torch.optim.SGD(module.parameters(), 0.01)
    x = torch.randn(8, 12)
    for _ in range(3):
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()
    after = module.to_constexpr()
    assert after.program == before.program
    assert {k: (a.dtype, a.shape) for k, a in after.tensors.items()} == {
        k: (a.dtype, a.shape) for k, a in before.tensors.items()
    }
    assert not np.allclose(after.weight, before.weight, atol=1e-4)
    assert all(np.array_equal(before.tensors[key], kept[key]) for key in kept)
    expected = evaluate(after, x.numpy()) + after.bias
    np.testing.assert_allclose(module(x).detach().numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(module.weight.detach().numpy(), after.weight, atol=1e-5)


def test_a_state_brings_its_codes_and_what_was_computed_from_them() -> None:
    source, fresh = (ConstexprLinear(codebook(9, 6, BIAS, seed)) for seed in (0, 1))
    x = torch.randn(4, 6)
    assert not torch.allclose(source(x), fresh(x))
    fresh.load_state_dict(source.state_dict())
    assert torch.equal(source(x), fresh(x))
    assert torch.equal(copy.deepcopy(source)(x), source(x))
    with pytest.raises(UsageError, match="other steps"):
        ConstexprLinear(hashed(9, 6, BIAS)).load_state_dict(source.state_dict(), strict=False)


def test_numbers_already_in_8_bits_have_scales_left_to_train() -> None:
    constexpr = in_8_bits(blocks(40, 64, None))
    module = ConstexprLinear(constexpr)
    x = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
    np.testing.assert_allclose(module(torch.from_numpy(x)).detach().numpy(), evaluate(constexpr, x), atol=1e-4)
    assert {name for name, _ in module.named_parameters()} == {"constants.left_scale"}
    with pytest.raises(UsageError, match="nothing to train"):
        ConstexprLinear(hashed(9, 6, None), frozen=["shared"])


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(UsageError, match="no constant 'nope'"):
        ConstexprLinear(hashed(9, 6, None), frozen=["nope"])
    w = Writer()
    index = w.step("bucket", w.step("cast", w.constant("a", np.ones(6, np.float32)), to="int32"), seed=0, buckets=2)
    rows = w.step("gather", w.constant("b", np.ones((2, 4), np.float32)), index, axis=0)
    with pytest.raises(UsageError, match="bucket of numbers that are trained"):
        ConstexprLinear(w.decoded(rows, None))


@pytest.mark.parametrize("name", CASES)
def test_a_random_start_has_the_size_that_is_asked_for(name: str) -> None:
    module = random_start(ConstexprLinear(CASES[name](24, 32, np.ones(24, np.float32), 0)), seed=3)
    assert float(module.weight.detach().square().mean().sqrt()) == pytest.approx((2 / 32) ** 0.5, rel=1e-3)
    assert not module.bias.any()
    again = random_start(ConstexprLinear(CASES[name](24, 32, None, 0)), seed=3)
    assert torch.equal(again.weight, module.weight)


def test_a_layer_takes_the_type_of_the_one_it_replaces() -> None:
    layer = nn.Linear(6, 9, dtype=torch.bfloat16)
    module = ConstexprLinear(hashed(9, 6, BIAS), like=layer.weight, trainable=False)
    assert module(torch.zeros(1, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert not any(p.requires_grad for p in module.parameters())
    assert module.to_constexpr().tensors["shared"].dtype == np.float32


@pytest.mark.parametrize("make", [hashed, convolved])
def test_under_autocast_outputs_have_the_type_of_a_linear_layer(make: object) -> None:
    module = ConstexprLinear(make(9, 6, BIAS))  # type: ignore[operator]
    with torch.autocast("cpu", torch.bfloat16):
        assert module(torch.randn(2, 6)).dtype == torch.bfloat16


def test_parts_of_a_model() -> None:
    pair = FactoredLinear(nn.Linear(6, 2, bias=False), nn.Linear(2, 9))
    model = nn.Sequential(pair, nn.ReLU(), ConstexprLinear(hashed(6, 9, None)), nn.Linear(6, 2))
    found = parts(model)
    assert list(found) == ["0", "2"]
    assert isinstance(found["0"], Replacement)
    np.testing.assert_allclose(found["0"].A @ found["0"].B, pair.weight.detach().numpy(), atol=1e-6)
    np.testing.assert_array_equal(found["0"].bias, pair.bias.detach().numpy())
    assert isinstance(found["2"], Replacement)
    np.testing.assert_allclose(found["2"].weight, model[2].weight.detach().numpy(), atol=1e-6)
