"""Statistics of layer inputs in one streaming pass: fp64 mean and second moment, and ranges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from edgepack.errors import DataError
from edgepack.types import Array, Moments

FLUSH_ROWS = 1024


class _Accumulator:
    """Sums of one value's rows. Rows are gathered first: one large matmul instead of many rank-one updates."""

    def __init__(self, name: str, features: int) -> None:
        self.name = name
        self.count = 0
        self.total = np.zeros(features)
        self.second = np.zeros((features, features), order="F")  # upper triangle only, until `finish`
        self.low, self.high = np.full(features, np.inf), np.full(features, -np.inf)
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
        self.count += len(rows)
        self.total += rows.sum(axis=0)
        # Half the multiplications of rows.T @ rows, added in place.
        self.second = dsyrk(1.0, rows.T, beta=1.0, c=self.second, overwrite_c=True)
        self.low, self.high = np.minimum(self.low, rows.min(axis=0)), np.maximum(self.high, rows.max(axis=0))

    def finish(self) -> Moments:
        self.flush()
        mean, second = self.total / self.count, self.second
        second /= self.count
        for index in range(len(mean)):
            second[index + 1 :, index] = second[index, index + 1 :]
        # Rounding would leave a feature that never varied a variance of 1e-17; made exact, it has none.
        still = self.low == self.high
        mean[still] = self.low[still]
        second[still] = np.outer(mean[still], mean)
        second[:, still] = second[still].T
        return Moments(self.count, mean, second, float(self.low.min()), float(self.high.max()))


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
    sums: dict[str, _Accumulator] = {}
    for observed in stream:
        for name, rows in observed.items():
            if name not in sums:
                sums[name] = _Accumulator(name, rows.shape[1])
            sums[name].add(rows)
    return {name: total.finish() for name, total in sums.items() if total.count or total.waiting}


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
