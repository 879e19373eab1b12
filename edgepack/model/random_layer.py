"""Layers of random weights: what the cost of a layer is counted and timed on. Values change no counts."""

from __future__ import annotations

import numpy as np

from edgepack.model.types import Array

SEED = 0
SAMPLES = 8
"""Of calibration, for the static schemes: they only have to give sane ranges."""


def random_weight(rows: int, columns: int) -> tuple[Array, Array]:
    """Weight (rows, columns) and bias (rows,), float32."""
    rng = np.random.default_rng(SEED)
    weight = rng.standard_normal((rows, columns), np.float32) / np.float32(np.sqrt(columns))
    return weight, rng.standard_normal(rows, np.float32)


def random_pair(rows: int, columns: int, rank: int) -> tuple[Array, Array]:
    """A (rows, rank) and B (rank, columns): ranks above the layer's break-even are points of a grid as well."""
    rng = np.random.default_rng(SEED)
    left = rng.standard_normal((rows, rank), np.float32) / np.float32(np.sqrt(rank))
    return left, rng.standard_normal((rank, columns), np.float32) / np.float32(np.sqrt(columns))


def random_inputs(*shape: int) -> Array:
    """(SAMPLES, *shape) float32."""
    return np.random.default_rng(SEED).standard_normal((SAMPLES, *shape), np.float32)
