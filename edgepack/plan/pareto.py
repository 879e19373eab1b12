"""Which candidates of a layer are worth keeping: those that no other beats in everything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgepack.types import Array, Candidate


def pareto(candidates: Sequence[Candidate]) -> tuple[int, ...]:
    """Indices, ascending, of the candidates that no other matches or beats in loss, file bytes, RAM and latency.

    Of several with equal figures the first is kept.
    """
    figures = [(c.loss, c.size_bytes, c.ram_bytes, c.latency_s) for c in candidates]
    return tuple(int(i) for i in undominated(np.array(figures, dtype=np.float64).reshape(-1, 4)))


def undominated(rows: Array) -> Array:
    """Indices, ascending, of the rows (k, d) that no other row matches or beats in every column; the first of equals.

    Sorted by their columns, a row can only be dominated by an earlier one (Kung, Luccio, Preparata, 1975).
    """
    order = np.lexsort((np.arange(len(rows)), *rows.T[::-1]))
    rest = rows[order]
    kept: list[int] = []
    while len(rest):
        kept.append(int(order[0]))
        open_ = (rest < rest[0]).any(axis=1)
        rest, order = rest[open_], order[open_]
    return np.sort(np.array(kept, dtype=np.intp))
