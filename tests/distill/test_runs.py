"""Calibration arrays as runs of programs with fixed shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgepack.distill.runs import as_batch, as_runs, at_once, choose_call, one_by_one
from edgepack.errors import DataError
from edgepack.sources.torch import export_program
from edgepack.torchgraph import flat_module
from tests.distill.distill_models import samples

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Two(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a.view(-1, 6) + b


class InPlace(nn.Module):
    """Writes a sample into a buffer of its own, for which vmap has no way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros(2, 5)
        y[:, 1:4].copy_(x)
        return y.cumsum(1)


def test_rows_make_runs_of_the_programs_batch_and_a_rest_is_left_out() -> None:
    module = flat_module(export_program(Two(), (torch.zeros(4, 6), torch.zeros(4, 6))))
    a, b = samples(10, 6), samples(10, 6, seed=1)
    for inputs in ({"b": b, "a": a}, {"first": a, "second": b}):
        found = as_runs(module, inputs)
        np.testing.assert_array_equal(found[0].numpy(), a[:8].reshape(2, 4, 6))
        np.testing.assert_array_equal(found[1].numpy(), b[:8].reshape(2, 4, 6))
    assert as_runs(module, {"a": a[:3], "b": b[:3]})[0].shape == (1, 4, 6)


def test_whole_inputs_are_runs() -> None:
    module = flat_module(export_program(Two(), (torch.zeros(2, 3), torch.zeros(1, 6))))
    found = as_runs(module, {"a": samples(5, 2, 3), "b": samples(5, 6)})
    assert [tuple(values.shape) for values in found] == [(5, 2, 3), (5, 1, 6)]


def test_arrays_that_do_not_fit_are_data_errors() -> None:
    module = flat_module(export_program(Two(), (torch.zeros(1, 6), torch.zeros(1, 6))))
    for inputs in (
        {"a": samples(4, 6)},
        {"a": samples(4, 6), "b": samples(4, 5)},
        {"a": samples(4, 6), "b": samples(3, 6)},
    ):
        with pytest.raises(DataError):
            as_runs(module, inputs)


class Mixing(nn.Module):
    """Answers that depend on all samples of the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


@pytest.mark.parametrize("batch", [1, 4])
def test_programs_of_layers_take_more_samples_than_they_were_exported_for(batch: int) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    module = flat_module(export_program(model, (torch.zeros(batch, 6),)))
    inputs = as_runs(module, {"x": samples(12, 6)})
    assert choose_call([module], inputs) is as_batch
    with torch.no_grad():
        found, wanted = as_batch(module, inputs)[0], one_by_one(module, inputs)[0]
        assert found.shape == wanted.shape == (12 // batch, batch, 3)
        torch.testing.assert_close(found, wanted)


def test_programs_that_mix_samples_never_see_those_of_another_run() -> None:
    module = flat_module(export_program(Mixing(), (torch.zeros(4, 6),)))
    inputs = as_runs(module, {"x": samples(12, 6)})
    call = choose_call([module], inputs)
    assert call is not as_batch
    torch.testing.assert_close(call(module, inputs)[0], one_by_one(module, inputs)[0])


def test_programs_of_batch_one_run_on_many_samples_at_once() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    module = flat_module(export_program(layer, (torch.zeros(1, 5, 8),)))
    inputs = as_runs(module, {"x": samples(6, 5, 8)})
    assert choose_call([module], inputs) is at_once
    with torch.no_grad():
        torch.testing.assert_close(at_once(module, inputs)[0][:, 0], layer(inputs[0][:, 0]), rtol=1e-4, atol=1e-5)


def test_programs_that_vmap_cannot_take_run_one_by_one() -> None:
    module = flat_module(export_program(InPlace(), (torch.zeros(2, 3),)))
    inputs = as_runs(module, {"x": samples(6, 3)})
    call = choose_call([module], inputs)
    assert call is one_by_one
    wanted = torch.stack([InPlace()(x) for x in inputs[0]])
    torch.testing.assert_close(call(module, inputs)[0], wanted)
