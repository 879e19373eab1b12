"""Statistics of layer inputs in one streaming pass: fp64 mean and second moment, and ranges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from edgepack.errors import DataError
from edgepack.model.types import Array, Moments

FLUSH_ROWS = 1024


@dataclass
class Sums:
    """Sums over some of a value's rows; what `merged` adds up and turns into `Moments`.

    Attributes:
        count: rows.
        total: (features,) float64.
        second: (features, features) float64, Σ x xᵀ, the upper triangle only.
        low, high: (features,).
        squared_ranges: Σ (max(row, 0) − min(row, 0))².
    """

    count: int
    total: Array
    second: Array
    low: Array
    high: Array
    squared_ranges: float


class _Accumulator:
    """Sums of one value's rows. Rows are gathered first: one large matmul instead of many rank-one updates."""

    def __init__(self, name: str, features: int) -> None:
        self.name = name
        self.sums = Sums(
            count=0,
            total=np.zeros(features),
            second=np.zeros((features, features), order="F"),
            low=np.full(features, np.inf),
            high=np.full(features, -np.inf),
            squared_ranges=0.0,
        )
        self.waiting: list[Array] = []
        self.rows_waiting = 0

    def add(self, rows: Array) -> None:
        if not len(rows):
            return
        self.waiting.append(rows)
        self.rows_waiting += len(rows)
        if self.rows_waiting >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        from scipy.linalg.blas import dsyrk

        if not self.waiting:
            return
        rows = np.concatenate(self.waiting).astype(np.float64)
        _check_finite(self.name, rows)
        self.waiting, self.rows_waiting = [], 0
        sums = self.sums
        sums.count += len(rows)
        sums.total += rows.sum(axis=0)
        # Half the multiplications of rows.T @ rows, added in place.
        sums.second = dsyrk(1.0, rows.T, beta=1.0, c=sums.second, overwrite_c=True)
        sums.low, sums.high = np.minimum(sums.low, rows.min(axis=0)), np.maximum(sums.high, rows.max(axis=0))
        spans = rows.max(axis=1).clip(min=0.0) - rows.min(axis=1).clip(max=0.0)
        sums.squared_ranges += float(np.square(spans).sum())


def _check_finite(name: str, rows: Array) -> None:
    if not np.isfinite(rows).all():
        where = name.replace("\n", ", ")
        raise DataError(
            f"{where}: NaN or Inf flows through the model at this place on the calibration data",
            hint="look for an overflow in the model or in the inputs",
        )


def moments(stream: Iterable[Mapping[str, Array]]) -> dict[str, Moments]:
    """Moments of every value in `stream`, which yields {value name: rows (N, features)}, N ≥ 0.

    A value of which no row was ever seen (a branch not taken) is left out.

    Raises:
        DataError: a value holds NaN or infinity.
    """
    return merged([sums(stream)])


def sums(stream: Iterable[Mapping[str, Array]]) -> dict[str, Sums]:
    """Sums of every value in one part of a stream; a value of which no row was seen is left out.

    Raises:
        DataError: a value holds NaN or infinity.
    """
    found: dict[str, _Accumulator] = {}
    for observed in stream:
        for name, rows in observed.items():
            if name not in found:
                found[name] = _Accumulator(name, rows.shape[1])
            found[name].add(rows)
    for accumulator in found.values():
        accumulator.flush()
    return {name: accumulator.sums for name, accumulator in found.items() if accumulator.sums.count}


def merged(parts: Iterable[Mapping[str, Sums]]) -> dict[str, Moments]:
    """Moments of a stream from the sums of its parts, which are used up.

    Float addition depends on its order: the same parts in the same order give the same bits, other cuts do not.
    """
    totals: dict[str, Sums] = {}
    for part in parts:
        for name, sums in part.items():
            if name in totals:
                _add(totals[name], sums)
            else:
                totals[name] = sums
    return {name: _finished(total) for name, total in totals.items()}


def _add(total: Sums, part: Sums) -> None:
    total.count += part.count
    total.total += part.total
    total.second += part.second
    total.low, total.high = np.minimum(total.low, part.low), np.maximum(total.high, part.high)
    total.squared_ranges += part.squared_ranges


def _finished(sums: Sums) -> Moments:
    mean, second = sums.total / sums.count, sums.second
    second /= sums.count
    for index in range(len(mean)):
        second[index + 1 :, index] = second[index, index + 1 :]
    # Rounding would leave a feature that never varied a variance of 1e-17; made exact, it has none.
    still = sums.low == sums.high
    mean[still] = sums.low[still]
    second[still] = np.outer(mean[still], mean)
    second[:, still] = second[still].T
    row_range = float(np.sqrt(sums.squared_ranges / sums.count))
    return Moments(sums.count, mean, second, float(sums.low.min()), float(sums.high.max()), row_range)


def ranges(stream: Iterable[Mapping[str, Array]]) -> dict[str, tuple[float, float]]:
    """Smallest and largest element of every value in `stream`.

    Raises:
        DataError: a value holds NaN or infinity.
    """
    seen: dict[str, tuple[float, float]] = {}
    for observed in stream:
        for name, rows in observed.items():
            if rows.size:
                _check_finite(name, rows)
                low, high = seen.get(name, (np.inf, -np.inf))
                seen[name] = (min(low, float(rows.min())), max(high, float(rows.max())))
    return seen
