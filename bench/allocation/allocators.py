"""Rules that pick one candidate per layer so that the plan takes at most `latency_s`: four from the field, one exact.

Each takes the candidates of every layer and the bound, and returns the index picked in each layer, or None where its
rule reaches no plan that meets the bound. Costs and losses are the same for all, so what differs is the rule alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from edgepack.model.scheme import INT8_BITS
from edgepack.model.types import Candidate
from edgepack.plan.solve import Bounds, Solution, least_loss

Layers = Sequence[Sequence[Candidate]]
Picks = tuple[int, ...]
Allocator = Callable[[Layers, float], Picks | None]

DENSE = 0
"""Stands for the rank of a layer that is left whole."""

BISECTIONS = 100
LEAST_GAP = 1e-7
ROUNDING = 1e-12
"""Share of the bound by which a sum may pass it: what another order of adding makes of the same figures."""


def latency(layers: Layers, picks: Sequence[int]) -> float:
    """Seconds of a plan."""
    return math.fsum(layer[pick].latency_s for layer, pick in zip(layers, picks, strict=True))


def loss(layers: Layers, picks: Sequence[int]) -> float:
    """Predicted loss of a plan."""
    return math.fsum(layer[pick].loss for layer, pick in zip(layers, picks, strict=True))


def within(layers: Layers, picks: Sequence[int], latency_s: float) -> bool:
    """Whether a plan meets the bound."""
    return latency(layers, picks) <= latency_s * (1 + ROUNDING)


def uniform(layers: Layers, latency_s: float) -> Picks | None:
    """One share of rank for all layers, the largest that meets the bound; dense layers if those already do.

    A layer's ranks count as shares of the largest among its candidates. Each layer takes its largest rank that is at
    most the share, else its smallest, in the int8 scheme that is fastest there.
    """
    ranks = [_by_rank(layer) for layer in layers]
    shares = {rank / max(found) for found in ranks for rank in found if rank}
    plans = (tuple(_at_share(found, share) for found in ranks) for share in [math.inf, *sorted(shares, reverse=True)])
    return next((picks for picks in plans if within(layers, picks, latency_s)), None)


def _at_share(ranks: Mapping[int, int], share: float) -> int:
    largest = max(ranks)
    if DENSE in ranks and (largest == DENSE or share > 1.0):
        return ranks[DENSE]
    fitting = [rank for rank in ranks if rank != DENSE and rank / largest <= share]
    return ranks[max(fitting) if fitting else min(rank for rank in ranks if rank != DENSE)]


def energy(layers: Layers, latency_s: float) -> Picks | None:
    """One threshold of loss for all layers, the lowest that meets the bound.

    Each layer takes its smallest rank that loses at most the threshold, in the int8 scheme that is fastest there, and
    stays dense where none does. The thresholds tried are all that change a layer.
    """
    ranks = [_by_rank(layer) for layer in layers]
    losses = {layer[pick].loss for layer, found in zip(layers, ranks, strict=True) for pick in found.values()}
    for threshold in [-math.inf, *sorted(losses)]:
        picks = tuple(_at_loss(layer, found, threshold) for layer, found in zip(layers, ranks, strict=True))
        if within(layers, picks, latency_s):
            return picks
    return None


def _at_loss(layer: Sequence[Candidate], ranks: Mapping[int, int], threshold: float) -> int:
    good = [rank for rank, pick in ranks.items() if rank != DENSE and layer[pick].loss <= threshold]
    if good:
        return ranks[min(good)]
    return ranks[DENSE] if DENSE in ranks else ranks[max(ranks)]


def _by_rank(layer: Sequence[Candidate]) -> dict[int, int]:
    """Rank (`DENSE` for none) → the fastest candidate with 8-bit weights, or the fastest of all where there is none."""
    found: dict[int, int] = {}
    for index, candidate in enumerate(layer):
        rank = candidate.structure.rank or DENSE
        if rank not in found or _preference(candidate) < _preference(layer[found[rank]]):
            found[rank] = index
    return found


def _preference(candidate: Candidate) -> tuple[bool, float, float]:
    return candidate.scheme.bits != INT8_BITS, candidate.latency_s, candidate.loss


def greedy(layers: Layers, latency_s: float) -> Picks | None:
    """From the most accurate dense plan, always the step that saves most latency per loss added, until the bound holds.

    A greedy selection like AIMET's, but on predicted losses and measured latencies, and over all schemes.
    """
    picks = [_start(layer) for layer in layers]
    while not within(layers, picks, latency_s):
        steps = (
            (_ratio(layer[picks[i]], candidate), i, index)
            for i, layer in enumerate(layers)
            for index, candidate in enumerate(layer)
            if candidate.latency_s < layer[picks[i]].latency_s
        )
        best = max(steps, default=None, key=lambda step: step[0])
        if best is None:
            return None
        _, i, index = best
        picks[i] = index
    return tuple(picks)


def _start(layer: Sequence[Candidate]) -> int:
    return min(range(len(layer)), key=lambda index: (not layer[index].structure.is_dense, layer[index].loss))


def _ratio(now: Candidate, then: Candidate) -> tuple[float, float]:
    """Seconds saved per loss added, then seconds saved: a step that adds none comes before all others."""
    added, saved = then.loss - now.loss, now.latency_s - then.latency_s
    return (saved / added if added > 0.0 else math.inf), saved


def lagrangian(layers: Layers, latency_s: float) -> Picks | None:
    """Each layer minimises loss + price · latency by itself; the price is bisected to the lowest that meets the bound.

    Everett's method (1963): finds only plans on the convex hull.
    """
    best = _at_price(layers, math.inf)
    if not within(layers, best, latency_s):
        return None
    free = _at_price(layers, 0.0)
    if within(layers, free, latency_s):
        return free
    low, high = (math.log(price) for price in _price_range(layers))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        picks = _at_price(layers, math.exp(middle))
        if within(layers, picks, latency_s):
            high = middle
            best = min(best, picks, key=lambda found: loss(layers, found))
        else:
            low = middle
    return best


def _at_price(layers: Layers, price: float) -> Picks:
    def cost(candidate: Candidate) -> tuple[float, float, float]:
        paid = candidate.latency_s if math.isinf(price) else candidate.loss + price * candidate.latency_s
        return paid, candidate.loss, candidate.latency_s

    return tuple(min(range(len(layer)), key=lambda index: cost(layer[index])) for layer in layers)


def _price_range(layers: Layers) -> tuple[float, float]:
    """Below the first price no layer trades loss for latency, above the second each is at its fastest."""
    prices = []
    for layer in layers:
        losses, times = sorted({c.loss for c in layer}), sorted({c.latency_s for c in layer})
        if len(losses) > 1 and len(times) > 1:
            least_loss_step = min(b - a for a, b in pairwise(losses))
            least_time_step = min(b - a for a, b in pairwise(times))
            prices += [least_loss_step / (times[-1] - times[0]), (losses[-1] - losses[0]) / least_time_step]
    finite = [price for price in prices if 0.0 < price < math.inf] or [1.0]
    return min(finite) / 2, max(finite) * 2


def exact(layers: Layers, latency_s: float) -> Picks | None:
    """The least loss of all plans that meet the bound."""
    found = least_loss(layers, Bounds(latency_s=latency_s), gap=LEAST_GAP)
    return found.chosen if isinstance(found, Solution) else None


ALLOCATORS: Mapping[str, Allocator] = {
    "uniform": uniform,
    "energy": energy,
    "greedy": greedy,
    "lagrangian": lagrangian,
    "exact": exact,
}
