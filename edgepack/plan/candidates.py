"""The ranks at which factoring a layer can pay at all, and the schemes of layers beside that of their file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import sqrt

import numpy as np

from edgepack.errors import UsageError
from edgepack.model.kinds import views_of
from edgepack.model.layer import Layer
from edgepack.model.point import is_linear
from edgepack.model.scheme import FileScheme, Scheme, scheme_of
from edgepack.model.structure import RANK_TILE
from edgepack.model.types import LayerPlan

WORTHWHILE_SHARE = 0.75
"""A pair is a second kernel call: a rank must leave at most this share of the dense multiplications."""

MOST_RANKS = 24
"""Ranks per layer that a solver chooses from: all multiples of the tile where they are few, else ever wider steps."""

MOST_STAGE_RANKS = 5
"""Likewise where a kernel is taken apart: those of both its sides are combined."""

CORRECTION_RANKS = (8, 16, 32)
"""Of pairs beside a dense matrix in 4 bits: what it loses is spread over all directions but for a few strong ones."""

CORRECTION_SHARE = 0.25
"""Of the bytes of the dense matrix in 8 bits that such a pair may take: half of what 4 bits save."""


def correction_ranks(out_features: int, in_features: int) -> tuple[int, ...]:
    """Ranks worth trying for a pair beside the dense matrix, ascending."""
    most = CORRECTION_SHARE * out_features * in_features / (out_features + in_features)
    return tuple(rank for rank in CORRECTION_RANKS if rank <= most)


@dataclass(frozen=True)
class WorthwhileRanks:
    """All ranks at which a matrix may pay, as a `RankGrid`.

    Attributes:
        corrected: those of factors beside it as well.
    """

    corrected: bool = True

    def low_rank(self, rows: int, columns: int) -> tuple[int, ...]:
        """See `rank_choices`."""
        return rank_choices(rows, columns)

    def correction(self, rows: int, columns: int) -> tuple[int, ...]:
        """See `correction_ranks`."""
        return correction_ranks(rows, columns) if self.corrected else ()

    def stage(self, rows: int, columns: int) -> tuple[int, ...]:
        """See `rank_choices`, with fewer of them."""
        return rank_choices(rows, columns, MOST_STAGE_RANKS)

    def tucker(self, outputs: int, channels: int, places: int) -> tuple[tuple[int, int], ...]:
        """Those of both sides, each with each."""
        return _each_with_each(self, outputs, channels, places)

    def why_none(self, rows: int, columns: int) -> str:
        """Why a matrix has no `low_rank`."""
        return too_small(rows, columns)


@dataclass(frozen=True)
class AskedRank:
    """One rank, or one share of its weights, for every matrix that can have it, as a `RankGrid`.

    Attributes:
        rank: a rank (int), or a share (float).
        worthwhile: only where a rank pays at all.
    """

    rank: int | float
    worthwhile: bool = False

    def low_rank(self, rows: int, columns: int) -> tuple[int, ...]:
        """The rank, where there is one."""
        found = self._found(rows, columns)
        return () if isinstance(found, str) else (found,)

    def correction(self, rows: int, columns: int) -> tuple[int, ...]:
        """None: what was asked for stands in the layer's place."""
        return ()

    def stage(self, rows: int, columns: int) -> tuple[int, ...]:
        """As of a matrix."""
        return self.low_rank(rows, columns)

    def tucker(self, outputs: int, channels: int, places: int) -> tuple[tuple[int, int], ...]:
        """Both the same share of their sides, such that all weights together are the share that was asked for; none for
        a rank, which is one number."""
        if isinstance(self.rank, int) or not self.stage(outputs, channels * places):
            return ()
        core, thin = outputs * channels * places, outputs**2 + channels**2
        side = (sqrt(thin**2 + 4 * self.rank * core**2) - thin) / (2 * core)  # side² core + side thin = rank core
        ranks = int(side * channels), int(side * outputs)
        return (ranks,) if min(ranks) else ()

    def why_none(self, rows: int, columns: int) -> str:
        """Why a matrix has no `low_rank`."""
        return str(self._found(rows, columns))

    def _found(self, rows: int, columns: int) -> int | str:
        return (shared_rank if self.worthwhile else asked_rank)(rows, columns, self.rank)


@dataclass(frozen=True)
class GivenRanks:
    """The same ranks for every matrix, as a `RankGrid`: those that a layer is to be offered."""

    own: tuple[int, ...]
    beside: tuple[int, ...]

    def low_rank(self, rows: int, columns: int) -> tuple[int, ...]:
        """Those given."""
        return self.own

    def correction(self, rows: int, columns: int) -> tuple[int, ...]:
        """Those given."""
        return self.beside

    def stage(self, rows: int, columns: int) -> tuple[int, ...]:
        """Those given, as far as the matrix has them."""
        return tuple(rank for rank in self.own if rank < min(rows, columns))

    def tucker(self, outputs: int, channels: int, places: int) -> tuple[tuple[int, int], ...]:
        """Those given for both sides, each with each."""
        return _each_with_each(self, outputs, channels, places)


def _each_with_each(
    grid: WorthwhileRanks | GivenRanks, outputs: int, channels: int, places: int
) -> tuple[tuple[int, int], ...]:
    return tuple(product(grid.stage(outputs * places, channels), grid.stage(outputs, channels * places)))


def break_even_rank(out_features: int, in_features: int) -> int:
    """The largest r with r (out + in) < out · in: above it the pair has more weights and multiplications than W."""
    return (out_features * in_features - 1) // (out_features + in_features)


def rank_choices(out_features: int, in_features: int, most: int = MOST_RANKS) -> tuple[int, ...]:
    """Ranks worth trying, ascending: multiples of the tile that leave at most 3/4 of the dense multiplications, thinned
    out geometrically to about `most`."""
    tiles = int(WORTHWHILE_SHARE * out_features * in_features / (out_features + in_features)) // RANK_TILE
    if tiles <= most:
        return tuple(RANK_TILE * tile for tile in range(1, tiles + 1))
    # Rounding makes small steps coincide, so more are drawn than are kept.
    for drawn in range(most, 4 * most):
        steps = np.unique(np.rint(np.geomspace(1, tiles, drawn)).astype(int))
        if len(steps) >= most:
            break
    return tuple(int(RANK_TILE * tile) for tile in steps)


def too_small(out_features: int, in_features: int) -> str:
    """Why a layer without `rank_choices` stays dense."""
    limit = break_even_rank(out_features, in_features)
    return f"rank {RANK_TILE} saves too little, as the break-even rank is {limit}"


def shared_rank(out_features: int, in_features: int, share: float) -> int | str:
    """The layer's rank where all layers that are worth it keep one share of their weights.

    Returns:
        The rank, or why the layer stays dense.
    """
    if not rank_choices(out_features, in_features):
        return too_small(out_features, in_features)
    return asked_rank(out_features, in_features, share)


def check_rank(layers: Sequence[Layer], rank: int | float) -> None:
    """Refuses a rank that no layer can have.

    Raises:
        UsageError: a whole number beyond the smaller side of every layer.
    """
    largest = max((min(view.weight.shape) for view in views_of(layers)), default=0)
    if isinstance(rank, int) and not 1 <= rank <= largest:
        raise UsageError(
            f"--rank {rank}: ranks here go from 1 to {largest}, the smaller side of the largest layer",
            hint="give a rank in that range, a share such as 0.25, or auto",
        )


def asked_rank(out_features: int, in_features: int, rank: int | float) -> int | str:
    """The layer's rank where one rank (int), or one share of the dense weight parameters (float), was asked for.

    Returns:
        The rank, or why the layer stays dense.
    """
    limit = break_even_rank(out_features, in_features)
    wanted = rank if isinstance(rank, int) else int(rank * out_features * in_features / (out_features + in_features))
    if wanted < 1:
        return f"a share of {rank} of its weights is less than rank 1"
    if wanted > limit:
        return f"rank {wanted} is above its break-even rank {limit}"
    return wanted


def base_scheme(layers: Sequence[LayerPlan], beside_code: Scheme) -> Scheme:
    """The scheme that most weight parameters take; of equals the first by name. A pair beside a matrix counts with it.

    Layers stored in code have no say: no other weight can be in their scheme. Nor do convolutions have one: a file's
    scheme is that of its linear layers.

    Args:
        layers: of the plan.
        beside_code: the scheme where there are no other layers: of all weights that are in no layer.
    """
    weights: dict[Scheme, int] = {}
    for layer in layers:
        if layer.scheme is not None and not layer.scheme.is_constexpr and is_linear(layer.dense):
            weights[layer.scheme] = weights.get(layer.scheme, 0) + layer.weight_parameters
    return min(weights, key=lambda scheme: (-weights[scheme], scheme.name), default=beside_code)


def exceptions(layers: Sequence[LayerPlan], file: FileScheme) -> dict[str, Scheme]:
    """Layer name → scheme, of the layers that differ from what the file gives its layers."""
    return {layer.layer: layer.scheme for layer in layers if layer.scheme not in (None, file.layers)}


def file_label(layers: Sequence[LayerPlan], file: FileScheme) -> str:
    """What to call the scheme of a file for people: `mixed` where its layers differ, with that of its other weights."""
    own = ((layer.scheme_in(file), layer.ops) for layer in layers)
    return file.label(each for scheme, ops in own for each in ([scheme_of(op, scheme) for op in ops] or [scheme]))
