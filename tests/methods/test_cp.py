"""CP: what the three convolutions come to, how near they come, and when there are none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.factorize.leastsquares import metric
from edgepack.methods.cp import cp, fit
from edgepack.methods.registry import compress
from edgepack.model.kinds.stages import composed
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array
from edgepack.quantize.gptq import output_energy
from tests.factorize.layers import SEEDS, inputs, rng, seen

KERNEL, PLACES = (2, 3), 6
OUT, IN = 10, 7


def random_kernel(seed: int) -> Array:
    return rng(seed).standard_normal((OUT, IN * PLACES)).astype(np.float32)


def of_rank(rank: int, seed: int) -> Array:
    """A sum of so many products of one vector per side."""
    sides = [rng(seed + number).standard_normal((rank, size)) for number, size in enumerate((OUT, IN, PLACES))]
    return np.einsum("ro,rc,rp->ocp", *sides).reshape(OUT, -1)


def view(weight: Array, seed: int | None = None) -> View:
    rows = None if seed is None else seen(inputs(200, IN * PLACES, seed))
    return View("conv", weight.astype(np.float32), rng(1).standard_normal(OUT).astype(np.float32), rows, KERNEL)


def made(layer: View, share: float, **given: Array) -> Replacement:
    part = cp(layer, share, **given)
    assert isinstance(part, Replacement)
    return part


def lost(layer: View, part: Replacement, gradient: Array | None = None) -> float:
    return output_energy(layer.weight - composed(part).astype(np.float64), metric(layer), gradient)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.15, 0.8), SEEDS)
def test_shapes_bytes_and_bias(share: float, seed: int) -> None:
    layer = view(random_kernel(seed), seed)
    part = made(layer, share)
    (rank,) = part.structure.ranks
    shapes = {role: tensor.shape for role, tensor in part.tensors.items()}
    assert shapes == {"B": (rank, IN), "core": (rank, PLACES), "A": (OUT, rank)}
    assert sum(tensor.size for tensor in part.tensors.values()) <= share * layer.weight.size
    whole = np.einsum("or,rp,rc->ocp", part.A, part.tensors["core"], part.B).reshape(OUT, -1)
    np.testing.assert_allclose(composed(part), whole, atol=1e-4 * np.abs(whole).max())
    assert part.bias is not None
    assert layer.bias is not None
    assert layer.moments is not None
    mean = (layer.weight - whole) @ layer.moments.mean
    np.testing.assert_allclose(part.bias - layer.bias, mean, atol=1e-3 * (1 + np.abs(mean).max()))
    again = made(layer, share)
    assert all(again.tensors[role].tobytes() == tensor.tobytes() for role, tensor in part.tensors.items())


@pytest.mark.parametrize("seed", [None, 3])
def test_a_kernel_of_that_rank_is_mostly_found_again(seed: int | None) -> None:
    """Not always: there are places where no factor by itself can be made better."""
    layers = [view(of_rank(4, 10 * number), seed) for number in range(5)]
    share = (OUT + IN + PLACES) / layers[0].weight.size
    for rank, near in ((4, True), (2, False)):
        shares = [lost(one, made(one, rank * share)) / output_energy(one.weight, metric(one)) for one in layers]
        assert (np.median(shares) < 1e-3) == near, shares


def test_more_components_lose_less_and_what_is_known_of_inputs_and_outputs_counts() -> None:
    blind, knowing = view(random_kernel(5)), view(random_kernel(5), 6)
    shares = (0.2, 0.4, 0.8)
    losses = [lost(knowing, made(knowing, share)) for share in shares]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] < 0.9 * lost(knowing, made(blind, shares[0]))
    gradient = np.diag(np.geomspace(1, 1e-3, OUT))
    weighed, plain = made(knowing, 0.4, gradient=gradient), made(knowing, 0.4)
    assert lost(knowing, weighed, gradient) < 0.9 * lost(knowing, plain, gradient)


def test_components_do_not_grow_against_each_other() -> None:
    """But for its noise this tensor is a limit of sums of two products, and no such sum: as they come nearer, they grow
    without end."""
    e, f = np.eye(2)
    tensor = np.einsum("a,b,c->abc", e, e, f) + np.einsum("a,b,c->abc", e, f, e) + np.einsum("a,b,c->abc", f, e, e)
    tensor = tensor + 0.001 * rng(4).standard_normal(tensor.shape)
    A, K, B = fit(tensor.reshape(2, 4), 2, None, 2)
    whole = np.einsum("or,rp,rc->ocp", A, K, B)
    assert np.square(tensor - whole).sum() < 0.01 * np.square(tensor).sum()
    each = np.linalg.norm(A, axis=0) * np.linalg.norm(K, axis=1) * np.linalg.norm(B, axis=1)
    assert each.max() < 2 * np.linalg.norm(tensor)


def test_an_input_of_zeros_and_a_kernel_of_zeros() -> None:
    still = replace(view(random_kernel(8)), moments=seen(np.zeros((5, IN * PLACES), np.float32)))
    assert np.isfinite(composed(made(still, 0.3))).all()
    nothing = made(view(np.zeros((OUT, IN * PLACES)), 2), 0.3)
    np.testing.assert_allclose(composed(nothing), 0, atol=1e-6)


def test_why_there_are_none() -> None:
    assert compress("cp", replace(view(random_kernel(0)), kernel=()), 0.5) == (
        "there is no kernel of several places to take apart"
    )
    assert "too few" in str(compress("cp", view(random_kernel(0)), 0.01))
