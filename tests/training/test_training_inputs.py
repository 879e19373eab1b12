from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from edgepack.errors import DataError
from edgepack.factorize import svd, whitened
from edgepack.model import statistics
from edgepack.model.layer import View
from edgepack.training import apply_compression, inputs
from tests.training.small_models import FEATURES, batch, network, train


def test_moments_are_those_of_calibration_over_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "WINDOW", 3)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    compression = apply_compression(model, compressor="whitened", begin_step=8, rank=4, optimizer=optimizer)
    assert not model[0]._forward_pre_hooks
    train(model, optimizer, compression, range(7))
    model.eval()(torch.full((4, FEATURES), 1e9))  # evaluation in between does not count
    found = compression._sums["0"].moments("0")
    rows = torch.cat([batch(step)[0] for step in (5, 6)]).numpy()
    expected = statistics.moments([{"0": rows}])["0"]
    assert found.count == expected.count == 32
    np.testing.assert_allclose(found.mean, expected.mean)
    np.testing.assert_allclose(found.second, expected.second)
    assert (found.low, found.high) == (expected.low, expected.high)
    train(model.train(), optimizer, compression, range(7, 8))
    assert not model[0]._forward_pre_hooks
    assert not compression._sums


def test_whitened_factors_lose_less_of_the_output_than_low_rank() -> None:
    x = torch.cat([batch(step)[0] for step in range(20)])

    def lost(compressor: str) -> float:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        settings = {"begin_step": 20, "frequency": 1, "alpha_decrement": 1.0, "rank": 4}
        compression = apply_compression(model, compressor=compressor, optimizer=optimizer, **settings)  # type: ignore[arg-type]
        dense = model[0](x).detach()
        train(model, optimizer, compression, range(21))
        return float((model[0](x).detach() - dense).square().mean())

    assert lost("whitened") < 0.7 * lost("low-rank")


def test_whitened_agrees_with_the_factorizer_of_the_build() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    compression = apply_compression(model, compressor="whitened", begin_step=5, rank=4, optimizer=optimizer)
    weight, bias = (p.detach().numpy().copy() for p in (model[0].dense, model[0].own_bias))
    train(model, optimizer, compression, range(5))
    rows = torch.cat([batch(step)[0] for step in range(5)]).numpy()
    layer = View("0", weight, bias, statistics.moments([{"0": rows}])["0"])
    expected = whitened.factors(layer, whitened.spectrum(layer), 4)
    np.testing.assert_allclose((model[0].A @ model[0].B).detach().numpy(), expected.A @ expected.B, atol=1e-5)
    np.testing.assert_allclose((model[0].own_bias + model[0].shift).detach().numpy(), expected.bias, atol=1e-5)
    plain = svd.factors(layer, svd.spectrum(layer), 4)
    assert not np.allclose(expected.A @ expected.B, plain.A @ plain.B, atol=1e-3)


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = checkpoint(self.inner, x.requires_grad_(), use_reentrant=self.reentrant)
        return result


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant: bool) -> None:
    states = []
    for wrapped in (False, True):
        model: nn.Module = network()
        outer = Checkpointed(model, reentrant) if wrapped else model
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        settings = {"begin_step": 5, "frequency": 1, "alpha_decrement": 0.25, "rank": 4}
        compression = apply_compression(model, compressor="whitened", optimizer=optimizer, **settings)  # type: ignore[arg-type]
        train(outer, optimizer, compression, range(12))
        states.append(compression.finish().state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(20, 20), nn.Linear(20, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.used(x))


def test_inputs_never_seen_and_inputs_that_are_not_finite_are_named() -> None:
    model = Branching()
    compression = apply_compression(model, compressor="whitened", begin_step=1, rank=4)
    compression.attach(torch.optim.SGD(model.parameters(), 0.1))
    model(torch.randn(4, 20))
    with pytest.raises(DataError, match="unused: no input came by"):
        compression.step()
    model = Branching()
    compression = apply_compression(model, compressor="whitened", begin_step=1, rank=4, layers=["used"])
    compression.attach(torch.optim.SGD(model.parameters(), 0.1))
    model(torch.full((4, 20), float("inf")))
    with pytest.raises(DataError, match="used: NaN or infinity"):
        compression.step()
