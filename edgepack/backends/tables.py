"""Embedding tables of a file: how often the data look up each row, and what rows in fewer numbers or bits lose by that.

The rows of a table are vectors like any others: their covariance, each row counted as often as it is looked up, says
which directions a narrower table keeps. No sample shows all tokens. The share of those to come that were never seen is
that of tokens seen once (Good, "The population frequencies of species and the estimation of population parameters",
Biometrika 1953); all rows share it alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgepack.factorize import whitened
from edgepack.model.kinds import kind_of, views_of
from edgepack.model.kinds.embedding import ROWS
from edgepack.model.layer import Array, Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.structure import Structure
from edgepack.model.types import Spectrum
from edgepack.quantize.grids import decoded, grid_of, lattice, nearest

MOST_SEEN, MOST_OTHERS = 4096, 1024
"""Rows that losses are found on: those that are looked up most, and some of all others."""
_SAME = float(np.finfo(np.float32).eps) ** 2
"""Energy of differences, over that of the rows, that rounding of equal rows may leave."""


@dataclass(frozen=True)
class EmbeddingTable:
    """A table that no layer multiplies by.

    Attributes:
        layer: of the kind.
        counts: (tokens,) how often the data look up each row; zeros where there are none.
        vectors: rows that one inference looks up in each place of the table.
    """

    layer: Layer
    counts: Array
    vectors: int = 1

    @cached_property
    def shares(self) -> Array:
        """(tokens,) float64: how often each row will be looked up; they add up to 1."""
        seen, tokens = float(self.counts.sum()), len(self.counts)
        if not seen:
            return np.full(tokens, 1.0 / tokens)
        unseen = max(int((self.counts == 1).sum()), 1) / seen
        return (1.0 - unseen) * self.counts / seen + unseen / tokens

    @cached_property
    def spectrum(self) -> Spectrum:
        """Of the table as it is looked up: see `edgepack.factorize.whitened`, with the covariance of `shares`."""
        from scipy.linalg import eigh

        table = self.layer.weight.astype(np.float64)
        mean = self.shares @ table
        covariance = (table.T * self.shares) @ table - np.outer(mean, mean)
        energies, basis = eigh(covariance, overwrite_a=True, check_finite=False, driver="evd")
        return Spectrum(basis[:, ::-1].astype(np.float32), np.clip(energies[::-1], 0.0, None), self.shares)

    @cached_property
    def _mean(self) -> Array:
        """(width,) float64: of the rows as they are looked up."""
        return np.asarray(self.shares @ self.layer.weight)

    def factors(self, rank: int) -> Replacement:
        """What is written for the table at a rank: its mean row is exact."""
        (view,), kind = views_of([self.layer]), kind_of(self.layer)
        found = whitened.factors(view, self.spectrum, rank)
        return kind.replace(self.layer, found.structure, {ROWS: found})

    def lost_share(
        self, structure: Structure, scheme: Scheme, part: Replacement | None = None, *, seen: bool = False
    ) -> float:
        """Of what the rows that are looked up tell apart: by a smaller rank, and by rounding of the rows.

        Args:
            part: `factors` of the structure's rank, where they are at hand.
            seen: of the data alone, none of whose tokens is new.
        """
        rows, weights = self._sample(self.counts / max(float(self.counts.sum()), 1.0) if seen else self.shares)
        table = self.layer.weight[rows]
        energy = float(weights @ np.square(table - self._mean).sum(axis=1))
        told_apart = energy > _SAME * float(weights @ np.square(table).sum(axis=1))
        if structure.rank is None:
            found = _rounded(table, scheme)
        else:
            part = part or self.factors(structure.rank)
            found = _rounded(part.tensors["B"][rows], scheme) @ part.A.T + part.bias
        return float(weights @ np.square(found - table).sum(axis=1)) / energy if told_apart else 0.0

    def _sample(self, shares: Array) -> tuple[Array, Array]:
        """Rows, and what each counts."""
        order = np.argsort(-self.counts, kind="stable")
        seen = min(int((self.counts > 0).sum()), MOST_SEEN)
        often, others = order[:seen], order[seen:]
        some = others[np.linspace(0, len(others) - 1, min(len(others), MOST_OTHERS)).astype(np.int64)]
        of_some = np.full(len(some), float(shares[others].sum()) / max(len(some), 1))
        return np.concatenate([often, some]), np.concatenate([shares[often], of_some])


def _rounded(rows: Array, scheme: Scheme) -> Array:
    grid = grid_of(scheme, rows.shape[1])
    if grid is None:
        return rows
    on = lattice(rows, grid)
    return decoded(nearest(rows, on), on)
