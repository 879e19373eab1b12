"""Moments of the inputs of all layers: the samples in parts that do not depend on who works on them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from edgepack.calibrate import Sums, merged, sums
from edgepack.data import Samples, feeds
from edgepack.executor import Workers, map_tasks, one_thread, spreads
from edgepack.pipeline.observe import Observation, Watched, joined
from edgepack.types import Array, Moments
from edgepack.workspace import Progress

if TYPE_CHECKING:
    import onnx_ir as ir

T = TypeVar("T")

PART_ROWS = 2048
"""Rows per part, roughly: the sums of a part are as large as those of the whole, and must be worth their way."""
MAX_PARTS = 16
ELEMENT_FLOPS = 300
"""What it takes to make, convert and look at one element of a layer's input, beside its products with the others."""
THREADS = 1
"""Of the runtime: its sums must not depend on the cores of the machine."""


def observe(
    model: ir.Model, names: Sequence[str], samples: Samples, progress: Progress, executor: Workers | None = None
) -> dict[str, Moments]:
    """Moments by layer name; layers whose input was never seen are absent.

    Raises:
        DataError: a value in the model is not finite.
        DeviceError: the workers failed.
    """
    observation = Observation(model, names, threads=THREADS)
    cut = _cut(observation, samples)
    watched = observation.packed() if len(cut.parts) > 1 and spreads(executor, cut.costs) else None
    if watched is None:
        runs = itertools.count()
        with one_thread():
            by_key = merged(sums(_counted(observation, part, runs, cut.runs, progress)) for part in cut.parts)
    else:
        by_key = merged(_in_order(_by_workers(executor, watched, cut, progress)))
    return {name: by_key[joined(key)] for name, key in observation.keys.items() if joined(key) in by_key}


@dataclass(frozen=True)
class _Cut:
    """Samples in parts of whole runs of the model.

    Attributes:
        costs: of each part, in floating-point operations.
        runs: of the model, over all parts.
    """

    parts: tuple[Samples, ...]
    costs: tuple[float, ...]
    runs: int


def _cut(observation: Observation, samples: Samples) -> _Cut:
    """How to cut follows from the model and the data alone: other parts would give other last bits."""
    feed, per_run = next(feeds(samples, observation.inputs))
    rows = observation.row_counts(feed)
    features = {joined(seen.outputs): seen.in_features for seen in observation.observed}
    runs = -(-len(samples) // per_run)
    products = sum(count * features[name] ** 2 for name, count in rows.items())
    entries = sum(features[name] ** 2 for name in rows)
    wanted = min(MAX_PARTS, runs * products // (PART_ROWS * max(entries, 1)))
    size = per_run * -(-runs // max(wanted, 1))
    bounds = range(0, len(samples), size)
    parts = tuple(samples.take(np.arange(start, min(start + size, len(samples)))) for start in bounds)
    elements = sum(count * features[name] for name, count in rows.items())
    per_sample = (products + ELEMENT_FLOPS * elements) / per_run
    return _Cut(parts, tuple(per_sample * len(part) for part in parts), runs)


def _counted(
    observation: Observation, part: Samples, runs: Iterator[int], total: int, progress: Progress
) -> Iterator[Mapping[str, Array]]:
    for rows in observation.rows(part):
        progress("calibrate", next(runs), total)
        yield rows


def _by_workers(
    executor: Workers | None, watched: Watched, cut: _Cut, progress: Progress
) -> Iterator[tuple[int, dict[str, Sums]]]:
    tasks = [(part,) for part in cut.parts]
    for done, found in enumerate(map_tasks(executor, _sums, tasks, cut.costs, shared=[watched])):
        progress("calibrate", done, len(tasks))
        yield found


def _sums(watched: Watched, part: Samples) -> dict[str, Sums]:
    """A task: may run on another machine."""
    return sums(watched.rows(part, threads=THREADS))


def _in_order(found: Iterator[tuple[int, T]]) -> Iterator[T]:
    early: dict[int, T] = {}
    wanted = 0
    for index, value in found:
        early[index] = value
        while wanted in early:
            yield early.pop(wanted)
            wanted += 1
