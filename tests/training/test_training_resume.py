from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from edgepack.errors import UsageError
from edgepack.training import Compression, apply_compression
from tests.training.small_models import batch, network, train

END = 30


def make(seed: int, compressor: str, **changes: Any) -> tuple[nn.Module, torch.optim.Optimizer, Compression, Any]:
    model = network(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=END)
    settings = {"compressor": compressor, "begin_step": 8, "frequency": 3, "alpha_decrement": 0.2, "rank": 4, **changes}
    return model, optimizer, apply_compression(model, optimizer=optimizer, **settings), schedule


def run(parts: tuple[Any, ...], steps: range) -> None:
    model, optimizer, compression, schedule = parts
    train(model, optimizer, compression, steps, lambda _: schedule.step())


def saved(parts: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Through a file, and without unpickling."""
    buffer = io.BytesIO()
    torch.save([part.state_dict() for part in parts], buffer)
    buffer.seek(0)
    states: list[dict[str, Any]] = torch.load(buffer, weights_only=True)
    return states


@pytest.mark.parametrize("compressor", ["low-rank", "whitened"])
@pytest.mark.parametrize("stop", [3, 8, 13, 25])
@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize("fresh_optimizer", [True, False])
def test_resumed_training_ends_in_the_same_bits(
    compressor: str, stop: int, model_first: bool, fresh_optimizer: bool
) -> None:
    whole = make(0, compressor)
    run(whole, range(END))
    first = make(0, compressor)
    run(first, range(stop))
    states = saved(first)
    model, optimizer, compression, schedule = make(1, compressor)
    if model_first:
        model.load_state_dict(states[0])
    compression.load_state_dict(states[2])
    if not model_first:
        model.load_state_dict(states[0])
    if fresh_optimizer:  # frameworks make optimizers after they restored the model
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=END)
        compression.attach(optimizer)
    optimizer.load_state_dict(states[1])
    schedule.load_state_dict(states[3])
    assert compression.steps == stop
    run((model, optimizer, compression, schedule), range(stop, END))
    expected, found = whole[2].finish().state_dict(), compression.finish().state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_model_alone_is_restored_in_the_middle_of_the_blend() -> None:
    parts = make(0, "whitened")
    run(parts, range(13))
    model = make(1, "whitened")[0]
    model.load_state_dict(parts[0].state_dict())
    x, _ = batch(99)
    assert 0 < model[0].alpha < 1
    assert torch.equal(model(x), parts[0](x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"begin_step": 9}, "schedule"),
        ({"rank": 3}, "ranks"),
        ({"compressor": "low-rank"}, "compressor"),
        ({"layers": ["0"]}, "ranks"),
    ],
)
def test_a_state_of_other_settings_is_refused(changes: dict[str, Any], message: str) -> None:
    parts = make(0, "whitened")
    run(parts, range(5))
    other = make(0, **{"compressor": "whitened", **changes})
    with pytest.raises(UsageError, match=f"saved state: {message}"):
        other[2].load_state_dict(parts[2].state_dict())
    with pytest.raises(UsageError, match="version"):
        other[2].load_state_dict({})


def test_a_state_of_an_earlier_stage_is_refused() -> None:
    parts = make(0, "low-rank")
    run(parts, range(5))
    early = parts[2].state_dict()
    run(parts, range(5, 15))
    with pytest.raises(UsageError, match="saved state of step 5, this training is at step 15"):
        parts[2].load_state_dict(early)


def test_the_state_is_a_copy() -> None:
    parts = make(0, "whitened")
    run(parts, range(4))
    state = parts[2].state_dict()
    before = state["inputs"]["0"]["second"].clone()
    run(parts, range(4, 6))
    assert torch.equal(state["inputs"]["0"]["second"], before)
