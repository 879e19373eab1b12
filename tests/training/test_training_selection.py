from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from edgepack.errors import UsageError
from edgepack.training import apply_compression
from edgepack.training.modules import CompressedLinear
from tests.training.small_models import network


def test_by_default_every_layer_where_a_pair_pays_is_taken_and_the_others_have_a_reason() -> None:
    model = network()
    keys, parameters = list(model.state_dict()), list(model.parameters())
    compression = apply_compression(model, begin_step=5, rank=4)
    assert compression.ranks == {"0": 4, "2": 4}
    assert list(compression.skipped) == ["4"]
    assert "break-even rank 3" in compression.skipped["4"]
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


def test_a_share_leaves_layers_with_few_outputs_alone_unless_they_are_named() -> None:
    model = nn.Sequential(nn.Linear(256, 128), nn.Linear(128, 10))
    compression = apply_compression(model, begin_step=5, rank=0.25)
    assert compression.ranks == {"0": 21}
    assert "less than a kernel's tile" in compression.skipped["1"]
    model = nn.Sequential(nn.Linear(256, 128), nn.Linear(128, 10))
    assert apply_compression(model, begin_step=5, rank=0.25, layers=["1"]).ranks == {"1": 2}


def test_layers_are_chosen_by_predicate_and_ranks_by_name() -> None:
    assert apply_compression(network(), begin_step=5, rank=4, layers=lambda name, _: name != "0").ranks == {"2": 4}
    assert apply_compression(network(), begin_step=5, rank={"0": 3, "2": 0.9}).ranks == {"0": 3, "2": 9}


def test_a_module_in_two_places_is_one_layer() -> None:
    shared = nn.Linear(20, 20)
    model = nn.ModuleDict({"a": nn.Sequential(shared, nn.ReLU()), "b": shared})
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    compression = apply_compression(model, begin_step=0, rank=3, optimizer=optimizer, alpha_decrement=1.0, frequency=1)
    assert compression.ranks == {"a.0": 3}
    assert model["a"][0] is model["b"]
    assert isinstance(model["b"], CompressedLinear)
    compression.step()
    compression.finish()
    assert model["a"][0] is model["b"]
    assert isinstance(model["b"], nn.Sequential)


class _Own(nn.Linear):
    pass


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(40, 20), nn.Linear(20, 40))
    model[1].weight = model[0].weight
    return model


def _hooked() -> nn.Module:
    model = nn.Sequential(nn.Identity(), nn.Linear(20, 40))
    model[1].register_forward_hook(lambda module, args, output: None)
    return model


REFUSED = [
    (lambda: nn.Sequential(nn.Identity(), weight_norm(nn.Linear(20, 40))), "parametrization"),
    (lambda: nn.Sequential(nn.Identity(), spectral_norm(nn.Linear(20, 40))), "parametrization"),
    (lambda: nn.Sequential(nn.Identity(), _Own(20, 40)), "it is a _Own"),
    (lambda: nn.Sequential(nn.Identity(), nn.LazyLinear(40)), "it is a LazyLinear"),
    (lambda: nn.Sequential(nn.Identity(), nn.Linear(20, 40, device="meta")), "floats with values"),
    (_tied, "tied weights"),
    (_hooked, "hooks"),
]


@pytest.mark.parametrize(("make", "reason"), REFUSED)
def test_unfit_layers_are_refused_by_name_and_otherwise_left_alone(make: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=f"'1' cannot be compressed: .*{reason}"):
        apply_compression(make(), begin_step=5, rank=4, layers=["1"])
    with pytest.raises(UsageError, match=f"no layer to compress .*{reason}"):
        apply_compression(make(), begin_step=5, rank=4)
    model = nn.Sequential(nn.Linear(20, 20), *make())
    assert reason in apply_compression(model, begin_step=5, rank=4).skipped["2"]


def test_projections_inside_attention_are_left_alone() -> None:
    """The attention module reads their weights and never calls them."""
    model = nn.TransformerEncoderLayer(32, 2, 64)
    compression = apply_compression(model, begin_step=5, rank=4)
    assert compression.ranks == {"linear1": 4, "linear2": 4}
    assert "NonDynamicallyQuantizableLinear" in compression.skipped["self_attn.out_proj"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ["nope"]}, "no layer 'nope'"),
        ({"layers": "0"}, "one string"),
        ({"layers": ["1"]}, "it is a ReLU"),
        ({"layers": ["4"], "rank": 4}, "break-even"),
        ({"layers": ["0"], "rank": {"2": 4}}, "no rank is given"),
        ({"layers": []}, "no layer to compress"),
        ({"rank": 0}, "rank=0"),
        ({"rank": 1.5}, "rank=1.5"),
        ({"rank": True}, "rank=True"),
        ({"rank": 1000}, "above its break-even"),
        ({"compressor": "whitened", "begin_step": 0}, "needs training steps"),
        ({"begin_step": -1}, "begin_step"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_and_the_model_stays(settings: dict[str, Any], message: str) -> None:
    model = network()
    with pytest.raises(UsageError, match=message):
        apply_compression(model, **{"begin_step": 5, **settings})
    assert not any(isinstance(module, CompressedLinear) for module in model.modules())


def test_a_model_that_is_one_layer_cannot_be_swapped_in_place() -> None:
    with pytest.raises(UsageError, match="single linear layer"):
        apply_compression(nn.Linear(20, 20), begin_step=5, rank=4)
