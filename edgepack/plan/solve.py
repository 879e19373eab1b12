"""Which candidate each layer takes: the fastest plan within the bounds, then the smallest, then the most accurate."""

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
class Solution:
    """A plan: the index of the candidate that each layer takes, and the sums over the layers."""

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
    layers: Sequence[Sequence[Candidate]], bounds: Bounds, *, tie: float = 0.0, beside_s: float = 0.0
) -> Solution | Infeasible:
    """Pick one candidate per layer: least latency; of the plans tied with it the fewest bytes; of these the least loss.

    A multiple-choice knapsack, solved by HiGHS. Up to `knapsack.PROVED_ROWS` candidates (of all layers together, equal
    layers counted once, those beaten in everything not at all) each of the three is proved the least. Above, the
    latency is within `knapsack.GAP` of it and the choice among the tied, those within that gap, within `REFINING_GAP`.

    Args:
        layers: the candidates of each layer.
        bounds: on the sums over the layers.
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
    return _by_order(_tables(layers), _limits(bounds), steps)


def balanced(
    layers: Sequence[Sequence[Candidate]], bounds: Bounds, *, beside_s: float = 0.0, beside_bytes: int = 0
) -> Solution | Infeasible:
    """Pick one candidate per layer: least latency × bytes of the whole, within the bounds.

    At a plan of latency T and bytes B the product falls where t / T + b / B does (the mean of two ratios is no less
    than the root of their product), and that is a sum over the layers: it is minimised, and the new plan's T and B take
    the place of the old ones until nothing changes. It begins at the better of the fastest and the smallest plan, and
    ends at one that no other beats at its own exchange rate.

    Args:
        layers: the candidates of each layer.
        bounds: on the sums over the layers.
        beside_s: what an inference takes beside the layers.
        beside_bytes: what the file holds beside them.

    Raises:
        ValueError: as `solve`.
    """
    tables, limits = _tables(layers), _by_column(_limits(bounds))

    def product(plan: Solution) -> float:
        return (plan.latency_s + beside_s) * (plan.size_bytes + beside_bytes)

    corners = [solve(layers, bounds), smallest(layers, bounds)]
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
        better = least(weighed, len(QUANTITIES), limits, effort=Effort(start=found.chosen))
        if better is None:
            return found
        new = _solution(tables, better.picks)
        if product(new) >= product(found) * (1.0 - ROUNDING):
            return found
        found = new
    return found


def least_loss(layers: Sequence[Sequence[Candidate]], bounds: Bounds, *, gap: float = GAP) -> Solution | Infeasible:
    """Pick one candidate per layer: least loss within the bounds; of the plans tied with it the fastest.

    Args:
        layers: the candidates of each layer.
        bounds: on the sums over the layers.
        gap: the share by which the loss may miss the least where there are too many candidates for a proof.

    Raises:
        ValueError: as `solve`.
    """
    steps: list[Step] = [("loss", None, gap), ("latency_s", None, REFINING_GAP)]
    return _by_order(_tables(layers), _limits(bounds), steps)


def smallest(layers: Sequence[Sequence[Candidate]], bounds: Bounds) -> Solution | Infeasible:
    """Pick one candidate per layer: fewest bytes within the bounds; of the plans tied with it the fastest.

    Exact as in `solve`.

    Args:
        layers: the candidates of each layer.
        bounds: on the sums over the layers.

    Raises:
        ValueError: as `solve`.
    """
    steps: list[Step] = [("size_bytes", None, GAP), ("latency_s", None, REFINING_GAP), ("loss", None, REFINING_GAP)]
    return _by_order(_tables(layers), _limits(bounds), steps)


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
        found = least(tables, column, _by_column(held), tied=tied, allowed=near, effort=Effort(gap, best, proved))
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
        found = least(tables, column, _by_column(others))
        if found is not None and meets(tables, found.picks, column, limit):
            return _solution(tables, found.picks)
        figures[quantity] = None if found is None else found.total
    lows = {q: [float(t[:, QUANTITIES.index(q)].min()) for t in tables] for q in limits}
    return Infeasible(figures, tuple(q for q, limit in limits.items() if math.fsum([*lows[q], -limit]) > 0.0))


def _solution(tables: Sequence[Array], picks: tuple[int, ...]) -> Solution:
    loss, size, ram, latency = (total_of(tables, picks, column) for column in range(len(QUANTITIES)))
    return Solution(picks, loss, round(size), round(ram), latency)


def _by_column(limits: Mapping[Quantity, float]) -> dict[int, float]:
    return {QUANTITIES.index(quantity): limit for quantity, limit in limits.items()}


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


def _tables(layers: Sequence[Sequence[Candidate]]) -> list[Array]:
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
