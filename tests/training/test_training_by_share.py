"""The schedule with methods by share: what comes out of it is stored in code."""

from __future__ import annotations

import gc
import io
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgepack.errors import UsageError
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, dense, low_rank
from edgepack.training import Compression, apply_compression, by_share
from edgepack.training.constexpr import ConstexprLinear
from edgepack.training.modules import FactoredLinear
from tests.training.constexpr_cases import CASES, as_method, hashed, sparse
from tests.training.small_models import FEATURES, HIDDEN, batch, network, train

END = 20
SETTINGS: dict[str, Any] = {
    "begin_step": 6,
    "frequency": 2,
    "alpha_decrement": 0.25,
    "layers": ["0", "2"],
    "rank": 0.25,
}


def make(compressor: Any, start: int = 0, **changes: Any) -> tuple[nn.Sequential, torch.optim.Optimizer, Compression]:
    model = network(start)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    return (
        model,
        optimizer,
        apply_compression(model, compressor=compressor, optimizer=optimizer, **{**SETTINGS, **changes}),
    )


@pytest.mark.parametrize("name", CASES)
def test_the_whole_schedule_ends_in_layers_stored_in_code(name: str) -> None:
    plain = network()
    train(plain, torch.optim.AdamW(plain.parameters(), 0.01), None, range(7))
    model, optimizer, compression = make(by_share(as_method(CASES[name])))
    weights = [weakref.ref(model[i].dense) for i in (0, 2)]
    train(model, optimizer, compression, range(7))
    x, _ = batch(99)
    assert (compression.alpha, model[0].alpha) == (1.0, 1.0)
    assert model[0].constexpr is not None
    assert torch.equal(model(x), plain(x))  # blended, but α is 1
    train(model, optimizer, compression, range(7, END))
    gc.collect()
    assert [ref() for ref in weights] == [None, None]
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    expected = model.eval()(x)
    assert compression.finish() is model
    assert isinstance(model[0], ConstexprLinear)
    assert torch.equal(model(x), expected)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model.train(), optimizer, None, range(END, END + 1))
    assert not any(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_the_layer_computes_with_the_blend() -> None:
    model, optimizer, compression = make(by_share(as_method(hashed)))
    train(model, optimizer, compression, range(9))
    layer, x = model[2], torch.randn(3, HIDDEN)
    assert layer.alpha == 0.75
    weight = 0.75 * layer.dense + 0.25 * layer.constexpr.weight
    assert torch.allclose(layer.weight, weight)
    assert torch.allclose(layer(x), nn.functional.linear(x, weight, layer.own_bias), atol=1e-6)


def test_both_the_dense_weight_and_the_numbers_learn_while_blended() -> None:
    model, optimizer, compression = make(by_share(as_method(sparse)))
    train(model, optimizer, compression, range(9))
    before = [p.detach().clone() for p in (model[0].dense, *model[0].small.values())]
    train(model, optimizer, compression, range(9, 10))
    assert not any(torch.equal(a, b) for a, b in zip(before, (model[0].dense, *model[0].small.values()), strict=True))


@pytest.mark.parametrize("name", ["codebook", "blocks", "pair", "left"])
@pytest.mark.parametrize("stop", [3, 6, 9, 17])
@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize("fresh_optimizer", [True, False])
def test_resumed_training_ends_in_the_same_bits(name: str, stop: int, model_first: bool, fresh_optimizer: bool) -> None:
    method = by_share({"pair": pair, "left": left}.get(name) or as_method(CASES[name]))
    whole = make(method)
    train(*whole, range(END))
    first = make(method)
    train(*first, range(stop))
    buffer = io.BytesIO()
    torch.save([part.state_dict() for part in first], buffer)
    buffer.seek(0)
    states = torch.load(buffer, weights_only=True)
    model, optimizer, compression = make(method, start=1)
    if model_first:
        model.load_state_dict(states[0])
    compression.load_state_dict(states[2])
    if not model_first:
        model.load_state_dict(states[0])
    if fresh_optimizer:
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        compression.attach(optimizer)
    optimizer.load_state_dict(states[1])
    train(model, optimizer, compression, range(stop, END))
    assert compression.skipped == whole[2].skipped
    expected, found = whole[2].finish().state_dict(), compression.finish().state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def pair(layer: View, share: float, *, seed: int = 0, gradient: Any = None) -> Replacement:
    u, s, vt = np.linalg.svd(layer.weight, full_matrices=False)
    return low_rank((u[:, :3] * s[:3]).astype(np.float32), vt[:3].astype(np.float32), layer.bias)


def left(layer: View, share: float, *, seed: int = 0, gradient: Any = None) -> Replacement | str:
    if layer.in_features == FEATURES:
        return "its inputs are pixels"
    return hashed(layer.out_features, layer.in_features, layer.bias)


def test_a_method_by_share_may_give_pairs() -> None:
    model, optimizer, compression = make(by_share(pair))
    train(model, optimizer, compression, range(END))
    compression.finish()
    assert isinstance(model[0], FactoredLinear)
    assert model[0][0].out_features == 3


def test_layers_that_the_method_leaves_dense_are_put_back() -> None:
    model, optimizer, compression = make(by_share(left))
    weight = model[0].dense
    train(model, optimizer, compression, range(END))
    assert type(model[0]) is nn.Linear
    assert model[0].weight is weight
    assert compression.skipped["0"] == "its inputs are pixels"
    assert compression.ranks == {"2": 0.25}
    with pytest.raises(UsageError, match="no layer can be compressed: 0: its inputs are pixels"):
        make(by_share(left), layers=["0"], begin_step=0)


def test_methods_are_given_shares_seeds_and_moments() -> None:
    seen: list[tuple[float, int, bool]] = []

    def method(layer: View, share: float, *, seed: int = 0, gradient: Any = None) -> Replacement:
        seen.append((share, seed, layer.moments is not None))
        return hashed(layer.out_features, layer.in_features, layer.bias, seed)

    make(by_share(method), begin_step=0, rank={"0": 0.5, "2": 2}, seed=7)
    assert seen == [(0.5, 7, False), (2 * 40 / 400, 7, False)]
    model, optimizer, compression = make(by_share(method, looks_at_inputs=True))
    train(model, optimizer, compression, range(6))
    assert seen[2:] == [(0.25, 0, True)] * 2
    make(by_share(method, looks_at_inputs=True), begin_step=0)
    assert seen[4:] == [(0.25, 0, False)] * 2
    model, _, compression = make(by_share(method), layers=None, rank=4)
    assert compression.ranks == {"0": 4 * 44 / 480, "2": 4 * 40 / 400}
    assert "would have 100% of its weights" in compression.skipped["4"]


def test_a_corrected_bias_comes_in_with_the_numbers() -> None:
    def method(layer: View, share: float, *, seed: int = 0, gradient: Any = None) -> Replacement:
        return hashed(layer.out_features, layer.in_features, np.ones(layer.out_features, np.float32))

    model, _, compression = make(by_share(method), begin_step=0, alpha_decrement=0.5, frequency=1)
    own = model[0].own_bias.detach().clone()
    compression.step()
    assert torch.allclose(model[0](torch.zeros(FEATURES)), 0.5 * own + 0.5, atol=1e-6)
    compression.step()
    compression.finish()
    assert torch.allclose(model[0].bias, torch.ones(HIDDEN), atol=1e-6)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "returned NoneType"),
        (dense(np.ones((HIDDEN, FEATURES), np.float32), None), "returned Replacement"),
        (hashed(3, 4, None), r"weight of compressor .* shape \(20, 24\) were expected"),
        (hashed(HIDDEN, FEATURES, np.ones(3, np.float32)), "bias of compressor"),
        (low_rank(np.ones((HIDDEN, 2)), np.ones((2, 3)), None), "B of compressor"),
    ],
)
def test_results_that_do_not_fit_are_refused(result: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(by_share(lambda layer, share, *, seed=0, gradient=None: result), begin_step=0, layers=["0"])


def test_an_error_in_the_method_names_the_layer() -> None:
    def broken(layer: View, share: float, *, seed: int = 0, gradient: Any = None) -> Replacement:
        raise ZeroDivisionError("oh")

    with pytest.raises(UsageError, match=r"0: compressor .*broken raised ZeroDivisionError: oh"):
        make(by_share(broken), begin_step=0)


@pytest.mark.parametrize("name", ["kmeans", "hashednet", "deepthin", "pruning", "input-projection"])
def test_methods_are_compressors_by_name(name: str) -> None:
    model, optimizer, compression = make(name, rank=0.5)
    train(model, optimizer, compression, range(END))
    compression.finish()
    assert isinstance(model[0], ConstexprLinear)
    assert np.isfinite(model[0].to_constexpr().weight).all()
