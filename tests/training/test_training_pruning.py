from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgepack.errors import UsageError
from edgepack.training.pruning import Pruning
from tests.training.small_models import FEATURES, batch, network


def train(model: nn.Module, optimizer: torch.optim.Optimizer, pruning: Pruning, steps: range) -> None:
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        pruning.step()


@given(
    share=st.floats(0.02, 0.98),
    begin=st.integers(0, 4),
    length=st.integers(1, 7),
    frequency=st.integers(1, 9),
    saliency=st.sampled_from(["magnitude", "gradient"]),
)
@settings(max_examples=25)
def test_the_final_share_is_reached_exactly(
    share: float, begin: int, length: int, frequency: int, saliency: Any
) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    pruning = Pruning(model, share, begin, begin + length, frequency, saliency)
    train(model, optimizer, pruning, range(begin + length + 2))
    assert pruning.finish() is model
    for index in (0, 2, 4):
        weight = model[index].weight
        assert type(model[index]) is nn.Linear
        assert int((weight != 0).sum()) == round(share * weight.numel())


def test_the_schedule_is_cubic_and_what_is_out_stays_out() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    pruning = Pruning(model, 0.1, 4, 12, frequency=2)
    shares, zeros = [], []
    for step in range(14):
        train(model, optimizer, pruning, range(step, step + 1))
        shares.append(pruning.shares["0"])
        zeros.append(model[0].weight == 0)
    expected = {4: 1.0, 6: 1 - 0.9 * (1 - 0.75**3), 8: 1 - 0.9 * (1 - 0.5**3), 10: 1 - 0.9 * (1 - 0.25**3), 12: 0.1}
    assert {step: shares[step - 1] for step in expected} == pytest.approx(expected, abs=1 / (20 * FEATURES))
    assert shares[:5] == [1.0] * 5
    assert shares[6] == shares[5]
    assert all(bool((later | ~earlier).all()) for earlier, later in pairwise(zeros))


def test_the_smallest_weights_go_first() -> None:
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    model[0].weight.data = torch.tensor([[1.0, -8.0, 3.0, -2.0], [7.0, 4.0, -5.0, 6.0]])
    pruning = Pruning(model, 0.5, 0, 1)
    pruning.step()
    assert model[0].weight.tolist() == [[0, -8, 0, 0], [7, 0, -5, 6]]


def test_saliency_by_gradient_sums_the_squares_of_gradient_times_weight_since_the_last_update() -> None:
    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    model[0].weight.data = torch.tensor([[9.0, 1.0, 2.0]])
    pruning = Pruning(model, 1 / 3, 0, 2, frequency=5, saliency="gradient")
    for x in ([0.0, 3.0, 1.0], [0.0, -3.0, 1.0]):  # (g w)²: 0, 9 and 4, twice; the plain sum of g w would be 0 and 4
        model(torch.tensor([x])).sum().backward()
        pruning.step()
    assert model[0].weight.tolist() == [[0, 1, 0]]
    model(torch.full((1, 3), float("nan"))).sum().backward()
    assert pruning._sums["0"].isfinite().all()


def test_shares_by_name_and_chosen_layers() -> None:
    model = network()
    pruning = Pruning(model, {"0": 0.5, "2": 0.25}, 0, 1)
    pruning.step()
    assert pruning.shares == {"0": 0.5, "2": 0.25}
    assert "no rank or share is given" in pruning.skipped["4"]
    assert Pruning(network(), 0.5, 0, 1, layers=["4"]).shares == {"4": 1.0}


@pytest.mark.parametrize("saliency", ["magnitude", "gradient"])
@pytest.mark.parametrize("stop", [2, 5, 9])
def test_resumed_pruning_ends_in_the_same_bits(saliency: Any, stop: int) -> None:
    def parts(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, Pruning]:
        model = network(seed)
        return model, torch.optim.Adam(model.parameters(), 0.01), Pruning(model, 0.2, 3, 10, 3, saliency)

    whole, first, second = parts(0), parts(0), parts(1)
    train(*whole, range(12))
    train(*first, range(stop))
    for part, source in zip(second, first, strict=True):
        part.load_state_dict(source.state_dict())
    train(*second, range(stop, 12))
    assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), second[0].parameters(), strict=True))
    with pytest.raises(UsageError, match="saved state: schedule"):
        Pruning(network(), 0.2, 3, 11, 3, saliency).load_state_dict(first[2].state_dict())


def test_finish_says_when_and_leaves_nothing_behind() -> None:
    model = network()
    pruning = Pruning(model, 0.5, 0, 2, saliency="gradient")
    pruning.step()
    with pytest.raises(UsageError, match=r"finish\(\) at step 1: the final share is reached at step 2"):
        pruning.finish()
    pruning.step()
    pruning.finish()
    assert not model[0].weight._backward_hooks
    with pytest.raises(UsageError, match="after finish"):
        pruning.step()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"final_share": 1.0}, "final_share=1.0"),
        ({"final_share": 2}, "final_share=2"),
        ({"end_step": 0}, "begin < end"),
        ({"frequency": 0}, "frequency"),
        ({"saliency": "luck"}, "'luck'"),
        ({"layers": ["1"]}, "ReLU"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Pruning(network(), **{"final_share": 0.5, "begin_step": 0, "end_step": 4, **settings})
