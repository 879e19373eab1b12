"""Statistics of layer inputs in one streaming pass: fp64 mean and second moment, and ranges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from edgepack.types import Array, Moments

FLUSH_ROWS = 1024


class _Accumulator:
    """Sums of one value's rows. Rows are gathered first: one large matmul instead of many rank-one updates."""

    def __init__(self, features: int) -> None:
        self.count = 0
        self.total = np.zeros(features)
        self.second = np.zeros((features, features))
        self.low, self.high = np.inf, -np.inf
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
        if not self.waiting:
            return
        rows = np.concatenate(self.waiting).astype(np.float64)
        self.waiting, self.rows_waiting = [], 0
        self.count += len(rows)
        self.total += rows.sum(axis=0)
        self.second += rows.T @ rows
        self.low, self.high = min(self.low, float(rows.min())), max(self.high, float(rows.max()))

    def finish(self) -> Moments:
        self.flush()
        return Moments(self.count, self.total / self.count, self.second / self.count, self.low, self.high)


def moments(stream: Iterable[Mapping[str, Array]]) -> dict[str, Moments]:
    """Moments of every value in `stream`, which yields {value name: rows (N, features)}, N ≥ 0.

    A value of which no row was ever seen (a branch not taken) is left out.
    """
    sums: dict[str, _Accumulator] = {}
    for observed in stream:
        for name, rows in observed.items():
            if name not in sums:
                sums[name] = _Accumulator(rows.shape[1])
            sums[name].add(rows)
    return {name: total.finish() for name, total in sums.items() if total.count or total.waiting}


def ranges(stream: Iterable[Mapping[str, Array]]) -> dict[str, tuple[float, float]]:
    """Smallest and largest element of every value in `stream`."""
    seen: dict[str, tuple[float, float]] = {}
    for observed in stream:
        for name, rows in observed.items():
            if rows.size:
                low, high = seen.get(name, (np.inf, -np.inf))
                seen[name] = (min(low, float(rows.min())), max(high, float(rows.max())))
    return seen
