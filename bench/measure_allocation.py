"""Rules that pick ranks and schemes against the exact plan: predicted loss at the same bound on predicted latency."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from allocation.allocators import ALLOCATORS, LEAST_GAP, Layers, latency, loss, within
from cases import Case, cases

from edgepack import BuildOptions, load_target
from edgepack.model.scheme import INT8_BITS
from edgepack.pipeline.prepare import prepared
from edgepack.workspace import Cache, silent

NAMES = ("mnist", "lstm", "minilm", "magika")
TARGET = "rpi4"
SHARES = (0.25, 0.5, 0.75)
"""How far the bounds lie from the fastest plan to the dense int8 plan."""
FLOAT_NOISE = 2 * LEAST_GAP


def measure(*, quick: bool = False, names: Sequence[str] = NAMES) -> dict[str, Any]:
    """Rows of every model, format and bound. All of it is arithmetic on counts: there is nothing to shorten."""
    del quick
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        found = [measure_case(case) for case in cases(names, Path(folder))]
    return {"target": TARGET, "rules": list(ALLOCATORS), "rows": [row for rows in found for row in rows]}


def measure_case(case: Case) -> list[dict[str, Any]]:
    """Rows of one model: of each format and bound."""
    options = BuildOptions(model=case.model, target=load_target(TARGET), data=case.data, max_drop=case.max_drop)
    with prepared(options, Cache(), silent) as ready:
        return [
            {"model": case.name, "format": fmt, "cost_source": ready.estimates.source_name(fmt), **row}
            for fmt, all_candidates in ready.all_candidates.items()
            for row in compared([layer_candidates.candidates for layer_candidates in all_candidates])
        ]


def compared(layers: Layers) -> list[dict[str, Any]]:
    """A row per bound with the loss of every rule's plan, None where a rule finds none.

    Raises:
        ValueError: a plan is over the bound, or loses less than the exact one.
    """
    fastest = sum(min(one.latency_s for one in layer) for layer in layers)
    dense = dense_int8_s(layers)
    size = {"layers": len(layers), "candidates": sum(map(len, layers))}
    return [{**size, "share": share, **_at(layers, fastest + share * (dense - fastest))} for share in SHARES]


def dense_int8_s(layers: Layers) -> float:
    """Seconds of the fastest plan that has every layer dense, in one scheme of 8 bits.

    Raises:
        ValueError: there is no scheme that all layers have.
    """
    found = []
    for scheme in {one.scheme for layer in layers for one in layer if one.scheme.bits == INT8_BITS}:
        dense = [
            [one.latency_s for one in layer if one.structure.is_dense and one.scheme == scheme] for layer in layers
        ]
        if all(dense):
            found.append(sum(min(own) for own in dense))
    if not found:
        raise ValueError("no scheme of 8 bits in which every layer can be dense")
    return min(found)


def _at(layers: Layers, bound: float) -> dict[str, Any]:
    plans = {rule: allocate(layers, bound) for rule, allocate in ALLOCATORS.items()}
    best = plans["exact"]
    losses = {rule: None if picks is None else loss(layers, picks) for rule, picks in plans.items()}
    for rule, picks in plans.items():
        if picks is None:
            continue
        if best is None or loss(layers, picks) < loss(layers, best) * (1 - FLOAT_NOISE):
            raise ValueError(f"{rule} loses {losses[rule]} within {bound} s, the exact plan {losses['exact']}")
        if not within(layers, picks, bound):
            raise ValueError(f"{rule} takes {latency(layers, picks)} s, the bound is {bound} s")
    return {"latency_s": bound, "loss": losses}
