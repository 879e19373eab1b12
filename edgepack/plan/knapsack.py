"""The multiple-choice knapsack: one row of each table, the least sum in one column, bounded sums in others.

Rows that cannot be part of an answer go first; equal tables become one block of integer counts, since HiGHS would
search all their permutations; what it answers is added up again, exactly.

It is solved by HiGHS on a core of its variables (Pisinger, 1995): those of small reduced cost in the linear relaxation.
Leaving the others out costs nothing once the answer is closer to the relaxation than the least reduced cost among them;
until it is, the core grows. Where there are so few answers that all of them can be added up, they are.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgepack.model.types import Array

if TYPE_CHECKING:
    from scipy.sparse import csr_array

PROVED_ROWS = 300
"""Up to this many rows, dominated ones not counted, the answer is proved the least."""

ENUMERATED = 1 << 16
"""Up to this many ways to pick, each is added up: faster than one relaxation."""

ROUNDING = 1e-12
"""Share by which sums of floats may differ from one order of adding to another."""

GAP = 1e-5
"""Above it the sum is within this share of the least: costs are measured less finely, and a proof can take hours."""

ROW_SCALE, OBJECTIVE_SCALE, HIGHS_TOLERANCE = 1e3, 1e5, 1e-6
RETRIES = 5

PROVING_NODES, NODES, REFINING_NODES = 100_000, 1000, 10
"""Where HiGHS gives up: on small instances, on large ones, and on large ones with an answer at hand."""

CORE_PER_BLOCK, REFINING_CORE = 4, 2
GROWTH = 4
SLACK = 1e-3
"""Added to what reduced costs are compared with: they are only known to 1e-7 of a unit."""

_LOCK = threading.Lock()


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
    if math.prod(int(fit.sum()) for fit in fits) <= ENUMERATED:
        return _enumerated(tables, fits, objective, limits, tied)
    blocks = _blocks(tables, fits, objective, limits)
    programme = _programme(tables, blocks)
    relaxed = relax(programme)
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


def _enumerated(
    tables: Sequence[Array],
    fits: Sequence[Array],
    objective: int,
    limits: Mapping[int, float],
    tied: Callable[[float], float] | None,
) -> Least | None:
    """The answer among all of them, one axis per table that leaves a choice; sums near a limit are added up exactly."""
    rows = [np.flatnonzero(fit) for fit in fits]
    axes = [index for index, kept in enumerate(rows) if len(kept) > 1]
    picks = [int(kept[0]) for kept in rows]

    def sums(column: int) -> Array:
        settled = math.fsum(float(tables[i][picks[i], column]) for i in range(len(tables)) if i not in axes)
        return functools.reduce(np.add.outer, [tables[i][rows[i], column] for i in axes], np.array(settled))

    costs = sums(objective)
    possible = np.ones(costs.shape, bool)
    for column, limit in limits.items():
        possible &= sums(column) <= limit * (1 + ROUNDING)
    while possible.any():
        first = np.unravel_index(np.where(possible, costs, np.inf).argmin(), costs.shape)
        for axis, at in zip(axes, first, strict=True):
            picks[axis] = int(rows[axis][at])
        if all(meets(tables, picks, column, limit) for column, limit in limits.items()):
            break
        possible[first] = False
    else:
        return None
    total = total_of(tables, picks, objective)
    within = possible & (costs <= (total if tied is None else tied(total)) * (1 + ROUNDING))
    near = [fit.copy() for fit in fits]
    for axis, index in enumerate(axes):
        near[index][rows[index]] = within.any(axis=tuple(other for other in range(len(axes)) if other != axis))
    return Least(tuple(picks), total, 0.0, tuple(near))


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


def _programme(tables: Sequence[Array], blocks: _Blocks) -> Programme:
    firsts = [members[0] for members in blocks.members]
    scaled = np.concatenate([blocks.scaled(tables[i][blocks.kept[i]], i) for i in firsts])
    return Programme(
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
    programme: Programme,
    relaxed: Relaxation,
    gap: float,
    nodes: int,
    limits: Mapping[int, float],
) -> tuple[tuple[int, ...], float] | None:
    """Solve, and add up exactly: HiGHS takes a hair above a limit as met. Such a limit is drawn in, ever further."""
    for _ in range(RETRIES):
        answer = solve(programme, relaxed, gap, nodes, persist=nodes > REFINING_NODES)
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
    tables: Sequence[Array], blocks: _Blocks, relaxed: Relaxation, over: float, picks: Sequence[int]
) -> tuple[Array, ...]:
    """Rows whose reduced cost is at most `over`: any answer with another one is further above the relaxation."""
    near: list[Array] = [np.zeros(0, bool)] * len(tables)
    for block, members in enumerate(blocks.members):
        for index in members:
            scaled = blocks.scaled(tables[index], index)
            reduced = scaled[:, 0] - scaled[:, 1:] @ relaxed.rows - relaxed.blocks[block]
            near[index] = blocks.fits[index] & (reduced <= over + SLACK)
            near[index][picks[index]] = True
    return tuple(near)


@dataclass(frozen=True)
class Programme:
    """Minimise objective · x under rows · x ≤ limits; the x ≥ 0 of a block are integers and add up to its count.

    HiGHS counts a limit as met up to 1e-6 and a gap as closed at 1e-6: the units should make that little.

    Attributes:
        block: (n,) the block of each variable.
        counts: (blocks,).
        objective: (n,) not negative.
        offset: a constant part of the objective, which only the relative gap takes note of.
        rows: (m, n).
        limits: (m,).
    """

    block: Array
    counts: Array
    objective: Array
    offset: float
    rows: Array
    limits: Array


@dataclass(frozen=True)
class Relaxation:
    """The linear relaxation, solved.

    Attributes:
        least: of the objective.
        used: (n,) bool, the variables that are not 0.
        rows: (m,) the dual price of each row.
        blocks: (blocks,) and of each block.
    """

    least: float
    used: Array
    rows: Array
    blocks: Array


def relax(p: Programme) -> Relaxation | None:
    """Solve the linear relaxation; None where even that cannot meet the limits."""
    from scipy.optimize import linprog

    with no_native_output():
        found = linprog(
            p.objective,
            A_ub=p.rows if len(p.rows) else None,
            b_ub=p.limits if len(p.rows) else None,
            A_eq=_membership(p.block, len(p.counts)),
            b_eq=p.counts,
            method="highs",
        )
    if found.status == 2:
        return None
    if found.status != 0:  # numerically lost: without prices no variable is left out
        nothing = np.zeros(len(p.objective), bool)
        return Relaxation(-math.inf, nothing, np.zeros(len(p.rows)), np.zeros(len(p.counts)))
    return Relaxation(
        float(found.fun), found.x > 0.0, np.asarray(found.ineqlin.marginals), np.asarray(found.eqlin.marginals)
    )


def solve(p: Programme, relaxed: Relaxation, gap: float, nodes: int, *, persist: bool) -> tuple[Array, float] | None:
    """Solve the programme to within `gap` of objective + offset.

    Args:
        p: the programme.
        relaxed: its relaxation, or that of a programme with wider limits.
        gap: a share.
        nodes: the search ends after so many: a count, unlike a time, gives the same answer twice.
        persist: start from a wider core, and search a wider one yet where the nodes ran out without any answer.

    Returns:
        (n,) whole numbers and the gap reached; None where no answer was found.
    """
    reduced = p.objective - relaxed.rows @ p.rows - relaxed.blocks[p.block]
    order = np.argsort(np.where(relaxed.used, -np.inf, reduced), kind="stable")
    size = max((CORE_PER_BLOCK if persist else REFINING_CORE) * len(p.counts), int(relaxed.used.sum()))
    if not math.isfinite(relaxed.least):
        size = len(order)
    while True:
        x, finished = _branch_and_bound(p, np.sort(order[:size]), gap, nodes)
        grown = GROWTH * size
        if x is not None:
            total = float(p.objective @ x)
            missing = total - relaxed.least
            useful = int(np.searchsorted(reduced[order[size:]], missing + SLACK, side="right"))
            if missing <= gap * (total + p.offset) or (finished and not useful):
                return x, gap
            if not finished:
                return x, missing / (total + p.offset)
            grown = min(grown, size + useful)
        elif size >= len(order) or not (finished or persist):
            return None
        size = grown


def _branch_and_bound(p: Programme, core: Array, gap: float, nodes: int) -> tuple[Array | None, bool]:
    """Solve over the variables `core` alone, the others being 0; the flag tells whether the search came to its end."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, hstack, vstack

    # One more column, fixed at 1, carries the offset, so that HiGHS' relative gap is that of the whole sum.
    matrix = vstack([_membership(p.block[core], len(p.counts)), csr_array(p.rows[:, core])])
    matrix = hstack([matrix, csr_array((matrix.shape[0], 1))]).tocsr()
    lows = np.concatenate([p.counts, np.full(len(p.limits), -np.inf)])
    with no_native_output():
        found = milp(
            np.append(p.objective[core], p.offset),
            integrality=np.append(np.ones(len(core)), 0),
            bounds=Bounds(np.append(np.zeros(len(core)), 1), np.append(p.counts[p.block[core]], 1)),
            constraints=LinearConstraint(matrix, lows, np.concatenate([p.counts, p.limits])),
            options={"mip_rel_gap": gap, "node_limit": nodes},
        )
    finished = found.status in (0, 2)  # the node limit has no status of its own
    if found.x is None:
        return None, finished
    x = np.zeros(len(p.objective))
    x[core] = np.round(found.x[:-1])
    return x, finished


def _membership(block: Array, blocks: int) -> csr_array:
    """Sparse (blocks, n): 1 where the variable is of the block."""
    from scipy.sparse import csr_array

    matrix: csr_array = csr_array((np.ones(len(block)), (block, np.arange(len(block)))), shape=(blocks, len(block)))
    return matrix


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


@contextmanager
def no_native_output() -> Iterator[None]:
    """Send what C and C++ code prints to descriptor 1 nowhere while the block runs; one block at a time.

    HiGHS 1.12 prints a line for every solution that it repairs, whatever its log level (ERGO-Code/HiGHS#2783).
    """
    with _LOCK:
        _flush()
        try:
            kept = os.dup(1)
        except OSError:  # the process has no standard output
            yield
            return
        sink = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(sink, 1)
            yield
        finally:
            _flush()
            os.dup2(kept, 1)
            os.close(kept)
            os.close(sink)


def _flush() -> None:
    """Write out what Python and the C library have buffered, so that it goes where it was meant to go."""
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)
