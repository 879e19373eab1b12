"""What the tests of methods that give code have in common."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgepack.factorize.leastsquares import metric
from edgepack.methods.budget import in_8_bits
from edgepack.model.constexpr import effective_weight, evaluate, stored_bytes
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array
from edgepack.quantize.gptq import output_energy
from tests.factorize import layers


def trained_like(out: int, inn: int, seed: int, rows: int = 600, known: bool = True) -> View:
    """A layer with a decaying spectrum, a bias, and correlated inputs that have a mean."""
    random = layers.rng(seed)
    k = min(out, inn)
    spectrum = 1 / np.arange(1, k + 1) ** 0.5
    weight = random.standard_normal((out, k)) * spectrum @ random.standard_normal((k, inn)) / inn**0.5
    bias = random.standard_normal(out).astype(np.float32)
    made = layers.layer(weight.astype(np.float32), bias)
    return replace(made, moments=layers.seen(layers.inputs(rows, inn, seed + 1))) if known else made


def blind(layer: View) -> View:
    return replace(layer, moments=None)


def share_stored(layer: View, constexpr: Replacement) -> float:
    return stored_bytes(in_8_bits(constexpr)) / layer.weight.size


def loss(layer: View, weight: Array) -> float:
    return output_energy(layer.weight - weight, metric(layer))


def check_consistent(layer: View, constexpr: Replacement) -> None:
    """The weight that is claimed is what the steps give, and the mean output is exact where it is known."""
    np.testing.assert_allclose(effective_weight(constexpr), constexpr.weight, rtol=1e-5, atol=1e-6)
    x = layers.inputs(5, layer.in_features, 3)
    np.testing.assert_allclose(evaluate(constexpr, x), x @ constexpr.weight.T, rtol=1e-4, atol=1e-4)
    if layer.moments is None:
        assert constexpr.bias is layer.bias
        return
    mean = layer.moments.mean
    own = np.zeros(layer.out_features) if layer.bias is None else layer.bias
    assert constexpr.bias is not None
    assert layer.weight @ mean + own == pytest.approx(constexpr.weight @ mean + constexpr.bias, abs=1e-4)


def check_same(one: Replacement, other: Replacement) -> None:
    assert one.program == other.program
    assert one.tensors.keys() == other.tensors.keys()
    for name, array in one.tensors.items():
        np.testing.assert_array_equal(array, other.tensors[name])
    assert one.bias is not None
    assert other.bias is not None
    np.testing.assert_array_equal(one.bias, other.bias)
