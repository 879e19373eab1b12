"""The multiple-choice knapsack: one row of each table, the least sum in one column, bounded sums in others.

Rows that cannot be part of an answer go first; equal tables become one block of integer counts, since HiGHS would
search all their permutations; what it answers is added up again, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgepack.plan import highs
from edgepack.plan.pareto import undominated
from edgepack.types import Array

PROVED_ROWS = 300
"""Up to this many rows, dominated ones not counted, the answer is proved the least."""

GAP = 1e-5
"""Above it the sum is within this share of the least: costs are measured less finely, and a proof can take hours."""

ROW_SCALE, OBJECTIVE_SCALE, HIGHS_TOLERANCE = 1e3, 1e5, 1e-6
RETRIES = 5

PROVING_NODES, NODES, REFINING_NODES = 100_000, 1000, 10
"""Where HiGHS gives up: on small instances, on large ones, and on large ones with an answer at hand."""


@dataclass(frozen=True)
class Least:
    """An answer.

    Attributes:
        picks: the row chosen of each table.
        total: its sum in the objective's column.
        gap: the share of the total by which it may miss the least; 0 where proved.
        near: per table (rows,) bool, False for rows that are in no answer tied with the total, or within the gap of it.
    """

    picks: tuple[int, ...]
    total: float
    gap: float
    near: tuple[Array, ...]


@dataclass(frozen=True)
class _Blocks:
    """What is left of the tables, in the programme's units.

    Attributes:
        fits: per table (rows,) bool: the rows that fit in.
        kept: per table the rows that fit and that no other of them beats.
        members: per block the tables that are equal in what is kept.
        columns: the objective's, then the limited ones'.
        lows: (tables, len(columns)) the least of each table; it is taken off, so that a row is what it costs on top.
        units: (len(columns),).
    """

    fits: Sequence[Array]
    kept: Sequence[Array]
    members: Sequence[Sequence[int]]
    columns: tuple[int, ...]
    lows: Array
    units: Array

    def scaled(self, table: Array, index: int) -> Array:
        """(rows, len(columns)): table `index` in the programme's units."""
        return np.asarray((table[:, self.columns] - self.lows[index]) * self.units)


@dataclass(frozen=True)
class Effort:
    """How good an answer has to be.

    Attributes:
        gap: the share of the sum by which it may miss the least above `PROVED_ROWS`.
        start: an answer at hand, kept where it is good enough.
        prove: whether the answer is proved the least on small instances.
    """

    gap: float = GAP
    start: tuple[int, ...] | None = None
    prove: bool = True


def least(
    tables: Sequence[Array],
    objective: int,
    limits: Mapping[int, float],
    *,
    tied: Callable[[float], float] | None = None,
    allowed: Sequence[Array] | None = None,
    effort: Effort | None = None,
) -> Least | None:
    """Pick one row of each table so that the sum of column `objective` is least.

    Args:
        tables: (rows, columns) float64 each, finite and not negative; at least one.
        objective: a column that has no limit.
        limits: column → the most that its sum may be.
        tied: the largest sum that counts as the least one; only that one itself where None. For `Least.near`.
        allowed: per table (rows,) bool: the rows that may be picked; all where None.
        effort: how good an answer has to be.

    Returns:
        None where nothing was found within the limits: a proof on small instances, but on large ones the search ends
        after `NODES` nodes.
    """
    effort = effort or Effort()
    fits = _fitting(tables, limits, allowed)
    if fits is None:
        return None
    blocks = _blocks(tables, fits, objective, limits)
    programme = _programme(tables, blocks)
    relaxed = highs.relax(programme)
    if relaxed is None:
        return None
    start, gap = effort.start, effort.gap
    nodes = NODES if start is None else REFINING_NODES
    if effort.prove and len(programme.block) <= PROVED_ROWS:
        gap, nodes = 0.0, PROVING_NODES
    at_hand = math.inf if start is None else total_of(tables, start, objective)
    missing = (at_hand - math.fsum(blocks.lows[:, 0])) * float(blocks.units[0]) - relaxed.least
    if start is not None and missing <= gap * at_hand * blocks.units[0]:
        picks = start
    else:
        answer = _picks(tables, blocks, programme, relaxed, gap, nodes, limits)
        if answer is None:
            return None
        picks, gap = answer
    total = total_of(tables, picks, objective)
    most = max((1 + gap) * total, total if tied is None else tied(total))
    over = (most - math.fsum(blocks.lows[:, 0])) * blocks.units[0] - relaxed.least
    return Least(picks, total, gap, _near(tables, blocks, relaxed, over, picks))


def total_of(tables: Sequence[Array], picks: Sequence[int], column: int) -> float:
    """The sum of what was picked in a column, rounded once."""
    return math.fsum(float(table[pick, column]) for table, pick in zip(tables, picks, strict=True))


def _fitting(
    tables: Sequence[Array], limits: Mapping[int, float], allowed: Sequence[Array] | None
) -> list[Array] | None:
    """Per table the rows that fit together with the least of every other table; None where nothing fits."""
    fits = [np.ones(len(t), bool) if allowed is None else allowed[i].copy() for i, t in enumerate(tables)]
    shrunk = True
    while shrunk:
        shrunk = False
        for column, limit in limits.items():
            lows = [float(t[f, column].min()) if f.any() else math.inf for t, f in zip(tables, fits, strict=True)]
            spare = -math.inf if math.inf in lows else math.fsum([limit, *(-low for low in lows)])
            if spare < 0.0:
                return None
            for table, fit, low in zip(tables, fits, lows, strict=True):
                over = fit & (table[:, column] - low > spare)
                shrunk |= bool(over.any())
                fit &= ~over
    return fits


def _blocks(tables: Sequence[Array], fits: Sequence[Array], objective: int, limits: Mapping[int, float]) -> _Blocks:
    columns = (objective, *limits)
    kept = []
    equal: dict[bytes, list[int]] = {}
    for index, (table, fit) in enumerate(zip(tables, fits, strict=True)):
        rows = np.flatnonzero(fit)
        rows = rows[undominated(table[rows][:, columns])]
        kept.append(rows)
        equal.setdefault(table[rows][:, columns].tobytes(), []).append(index)
    lows = np.array([t[rows][:, columns].min(axis=0) for t, rows in zip(tables, kept, strict=True)])
    span = max(float((t[rows, objective] - low[0]).max()) for t, rows, low in zip(tables, kept, lows, strict=True))
    units = [OBJECTIVE_SCALE / span if span > 0.0 else 1.0]
    for position, limit in enumerate(limits.values(), start=1):
        spare = math.fsum([limit, *-lows[:, position]])
        units.append(ROW_SCALE / spare if spare > 0.0 else 0.0)  # 0: each table has only its least left
    return _Blocks(fits, kept, list(equal.values()), columns, lows, np.array(units))


def _programme(tables: Sequence[Array], blocks: _Blocks) -> highs.Programme:
    firsts = [members[0] for members in blocks.members]
    scaled = np.concatenate([blocks.scaled(tables[i][blocks.kept[i]], i) for i in firsts])
    return highs.Programme(
        block=np.repeat(np.arange(len(firsts)), [len(blocks.kept[i]) for i in firsts]),
        counts=np.array([len(members) for members in blocks.members], dtype=np.float64),
        objective=scaled[:, 0],
        offset=math.fsum(blocks.lows[:, 0]) * float(blocks.units[0]),
        rows=scaled[:, 1:].T,
        limits=np.full(len(blocks.columns) - 1, ROW_SCALE),
    )


def _picks(
    tables: Sequence[Array],
    blocks: _Blocks,
    programme: highs.Programme,
    relaxed: highs.Relaxation,
    gap: float,
    nodes: int,
    limits: Mapping[int, float],
) -> tuple[tuple[int, ...], float] | None:
    """Solve, and add up exactly: HiGHS takes a hair above a limit as met. Such a limit is drawn in, ever further."""
    for _ in range(RETRIES):
        answer = highs.solve(programme, relaxed, gap, nodes, persist=nodes > REFINING_NODES)
        if answer is None:
            return None
        x, reached = answer
        picks = [0] * len(tables)
        for block, members in enumerate(blocks.members):
            counts = x[programme.block == block].astype(int)
            for index, position in zip(members, np.repeat(np.arange(len(counts)), counts), strict=True):
                picks[index] = int(blocks.kept[index][position])
        over = [not meets(tables, picks, column, limit) for column, limit in limits.items()]
        if not any(over):
            return tuple(picks), reached
        hair = np.maximum(programme.rows @ x - programme.limits, HIGHS_TOLERANCE)
        programme = replace(programme, limits=programme.limits - np.where(over, 10 * hair, 0.0))
    return None


def meets(tables: Sequence[Array], picks: Sequence[int], column: int, limit: float) -> bool:
    """Whether the exact sum of what was picked in a column is at most the limit."""
    return math.fsum([*(float(t[p, column]) for t, p in zip(tables, picks, strict=True)), -limit]) <= 0.0


def _near(
    tables: Sequence[Array], blocks: _Blocks, relaxed: highs.Relaxation, over: float, picks: Sequence[int]
) -> tuple[Array, ...]:
    """Rows whose reduced cost is at most `over`: any answer with another one is further above the relaxation."""
    near: list[Array] = [np.zeros(0, bool)] * len(tables)
    for block, members in enumerate(blocks.members):
        for index in members:
            scaled = blocks.scaled(tables[index], index)
            reduced = scaled[:, 0] - scaled[:, 1:] @ relaxed.rows - relaxed.blocks[block]
            near[index] = blocks.fits[index] & (reduced <= over + highs.SLACK)
            near[index][picks[index]] = True
    return tuple(near)
