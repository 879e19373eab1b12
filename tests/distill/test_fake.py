"""Fake quantization against the grids of the emitted files, and its gradients."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgepack.distill.fake import fake_activation, fake_weight
from edgepack.model.types import Array
from edgepack.quantize.grids import activation_grid, dequantize_blocks, quantize_blocks, quantize_weight

FLOATS = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
MATRICES = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=FLOATS)


@given(MATRICES, st.sampled_from([127, 63, 7]))
def test_weights_lie_on_the_grid_of_the_files_to_the_last_bit(weight: Array, qmax: int) -> None:
    codes, scales = quantize_weight(weight, qmax=qmax)
    found = fake_weight(torch.from_numpy(weight), qmax).numpy()
    np.testing.assert_array_equal(found, codes * scales[:, None])


@given(MATRICES, st.sampled_from([4, 8]))
def test_weights_in_blocks_lie_on_the_grid_of_the_files_too(weight: Array, bits: int) -> None:
    codes, scales = quantize_blocks(weight, bits, 16)
    found = fake_weight(torch.from_numpy(weight), 2 ** (bits - 1) - 1, 16).numpy()
    wanted = dequantize_blocks(codes, scales, weight.shape[1])
    # Where both grids of a block are equally good, float32 may choose the other one.
    worst = np.abs(weight).max(axis=1, initial=0.0) * 1e-5
    same = np.abs(found - wanted) <= worst[:, None]
    as_good = np.square(found - weight).sum(axis=1) <= np.square(wanted - weight).sum(axis=1) * (1 + 1e-4)
    assert (same.all(axis=1) | as_good).all()


def test_kernels_of_convolutions_have_a_scale_per_output_channel() -> None:
    weight = np.random.default_rng(0).standard_normal((5, 7, 1, 1)).astype(np.float32)
    codes, scales = quantize_weight(weight)
    np.testing.assert_array_equal(fake_weight(torch.from_numpy(weight)).numpy(), codes * scales.reshape(-1, 1, 1, 1))


@given(MATRICES)
def test_activations_lie_within_half_a_step_on_a_grid_with_an_exact_zero(x: Array) -> None:
    scale, zero_point = activation_grid(float(x.min()), float(x.max()))
    found = fake_activation(torch.from_numpy(x)).numpy().astype(np.float64)
    # The zero point is rounded too, so that a value at either end may be cut off by half a step more.
    assert np.abs(found - x).max() <= scale * 1.01 + 1e-30
    codes = found / scale + zero_point
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-2)
    assert codes.max() - codes.min() <= 255.01
    # Float32 may round a zero point that lies in the middle the other way.
    assert codes.min() >= -129.01
    assert codes.max() <= 128.01
    assert not fake_activation(torch.zeros(3)).any()


@settings(max_examples=20)
@given(MATRICES)
def test_gradients_pass_straight_through(x: Array) -> None:
    for rounder in (fake_weight, fake_activation):
        value = torch.from_numpy(x).requires_grad_()
        direction = torch.arange(value.numel(), dtype=torch.float32).reshape(value.shape)
        (rounder(value) * direction).sum().backward()
        assert value.grad is not None
        np.testing.assert_array_equal(value.grad.numpy(), direction.numpy())


def test_runs_one_behind_the_other_have_grids_of_their_own() -> None:
    x = (
        torch.from_numpy(np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32))
        * torch.arange(1, 7)[:, None]
    )
    together = fake_activation(x, 3)
    apart = torch.cat([fake_activation(run) for run in x.split(2)])
    assert torch.equal(together, apart)
    assert not torch.equal(together, fake_activation(x))


def test_under_vmap_every_run_has_a_grid_of_its_own() -> None:
    x = torch.tensor([[[-1.0, 0.3, 1.0]], [[-100.0, 0.3, 100.0]]])
    together = torch.func.vmap(fake_activation)(x)
    apart = torch.stack([fake_activation(run) for run in x])
    assert torch.equal(together, apart)
    assert abs(float(together[0, 0, 1]) - 0.3) < 0.01 < abs(float(together[1, 0, 1]) - 0.3)
