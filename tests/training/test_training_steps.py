from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgepack.errors import UsageError
from edgepack.model.types import Array
from edgepack.training import Compression, apply_compression
from tests.training.small_models import FEATURES, batch, network, train

RANK = 4


def compressed(model: nn.Module, optimizer: torch.optim.Optimizer | None, **changes: Any) -> Compression:
    settings: dict[str, Any] = {"begin_step": 6, "frequency": 2, "alpha_decrement": 0.25, "rank": RANK}
    return apply_compression(model, optimizer=optimizer, **{**settings, **changes})


def test_nothing_changes_before_the_schedule_begins() -> None:
    plain, model = network(), network()
    train(plain, torch.optim.Adam(plain.parameters(), 0.01), None, range(6))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    compression = compressed(model, optimizer)
    train(model, optimizer, compression, range(6))
    assert compression.alpha == 1.0
    x, _ = batch(99)
    assert torch.equal(model(x), plain(x))
    assert torch.equal(model[0].dense, plain[0].weight)
    assert all(torch.equal(plain.state_dict()[k], model.state_dict()[k]) for k in plain.state_dict())


def test_the_whole_schedule_in_a_plain_loop() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    compression = compressed(model, optimizer)
    alphas: list[float] = []
    kept = []

    def after(step: int) -> None:
        alphas.append(compression.alpha)
        kept.append((model[0].A is not None, model[0].dense is not None))
        assert (compression.steps, model[0].alpha) == (step, compression.alpha)

    train(model, optimizer, compression, range(20), after)
    assert alphas == [1] * 7 + [0.75, 0.75, 0.5, 0.5, 0.25, 0.25] + [0] * 7
    assert kept == [(False, True)] * 5 + [(True, True)] * 8 + [(True, False)] * 7
    x, _ = batch(99)
    expected = model.eval()(x)
    assert compression.finish() is model
    assert compression.finish() is model
    assert torch.equal(model(x), expected)
    assert {type(m).__module__ for m in model.modules() if isinstance(m, nn.Linear)} == {"torch.nn.modules.linear"}
    assert list(model.state_dict()) == [
        *("0.0.weight", "0.1.weight", "0.1.bias", "2.0.weight", "2.1.weight", "2.1.bias", "4.weight", "4.bias")
    ]
    train(model, optimizer, None, range(20, 22))  # the optimizer still holds what the model is made of
    assert not torch.equal(model(x), expected)
    with pytest.raises(UsageError, match="after finish"):
        compression.step()


def test_weights_and_factors_learn_together() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    compression = compressed(model, optimizer)
    train(model, optimizer, compression, range(9))
    layer = model[2]
    before = [p.detach().clone() for p in (layer.dense, layer.A, layer.B, layer.own_bias)]
    train(model, optimizer, compression, range(9, 10))
    moved = [
        not torch.equal(a, b) for a, b in zip(before, (layer.dense, layer.A, layer.B, layer.own_bias), strict=True)
    ]
    assert moved == [True] * 4


def test_the_dense_weight_leaves_memory_and_optimizer() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    compression = compressed(model, optimizer)
    weights = [weakref.ref(model[i].dense) for i in (0, 2)]
    train(model, optimizer, compression, range(compression.schedule.end_step))
    gc.collect()
    assert [ref() for ref in weights] == [None, None]
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in model.parameters()]
    assert {id(p) for p in optimizer.state} <= {id(p) for p in held}


def test_factors_join_the_group_of_their_weight_where_a_new_optimizer_would_have_them() -> None:
    def groups(model: nn.Module) -> list[dict[str, Any]]:
        matrices = [p for p in model.parameters() if p.dim() > 1]
        vectors = [p for p in model.parameters() if p.dim() == 1]
        return [{"params": matrices, "weight_decay": 0.1, "lr": 0.02}, {"params": vectors, "weight_decay": 0.0}]

    model = network()
    optimizer = torch.optim.AdamW(groups(model), 0.01)
    compression = compressed(model, optimizer)
    train(model, optimizer, compression, range(8))
    for group, fresh in zip(optimizer.param_groups, groups(model), strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in fresh["params"]]
    assert len(optimizer.param_groups[0]["params"]) == 3 + 2 * 2


def test_forgotten_optimizers_are_no_secret() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    compression = compressed(model, None)
    with pytest.raises(UsageError, match=r"no attached optimizer has 0\.weight, 2\.weight"):
        compression.step()
    assert compression.steps == 0
    compression.attach(torch.optim.SGD(model[0].parameters(), 0.1))
    with pytest.raises(UsageError, match=r"has 2\.weight"):
        compression.step()
    compression.attach(optimizer)
    compression.attach(optimizer)
    train(model, optimizer, compression, range(8))
    assert sum(p is model[0].A for p in optimizer.param_groups[0]["params"]) == 1
    optimizer.param_groups[0]["params"] = [p for p in optimizer.param_groups[0]["params"] if p is not model[2].B]
    with pytest.raises(UsageError, match=r"has 2\.B"):
        compression.step()


def test_an_optimizer_made_after_the_factors_is_attached_with_nothing_to_add() -> None:
    model = network()
    compression = compressed(model, None, begin_step=0)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    compression.attach(optimizer)
    train(model, optimizer, compression, range(compression.schedule.end_step))
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.Adagrad])
def test_optimizers_with_a_fixed_list_of_parameters_are_refused(kind: type[torch.optim.Optimizer]) -> None:
    model = network()
    with pytest.raises(UsageError, match="fixed list"):
        compressed(model, kind(model.parameters()))
    assert isinstance(model[0], nn.Linear)


def test_only_torch_optimizers_are_attached() -> None:
    compression = compressed(network(), None)
    with pytest.raises(UsageError, match="got int"):
        compression.attach(3)  # type: ignore[arg-type]


def test_frozen_layers_get_frozen_factors_and_need_no_optimizer() -> None:
    model = network().requires_grad_(False)
    compression = compressed(model, None)
    for _ in range(compression.schedule.end_step):
        compression.step()
    compression.finish()
    assert not any(p.requires_grad for p in model.parameters())


def test_layers_without_bias() -> None:
    model = network(bias=False)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    compression = compressed(model, optimizer, compressor="whitened")
    train(model, optimizer, compression, range(compression.schedule.end_step))
    x, _ = batch(99)
    expected = model(x)
    compression.finish()
    assert torch.equal(model(x), expected)
    assert model[0][1].bias is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_factors_have_the_type_of_their_weight(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    compression = compressed(model, torch.optim.SGD(model.parameters(), 0.1), begin_step=0)
    assert (model[0].A.dtype, model[0].B.dtype) == (dtype, dtype)
    compression.step()
    compression.step()
    assert model(torch.zeros(1, FEATURES, dtype=dtype)).dtype == dtype


def test_under_autocast_outputs_have_the_type_that_a_linear_layer_gives() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    compression = compressed(model, optimizer)
    for step in range(compression.schedule.end_step + 2):
        x, y = batch(step)
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(x)
            assert model[0](x).dtype == scores.dtype == torch.bfloat16
            loss = nn.functional.cross_entropy(scores, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        compression.step()
    assert model[0].A.dtype == torch.float32
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_failing_compressor_leaves_everything_as_it_was() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def second_fails(weight: Array, bias: Array | None, rank: int) -> tuple[Array, Array]:
        if weight.shape[1] != FEATURES:
            raise ArithmeticError("no")
        return weight[:, :rank], np.eye(rank, weight.shape[1])

    compression = compressed(model, optimizer, compressor=second_fails)
    with pytest.raises(UsageError, match=r"2: compressor .*second_fails raised ArithmeticError"):
        train(model, optimizer, compression, range(8))
    assert compression.steps == 5
    assert model[0].A is None
    assert len(optimizer.param_groups[0]["params"]) == 6


def test_nan_in_a_weight_is_named() -> None:
    model = network()
    compression = compressed(model, torch.optim.SGD(model.parameters(), 0.1), begin_step=1)
    model[2].dense.data[0, 0] = float("nan")
    with pytest.raises(UsageError, match="2: its weight holds NaN"):
        compression.step()


def test_finish_before_the_end_says_when() -> None:
    model = network()
    compression = compressed(model, torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(UsageError, match=r"alpha is 1: it is 0 from step 14 on"):
        compression.finish()


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(UsageError, match="2 processes"):
        compressed(network(), None, begin_step=0)
