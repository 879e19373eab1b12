"""Which candidate each layer takes: the fastest plan within the bounds, then the smallest, then the most accurate.

Layers that could share a factor are a table more, of what they could be together and of a row for "each by itself",
and each of them has one row more, free of cost, for "together". Two rows of different tables that exclude each other
use up one unit each of a column of which there is one: that is all of the choice between the two, and the knapsack
stays what it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from edgepack.model.types import Array, Candidate
from edgepack.plan.knapsack import GAP, ROUNDING, Effort, least, meets, total_of

Quantity = Literal["loss", "size_bytes", "ram_bytes", "latency_s"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
_COUNTED: tuple[Quantity, ...] = ("size_bytes", "ram_bytes")

Step = tuple[Quantity, Callable[[float], float] | None, float]
"""What to minimise, the largest sum that counts as tied with the least (None: that alone), and the gap on instances too
large for a proof."""

_SIZE, _LATENCY = QUANTITIES.index("size_bytes"), QUANTITIES.index("latency_s")

ROUNDS = 10
"""Most exchange rates that are tried; two or three settle it."""

REFINING_GAP = 1e-3
"""The gap of a choice among tied plans: there the bounds leave the least room, and the finest answer takes minutes."""


@dataclass(frozen=True)
class Bounds:
    """The most that each sum over the layers may be; None where it does not matter.

    A bound that equals what some plan adds up to is met by that plan, in whatever order its figures are added.
    """

    loss: float | None = None
    size_bytes: float | None = None
    ram_bytes: float | None = None
    latency_s: float | None = None


@dataclass(frozen=True)
class Together:
    """What several layers could become together, in the place of a candidate of each.

    Attributes:
        members: two or more indices of layers, none of which is in another group.
        candidates: their figures are sums over the members.
    """

    members: tuple[int, ...]
    candidates: Sequence[Candidate]


@dataclass(frozen=True)
class Solution:
    """A plan.

    Attributes:
        chosen: the index of the candidate that each layer takes; behind them, of each group the index of what its
            members are together. It is the number of candidates for a layer that is together with others, and for a
            group whose members are each by itself.
        loss, size_bytes, ram_bytes, latency_s: sums over the layers.
    """

    chosen: tuple[int, ...]
    loss: float
    size_bytes: int
    ram_bytes: int
    latency_s: float


@dataclass(frozen=True)
class Infeasible:
    """No plan meets all bounds.

    Attributes:
        least: for every bounded quantity the least sum among the plans that meet the other bounds; None where none do.
        alone: bounds that no plan meets even if the others are dropped.
    """

    least: Mapping[Quantity, float | None]
    alone: tuple[Quantity, ...]


def solve(
    layers: Sequence[Sequence[Candidate]],
    bounds: Bounds,
    groups: Sequence[Together] = (),
    *,
    tie: float = 0.0,
    beside_s: float = 0.0,
) -> Solution | Infeasible:
    """Pick one candidate per layer: least latency; of the plans tied with it the fewest bytes; of these the least loss.

    A multiple-choice knapsack, solved by HiGHS. Up to `knapsack.PROVED_ROWS` candidates (of all layers together, equal
    layers counted once, those beaten in everything not at all) each of the three is proved the least. Above, the
    latency is within `knapsack.GAP` of it and the choice among the tied, those within that gap, within `REFINING_GAP`.

    Args:
        layers: the candidates of each layer.
        bounds: on the sums over the layers.
        groups: of layers, what they could be together.
        tie: plans up to this share slower than the fastest count as equally fast.
        beside_s: what an inference takes beside the layers: the share is one of the whole.

    Raises:
        ValueError: a layer without candidates; a figure or tie that is negative or not finite; a bound that is NaN.
    """
    if not 0.0 <= tie < math.inf:
        raise ValueError(f"tie is {tie}: expected a share, 0 or more")

    def tied(latency_s: float) -> float:
        return latency_s + tie * (latency_s + beside_s)

    steps: list[Step] = [("latency_s", tied, GAP), ("size_bytes", None, REFINING_GAP), ("loss", None, REFINING_GAP)]
    return _by_order(_tables(layers, groups), _limits(bounds), steps)


def balanced(
    layers: Sequence[Sequence[Candidate]],
    bounds: Bounds,
    groups: Sequence[Together] = (),
    *,
    beside_s: float = 0.0,
    beside_bytes: int = 0,
) -> Solution | Infeasible:
    """Pick one candidate per layer: least latency × bytes of the whole, within the bounds.

    At a plan of latency T and bytes B the product falls where t / T + b / B does (the mean of two ratios is no less
    than the root of their product), and that is a sum over the layers: it is minimised, and the new plan's T and B take
    the place of the old ones until nothing changes. It begins at the better of about the fastest and the smallest plan,
    and ends at one that no other beats at its own exchange rate.

    Args:
        layers: the candidates of each layer.
        bounds: on the sums over the layers.
        groups: of layers, what they could be together.
        beside_s: what an inference takes beside the layers.
        beside_bytes: what the file holds beside them.

    Raises:
        ValueError: as `solve`.
    """
    tables = _tables(layers, groups)
    limits = _by_column(_limits(bounds), tables)

    def product(plan: Solution) -> float:
        return (plan.latency_s + beside_s) * (plan.size_bytes + beside_bytes)

    ends: tuple[Step, ...] = (("latency_s", None, REFINING_GAP), ("size_bytes", None, REFINING_GAP))
    corners = [_by_order(tables, _limits(bounds), [end]) for end in ends]
    plans = [corner for corner in corners if isinstance(corner, Solution)]
    if not plans or not tables:
        return corners[0]
    found = min(plans, key=product)
    for _ in range(ROUNDS):
        latency_s, size_bytes = found.latency_s + beside_s, found.size_bytes + beside_bytes
        if not latency_s or not size_bytes:
            return found
        rates = [table[:, _LATENCY] / latency_s + table[:, _SIZE] / size_bytes for table in tables]
        weighed = [np.column_stack([table, rate]) for table, rate in zip(tables, rates, strict=True)]
        better = least(weighed, tables[0].shape[1], limits, effort=Effort(start=found.chosen))
        if better is None:
            return found
        new = _solution(tables, better.picks)
        if product(new) >= product(found) * (1.0 - ROUNDING):
            return found
        found = new
    return found


def least_loss(
    layers: Sequence[Sequence[Candidate]], bounds: Bounds, groups: Sequence[Together] = (), *, gap: float = GAP
) -> Solution | Infeasible:
    """Pick one candidate per layer: least loss within the bounds; of the plans tied with it the fastest.

    Args:
        layers: the candidates of each layer.
        bounds: on the sums over the layers.
        groups: of layers, what they could be together.
        gap: the share by which the loss may miss the least where there are too many candidates for a proof.

    Raises:
        ValueError: as `solve`.
    """
    steps: list[Step] = [("loss", None, gap), ("latency_s", None, REFINING_GAP)]
    return _by_order(_tables(layers, groups), _limits(bounds), steps)


def smallest(
    layers: Sequence[Sequence[Candidate]], bounds: Bounds, groups: Sequence[Together] = ()
) -> Solution | Infeasible:
    """Pick one candidate per layer: fewest bytes within the bounds; of the plans tied with it the fastest.

    Exact as in `solve`.

    Args:
        layers: the candidates of each layer.
        bounds: on the sums over the layers.
        groups: of layers, what they could be together.

    Raises:
        ValueError: as `solve`.
    """
    steps: list[Step] = [("size_bytes", None, GAP), ("latency_s", None, REFINING_GAP), ("loss", None, REFINING_GAP)]
    return _by_order(_tables(layers, groups), _limits(bounds), steps)


def _by_order(
    tables: Sequence[Array],
    limits: Mapping[Quantity, float],
    steps: Sequence[Step],
) -> Solution | Infeasible:
    """Minimise one quantity after the other, each held at what is tied with its least while the next is minimised."""
    if not tables:
        return _infeasible(tables, limits) if any(limit < 0.0 for limit in limits.values()) else _solution(tables, ())
    held = dict(limits)
    near: Sequence[Array] | None = None
    best: tuple[int, ...] | None = None
    proved = True
    for quantity, tied, gap in steps:
        column, limit = QUANTITIES.index(quantity), held.pop(quantity, math.inf)
        found = least(
            tables, column, _by_column(held, tables), tied=tied, allowed=near, effort=Effort(gap, best, proved)
        )
        if best is None:
            if found is None or not meets(tables, found.picks, column, limit):
                return _infeasible(tables, limits)
            best, proved = found.picks, found.gap == 0.0
        if found is None:  # the search gave up where `best` shows that there is an answer
            continue
        if found.total <= total_of(tables, best, column):
            best = found.picks
        near = found.near if near is None else [a & b for a, b in zip(near, found.near, strict=True)]
        total = total_of(tables, best, column)
        most = max(total * (1 + found.gap), total if tied is None else tied(total))
        held[quantity] = min(limit, _limit(quantity, most))
    return _solution(tables, best or ())


def _infeasible(tables: Sequence[Array], limits: Mapping[Quantity, float]) -> Solution | Infeasible:
    """What stands in the way; or the plan after all, if one of these searches comes upon it where the first gave up."""
    figures: dict[Quantity, float | None] = {}
    for quantity, limit in limits.items():
        others = {q: v for q, v in limits.items() if q != quantity}
        column = QUANTITIES.index(quantity)
        if not tables:
            figures[quantity] = 0.0 if all(v >= 0.0 for v in others.values()) else None
            continue
        found = least(tables, column, _by_column(others, tables))
        if found is not None and meets(tables, found.picks, column, limit):
            return _solution(tables, found.picks)
        figures[quantity] = None if found is None else found.total
    return Infeasible(figures, tuple(q for q, limit in limits.items() if not _reached(tables, q, limit)))


def _reached(tables: Sequence[Array], quantity: Quantity, limit: float) -> bool:
    """Whether some plan is within a limit, if there were no others."""
    if not tables:
        return limit >= 0.0
    column = QUANTITIES.index(quantity)
    found = least(tables, column, _by_column({}, tables))
    return found is not None and meets(tables, found.picks, column, limit)


def _solution(tables: Sequence[Array], picks: tuple[int, ...]) -> Solution:
    picks = _settled(tables, picks)
    loss, size, ram, latency = (total_of(tables, picks, column) for column in range(len(QUANTITIES)))
    return Solution(picks, loss, round(size), round(ram), latency)


def _settled(tables: Sequence[Array], picks: tuple[int, ...]) -> tuple[int, ...]:
    """With nothing of its own for a layer that is together with others: the search may leave what costs nothing in the
    sums that it looks at."""
    settled = list(picks)
    for column in range(len(QUANTITIES), tables[0].shape[1] if tables else 0):
        member, group = (index for index, table in enumerate(tables) if table[-1, column])
        if not tables[group][settled[group], column]:
            settled[member] = len(tables[member]) - 1
    return tuple(settled)


def _by_column(limits: Mapping[Quantity, float], tables: Sequence[Array]) -> dict[int, float]:
    """With the columns behind the quantities, of which there is one unit each."""
    found = {QUANTITIES.index(quantity): limit for quantity, limit in limits.items()}
    return found | dict.fromkeys(range(len(QUANTITIES), tables[0].shape[1] if tables else 0), 1.0)


def _limits(bounds: Bounds) -> dict[Quantity, float]:
    limits: dict[Quantity, float] = {}
    for quantity in QUANTITIES:
        bound = getattr(bounds, quantity)
        if bound is None or bound == math.inf:
            continue
        if not math.isfinite(bound):
            raise ValueError(f"the bound on {quantity} is {bound}: expected a number or None")
        limits[quantity] = _limit(quantity, float(bound))
    return limits


def _limit(quantity: Quantity, bound: float) -> float:
    return float(math.floor(bound)) if quantity in _COUNTED else bound + abs(bound) * ROUNDING


def _tables(layers: Sequence[Sequence[Candidate]], groups: Sequence[Together]) -> list[Array]:
    """Per layer and group (candidates, 4 + n) float64: the columns in the order of `QUANTITIES`, then one for each
    member of a group, with a 1 in the two last rows that exclude each other: "together" of the member, and "each by
    itself" of the group."""
    tables = _figures([*layers, *(group.candidates for group in groups)])
    pairs = [(member, len(layers) + number) for number, group in enumerate(groups) for member in group.members]
    grouped = {table for pair in pairs for table in pair}
    wide = []
    for index, table in enumerate(tables):
        wide.append(np.zeros((len(table) + (index in grouped), len(QUANTITIES) + len(pairs))))
        wide[-1][: len(table), : len(QUANTITIES)] = table
    for column, pair in enumerate(pairs, start=len(QUANTITIES)):
        for index in pair:
            wide[index][-1, column] = 1.0
    return wide


def _figures(layers: Sequence[Sequence[Candidate]]) -> list[Array]:
    """Per layer (candidates, 4) float64, the columns in the order of `QUANTITIES`."""
    tables = []
    for index, candidates in enumerate(layers):
        if not candidates:
            raise ValueError(f"layer {index} has no candidates: expected at least one")
        table = np.array([[getattr(c, quantity) for quantity in QUANTITIES] for c in candidates], dtype=np.float64)
        wrong = ~(np.isfinite(table) & (table >= 0.0))
        if wrong.any():
            row, column = (int(i) for i in np.argwhere(wrong)[0])
            found = f"{QUANTITIES[column]} of candidate {row} of layer {index} is {table[row, column]}"
            raise ValueError(f"{found}: expected a number, 0 or more")
        tables.append(table)
    return tables
