"""The ranks at which factoring a layer can pay at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgepack.errors import UsageError
from edgepack.types import LayerPlan, LinearLayer, Spectrum

RANK_TILE = 8
"""Kernels work on tiles of this many rows: ranks between two multiples cost as much as the upper one."""

WORTHWHILE_SHARE = 0.75
"""A pair is a second kernel call: a rank must leave at most this share of the dense multiplications."""


def break_even_rank(out_features: int, in_features: int) -> int:
    """The largest r with r (out + in) < out · in: above it the pair has more weights and multiplications than W."""
    return (out_features * in_features - 1) // (out_features + in_features)


def rank_choices(layer: LinearLayer) -> list[int]:
    """Ranks worth trying, ascending: multiples of the tile that leave at most 3/4 of the dense multiplications."""
    limit = WORTHWHILE_SHARE * layer.out_features * layer.in_features / (layer.out_features + layer.in_features)
    return list(range(RANK_TILE, int(limit) + 1, RANK_TILE))


def dense(layer: LinearLayer, reason: str) -> LayerPlan:
    """The plan that leaves the layer as it is."""
    limit = break_even_rank(layer.out_features, layer.in_features)
    return LayerPlan(layer.name, layer.out_features, layer.in_features, None, limit, 0.0, reason)


def all_dense(layers: Sequence[LinearLayer], reason: str) -> tuple[LayerPlan, ...]:
    """The plan that factors nothing; a layer that never could be says that instead of `reason`."""
    return tuple(dense(layer, reason if rank_choices(layer) else _too_small(layer)) for layer in layers)


def _too_small(layer: LinearLayer) -> str:
    limit = break_even_rank(layer.out_features, layer.in_features)
    return f"a pair of rank {RANK_TILE} saves too little: break-even rank is {limit}"


def at_rank(layer: LinearLayer, spectrum: Spectrum, rank: int, reason: str) -> LayerPlan:
    """The plan that factors the layer at `rank`."""
    limit = break_even_rank(layer.out_features, layer.in_features)
    lost = float(spectrum.lost_share()[rank])
    return LayerPlan(layer.name, layer.out_features, layer.in_features, rank, limit, lost, reason)


def at_lost_share(layer: LinearLayer, spectrum: Spectrum, lost_share: float) -> LayerPlan:
    """The smallest worthwhile rank that loses at most `lost_share` of the layer's output energy, else dense."""
    choices = rank_choices(layer)
    if not choices:
        return dense(layer, _too_small(layer))
    lost = spectrum.lost_share()
    for rank in choices:
        if lost[rank] <= lost_share:
            return at_rank(layer, spectrum, rank, f"smallest rank that loses at most {lost_share:.3g} of output energy")
    needed = int(np.argmax(lost <= lost_share))
    return dense(layer, f"{lost_share:.3g} of output energy needs rank {needed}, worthwhile up to {choices[-1]}")


def fixed(layers: Sequence[LinearLayer], spectra: Sequence[Spectrum], rank: int | float) -> tuple[LayerPlan, ...]:
    """Every layer at one rank (int), or at one share of its dense weight parameters (float in 0 … 1).

    Layers for which that rank is at or above break-even stay dense.

    Raises:
        UsageError: a rank that no layer can have.
    """
    if isinstance(rank, int):
        largest = max((min(layer.weight.shape) for layer in layers), default=0)
        if not 1 <= rank <= largest:
            raise UsageError(
                f"--rank {rank}: ranks here go from 1 to {largest}, the smaller side of the largest layer",
                hint="give a rank in that range, a share such as 0.25, or auto",
            )
    return tuple(_fixed_layer(layer, spectrum, rank) for layer, spectrum in zip(layers, spectra, strict=True))


def _fixed_layer(layer: LinearLayer, spectrum: Spectrum, rank: int | float) -> LayerPlan:
    limit = break_even_rank(layer.out_features, layer.in_features)
    sides = layer.out_features + layer.in_features
    wanted = rank if isinstance(rank, int) else int(rank * layer.weight.size / sides)
    if wanted < 1:
        return dense(layer, f"a share of {rank} of its weights is less than rank 1")
    if wanted > limit:
        return dense(layer, f"rank {wanted} is above its break-even rank {limit}")
    return at_rank(layer, spectrum, wanted, "asked for with --rank")
