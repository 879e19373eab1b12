"""How long the exact plan takes on instances that are larger than any model here, three kinds of them."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from edgepack.backends.onnx.schemes import FP32
from edgepack.model.structure import DENSE
from edgepack.model.types import Candidate
from edgepack.plan.solve import Bounds, Solution, solve

LAYERS, CANDIDATES = 200, 60
SEEDS, QUICK_SEEDS = (3, 4, 5), (3,)
TIE = 0.01

Layers = Sequence[Sequence[Candidate]]


def measure_solver(*, quick: bool = False) -> dict[str, Any]:
    """Seconds of one solution: the median of instances that differ only in their seed, and the longest."""
    seeds = QUICK_SEEDS if quick else SEEDS
    rows = []
    for name, noise, equal in (("random", 1.0, False), ("identical", 0.1, True), ("strongly correlated", 1e-3, False)):
        taken = [seconds(instance(seed, noise, equal=equal)) for seed in seeds]
        rows.append({"instance": name, "seconds": round(median(taken), 4), "longest_s": round(max(taken), 4)})
    return {"layers": LAYERS, "candidates": CANDIDATES, "instances": len(seeds), "rows": rows}


def instance(seed: int, noise: float, *, equal: bool) -> Layers:
    """Layers whose candidates trade loss for time and size, by figures that `noise` blurs; or one layer many times."""
    draw = random.Random(seed)
    count = 1 if equal else LAYERS
    layers = [[_candidate(draw, noise) for _ in range(CANDIDATES)] for _ in range(count)]
    return layers * LAYERS if equal else layers


def _candidate(draw: random.Random, noise: float) -> Candidate:
    work = draw.random()
    loss, size, latency = (value * draw.uniform(1 - noise, 1 + noise) for value in (1 - work, work, work))
    return Candidate(FP32, DENSE, (), 1e-5 * loss, round(1e5 * size), round(1e5 * work), 1e-4 * latency)


def seconds(layers: Layers) -> float:
    """Time to solve for the fastest plan between the most accurate one's loss and the fastest one's.

    Raises:
        ValueError: there is no such plan.
    """
    accurate = [min(layer, key=lambda one: one.loss) for layer in layers]
    fastest = [min(layer, key=lambda one: one.latency_s) for layer in layers]
    low, high = (sum(one.loss for one in plan) for plan in (accurate, fastest))
    bounds = Bounds(loss=0.7 * low + 0.3 * high, size_bytes=sum(one.size_bytes for one in accurate))
    start = time.perf_counter()
    found = solve(layers, bounds, tie=TIE)
    taken = time.perf_counter() - start
    if not isinstance(found, Solution):
        raise ValueError(f"no plan within {bounds}: {found}")
    return taken
