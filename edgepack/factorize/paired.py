"""Moments of a layer's inputs in the compressed model together with its outputs in the original one, streamed in fp64.

Row for row: x̃ is what the layer is fed once everything before it is compressed, y what the original layer answers at
the same place to the same sample, bias included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgepack.errors import DataError
from edgepack.types import Array, Moments

FLUSH_ROWS = 1024


@dataclass(frozen=True)
class PairedMoments:
    """Second-order statistics of pairs (x̃, y).

    Attributes:
        inputs: of x̃.
        mean: (out,) float64, E[y].
        power: (out,) float64, E[y²].
        cross: (out, in) float64, E[y x̃ᵀ].
    """

    inputs: Moments
    mean: Array
    power: Array
    cross: Array

    @property
    def cross_covariance(self) -> Array:
        """(out, in) float64: E[(y − E y)(x̃ − E x̃)ᵀ]."""
        return np.asarray(self.cross - np.outer(self.mean, self.inputs.mean))


class PairedRows:
    """Moments of pairs that come in chunks: rows are gathered first, for one large product instead of many small ones.

    Attributes:
        count: rows so far.
    """

    def __init__(self, name: str) -> None:
        """`name` is the layer's, for messages."""
        self.name = name
        self.count = 0
        self._parts: list[PairedMoments] = []
        self._waiting: list[tuple[Array, Array]] = []
        self._rows = 0

    def add(self, x: Array, y: Array) -> None:
        """A chunk of rows x̃ (N, in), y (N, out), N ≥ 0.

        Raises:
            DataError: the rows do not match, or one holds NaN or infinity.
        """
        _check(self.name, x, y)
        if not len(x):
            return
        self._waiting.append((x, y))
        self._rows += len(x)
        self.count += len(x)
        if self._rows >= FLUSH_ROWS:
            # Two at a time: no more than two sets of matrices are ever held.
            self._parts, self._waiting, self._rows = [pooled([*self._parts, _of(self._waiting)])], [], 0

    def moments(self) -> PairedMoments:
        """Of all rows.

        Raises:
            DataError: there are none.
        """
        parts = [*self._parts, *([_of(self._waiting)] if self._waiting else [])]
        if not parts:
            raise DataError(f"{self.name}: no rows to refit on", hint="was the layer reached on the calibration data?")
        return pooled(parts)


def paired_moments(name: str, stream: Iterable[tuple[Array, Array]]) -> PairedMoments:
    """One pass over chunks of rows (x̃ (N, in), y (N, out)), N ≥ 0.

    Args:
        name: the layer's, for messages.
        stream: chunks of matching rows.

    Raises:
        DataError: there are no rows, the rows of a chunk do not match, or one holds NaN or infinity.
    """
    rows = PairedRows(name)
    for x, y in stream:
        rows.add(x, y)
    return rows.moments()


def pooled(parts: Sequence[PairedMoments]) -> PairedMoments:
    """The moments of all rows together, from those of disjoint parts (at least one)."""
    if len(parts) == 1:
        return parts[0]
    counts = np.array([part.inputs.count for part in parts], np.float64)
    shares = counts / counts.sum()
    return PairedMoments(
        pooled_inputs([part.inputs for part in parts]),
        _weighted(shares, [part.mean for part in parts]),
        _weighted(shares, [part.power for part in parts]),
        _weighted(shares, [part.cross for part in parts]),
    )


def pooled_inputs(parts: Sequence[Moments]) -> Moments:
    """`Moments` of all rows together, from those of disjoint parts (at least one)."""
    counts = np.array([part.count for part in parts], np.float64)
    shares = counts / counts.sum()
    return Moments(
        count=sum(part.count for part in parts),
        mean=_weighted(shares, [part.mean for part in parts]),
        second=_weighted(shares, [part.second for part in parts]),
        low=min(part.low for part in parts),
        high=max(part.high for part in parts),
        row_range=float(np.sqrt(shares @ np.square([part.row_range for part in parts]))),
    )


def _weighted(shares: Array, arrays: Sequence[Array]) -> Array:
    total = shares[0] * arrays[0]
    for share, array in zip(shares[1:], arrays[1:], strict=True):
        total += share * array
    return np.asarray(total)


def _of(chunks: Sequence[tuple[Array, Array]]) -> PairedMoments:
    x = np.concatenate([chunk for chunk, _ in chunks]).astype(np.float64)
    y = np.concatenate([chunk for _, chunk in chunks]).astype(np.float64)
    count = len(x)
    spans = x.max(axis=1).clip(min=0.0) - x.min(axis=1).clip(max=0.0)
    inputs = Moments(
        count=count,
        mean=x.mean(axis=0),
        second=x.T @ x / count,
        low=float(x.min()),
        high=float(x.max()),
        row_range=float(np.sqrt(np.square(spans).mean())),
    )
    return PairedMoments(inputs, y.mean(axis=0), np.square(y).mean(axis=0), y.T @ x / count)


def _check(name: str, x: Array, y: Array) -> None:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise DataError(
            f"{name}: inputs {x.shape} and outputs {y.shape} do not match, expected (rows, in), (rows, out)"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError(
            f"{name}: NaN or Inf flows through the model at this place on the calibration data",
            hint="look for an overflow in the model or in the inputs",
        )
