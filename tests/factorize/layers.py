"""Layers and inputs for the tests of factorizers, and the errors that they are judged by."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.statistics import moments
from edgepack.model.types import Array, Moments

SIDES = st.integers(1, 24)
SEEDS = st.integers(0, 2**32 - 1)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def weight(out: int, inn: int, seed: int, kind: str = "full") -> Array:
    """A random matrix: of full rank, of rank ≤ 3, with equal singular values, or zero."""
    random = rng(seed)
    if kind == "zero":
        return np.zeros((out, inn), np.float32)
    if kind == "duplicate":
        u, _, v = np.linalg.svd(random.standard_normal((out, inn)), full_matrices=False)
        return (u @ v * 2.0).astype(np.float32)
    full = random.standard_normal((out, inn))
    if kind == "deficient":
        full = random.standard_normal((out, 3)) @ random.standard_normal((3, inn))
    return full.astype(np.float32)


def layer(w: Array, bias: Array | None = None, seen: Moments | None = None) -> View:
    return View("layer", w, bias, seen)


def inputs(rows: int, features: int, seed: int, still: int = 0) -> Array:
    """Correlated rows with a mean; the last `still` features never vary."""
    random = rng(seed)
    mixed = random.standard_normal((rows, features)) @ random.standard_normal((features, features)) / features**0.5
    x = (mixed + 2 * random.standard_normal(features)).astype(np.float32)
    if still:
        x[:, -still:] = np.float32(0.1)
    return x


def seen(x: Array) -> Moments:
    return moments([{"x": x}])["x"]


def product(pair: Replacement) -> Array:
    return pair.A.astype(np.float64) @ pair.B.astype(np.float64)


def output_error(w: Array, pair: Replacement, bias: Array | None, x: Array) -> float:
    """Mean squared error of the outputs over the rows of `x`, biases included."""
    x64 = x.astype(np.float64)
    exact = x64 @ w.astype(np.float64).T + (0 if bias is None else bias)
    found = x64 @ product(pair).T + (0 if pair.bias is None else pair.bias)
    return float(np.square(exact - found).sum(axis=1).mean())
