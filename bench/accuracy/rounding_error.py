"""What rounding alone loses: the share of a layer's output energy, on samples that nothing was rounded for."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np

from accuracy.pairs import grids, weighted
from accuracy.study import LARGEST, Study
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array
from edgepack.quantize.error_breakdown import dense_share
from edgepack.quantize.gptq import round_to_nearest
from edgepack.quantize.grids import grid_of


def pair_error(study: Study, ranks: Mapping[str, int], scheme: Scheme, pairs: Mapping[str, Replacement]) -> float:
    """Median over the layers of the energy of A B − Â B̂; pairs that are on their grids already stay as they are."""
    return median(_pair_error(study, name, rank, scheme, pairs[name]) for name, rank in ranks.items())


def _pair_error(study: Study, name: str, rank: int, scheme: Scheme, pair: Replacement) -> float:
    layer, exact = study.layers[name], weighted(study, name, rank, scheme)
    first, second = grids(layer, rank, scheme)
    A, B = round_to_nearest(pair.A, first).weight, round_to_nearest(pair.B, second).weight
    moved = _product(A, B) - _product(exact.A, exact.B)
    return dense_share(layer.weight, layer.weight - moved, study.held_out[name])


def dense_error(study: Study, scheme: Scheme, weights: Mapping[str, Replacement] | None = None) -> float:
    """Median over the layers of what dense weights lose, rounded to nearest unless others are given."""
    return median(_dense_error(study, name, scheme, weights) for name in study.layers)


def _dense_error(study: Study, name: str, scheme: Scheme, weights: Mapping[str, Replacement] | None) -> float:
    layer = study.layers[name]
    grid = grid_of(scheme, layer.in_features, qmax=LARGEST)
    if weights is not None:
        return dense_share(layer.weight, weights[name].weight, study.held_out[name])
    if grid is None:
        raise ValueError(f"{scheme} has no integer grid")
    return dense_share(layer.weight, round_to_nearest(layer.weight, grid).weight, study.held_out[name])


def entry(kind: str, bits: int, way: str, share: float) -> dict[str, Any]:
    """A row of the table, with a list for the seeds."""
    return {"kind": kind, "bits": bits, "way": way, "share": [float(f"{share:.3g}")]}


def _product(A: Array, B: Array) -> Array:
    return np.asarray(A.astype(np.float64) @ B)
