"""A multiple-choice integer programme, solved by HiGHS on a core of its variables.

The core (Pisinger, 1995) are the variables of small reduced cost in the linear relaxation. Leaving the others out costs
nothing once the answer is closer to the relaxation than the least reduced cost among them; until it is, the core grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.plan.quiet import no_native_output
from edgepack.types import Array

if TYPE_CHECKING:
    from scipy.sparse import csr_array

CORE_PER_BLOCK, REFINING_CORE = 4, 2
GROWTH = 4
SLACK = 1e-3
"""Added to what reduced costs are compared with: they are only known to 1e-7 of a unit."""


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
