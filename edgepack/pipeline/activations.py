"""What flows into every layer: moments of its input over the calibration data, and the covariances made from them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np

from edgepack.backends.backend import THREADS as RUN_THREADS
from edgepack.backends.observation import Observation, Watched, joined
from edgepack.data import Samples, example, feeds
from edgepack.errors import DataError, ModelError
from edgepack.factorize.shrinkage import FORMULAS, GRID, chosen
from edgepack.model.kinds import views_of
from edgepack.model.layer import View
from edgepack.model.model import Model
from edgepack.model.statistics import Sums, merged, sums
from edgepack.model.types import Array, Moments
from edgepack.natives import native
from edgepack.workers import map_tasks, one_thread, spreads
from edgepack.workspace import Keyed, Progress, Step, Workspace, arrays_store

T = TypeVar("T")

PART_ROWS = 2048
"""Rows per part, roughly: the sums of a part are as large as those of the whole, and must be worth their way."""
MAX_PARTS = 16
ELEMENT_FLOPS = 300
"""What it takes to make, convert and look at one element of a layer's input, beside its products with the others."""
THREADS = 1
"""Of the runtime: its sums must not depend on the cores of the machine."""

FEW = 2
"""Rows per input feature below which λ is chosen. On a layer of 784 inputs the choice takes 15 % off the held-out error
at rank 64 with 200 rows and 6 % with 1,000, next to nothing at rank 16 and below, and nothing with 4,000 rows."""
WIDEST = 1024
"""Inputs of the widest layer looked at: a choice takes dozens of decompositions, and the matrices of every part."""
PARTS = 4
FEWEST = 32
"""Samples: fewer tell nothing about a choice either."""


@dataclass(frozen=True)
class Subject:
    """A model and the samples that its layers are looked at with.

    Attributes:
        calibration: None where there are no data.
        key: digest of the two.
    """

    opened: Model
    calibration: Samples | None
    key: str

    @property
    def views(self) -> tuple[View, ...]:
        """The matrices of the layers."""
        return views_of(self.opened.layers)


class InputMoments(Protocol):
    """Where the moments of layers' inputs come from; `key` is a digest of all that they depend on."""

    @property
    def key(self) -> str:
        """Stands for the moments of all layers."""

    def of(self, name: str) -> Moments | None:
        """Moments of one layer; None where its input was never seen."""


@dataclass(frozen=True)
class GivenMoments:
    """Moments of the one layer that is asked for.

    Attributes:
        key: digest of all that they depend on.
    """

    key: str
    moments: Moments

    def of(self, name: str) -> Moments | None:
        """Moments of the layer."""
        return self.moments


@dataclass(frozen=True)
class Covariances:
    """Moments by view name: from the cache, or for all views by one pass over the data."""

    subject: Subject
    workspace: Workspace
    _unseen: set[str] = field(default_factory=set, repr=False, compare=False)

    @property
    def key(self) -> str:
        """Digest of the model and the data."""
        return self.subject.key

    def observe(self) -> Mapping[str, Moments]:
        """Moments of all views whose layer's input was seen, in one pass over the data.

        Raises:
            DataError: a value in the model is not finite.
            DeviceError: the workers failed.
        """
        model, samples = self.subject.opened, self.subject.calibration
        if samples is None:
            return {}
        names = [view.name for view in self.subject.views]
        seen = observe(model, names, samples, self.workspace)
        seen = with_shrinkage(model, samples, seen, self.workspace)
        for name, moments in seen.items():
            self.workspace.keep(MOMENTS, self._entry(name), moments)
        self._unseen.update(set(names) - set(seen))
        return seen

    def of(self, name: str) -> Moments | None:
        """Moments of one layer; None where its input was never seen.

        Always as they are stored, so that the bits are the same however the moments came about.
        """
        if self.subject.calibration is None:
            return None
        known = self.workspace.known(MOMENTS, self._entry(name))
        if known is None and name not in self._unseen:
            self.observe()
            known = self.workspace.known(MOMENTS, self._entry(name))
        return known

    def _entry(self, name: str) -> Keyed[Moments]:
        return Keyed([self.key, name])  # one pass observes all layers: it brings the moments along


def _packed(moments: Moments) -> dict[str, Array]:
    # The covariance, not the raw moment: in float32 a large mean would leave it no digits.
    shrinkage = np.nan if moments.shrinkage is None else moments.shrinkage
    spread = np.array([moments.count, moments.low, moments.high, moments.row_range, shrinkage])
    return {"mean": moments.mean, "covariance": moments.covariance.astype(np.float32), "spread": spread}


def _unpacked(arrays: Mapping[str, Array]) -> Moments:
    count, low, high, row_range, shrinkage = map(float, arrays["spread"])
    second = arrays["covariance"].astype(np.float64) + np.outer(arrays["mean"], arrays["mean"])
    kept = None if np.isnan(shrinkage) else shrinkage
    return Moments(int(count), arrays["mean"], second, low, high, row_range, kept)


def _as_seen(moments: Moments) -> Moments:
    return moments


MOMENTS: Step[Moments, Moments] = Step("moments", 3, _as_seen, arrays_store(_packed, _unpacked))
"""One layer's moments, as they are stored: the covariance in half the digits."""


def observe(model: Model, names: Sequence[str], samples: Samples, workspace: Workspace) -> dict[str, Moments]:
    """Moments by view name; those whose layer's input was never seen are absent.

    Raises:
        DataError: a value in the model is not finite.
        DeviceError: the workers failed.
    """
    observation = native(model.native).observe(model.content, names, threads=THREADS)
    cut = _cut(observation, samples)
    watched = observation.packed() if len(cut.parts) > 1 and spreads(workspace.workers, cut.costs) else None
    if watched is None:
        runs = itertools.count()
        with one_thread():
            by_key = merged(sums(_counted(observation, part, runs, cut.runs, workspace.progress)) for part in cut.parts)
    else:
        by_key = merged(_in_order(_by_workers(watched, cut, workspace)))
    return {name: by_key[joined(key)] for name, key in observation.keys.items() if joined(key) in by_key}


def row_counts(model: Model, samples: Samples | None, seed: int) -> dict[str, int] | None:
    """Vectors that one inference of an example multiplies, by view; one whose input cannot be watched is absent.

    None for a model that does not run on seeded inputs.

    Args:
        model: to be run once.
        samples: of its inputs, None for seeded values.
        seed: of these.

    Raises:
        ModelError: the model does not run on the samples.
    """
    names = [view.name for view in views_of(model.layers)]
    if not names:
        return {}
    try:
        observation = native(model.native).observe(model.content, names, threads=RUN_THREADS)
        counts = observation.row_counts(example(samples, model.inputs, seed))
    except ModelError:
        if samples is not None:
            raise
        return None
    return {name: counts[joined(key)] for name, key in observation.keys.items()}


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
    _, per_run = next(feeds(samples, observation.inputs))
    rows = {name: len(seen) for name, seen in next(observation.rows(samples.head(per_run))).items()}
    features = observation.features
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


def _by_workers(watched: Watched, cut: _Cut, workspace: Workspace) -> Iterator[tuple[int, dict[str, Sums]]]:
    tasks = [(part,) for part in cut.parts]
    for done, found in enumerate(map_tasks(workspace.workers, _sums, tasks, cut.costs, shared=[watched])):
        workspace.progress("calibrate", done, len(tasks))
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


def with_shrinkage(
    model: Model, samples: Samples, seen: Mapping[str, Moments], workspace: Workspace
) -> dict[str, Moments]:
    """The moments, those of few rows with the λ that does best on held-out samples.

    The samples are dealt in turns to the parts, which are then observed one by one: a second pass over data that are
    few.

    Args:
        samples: that the moments were made from.
        seen: moments by view name.

    Raises:
        DeviceError: the workers failed.
    """
    found = dict(seen)
    names = [name for name, moments in seen.items() if _few(moments)]
    if not names or len(samples) < FEWEST:
        return found
    layers = {view.name: view for view in views_of(model.layers)}
    names = [name for name in names if _ranks(layers[name])]
    deals = [samples.take(np.arange(part, len(samples), PARTS)) for part in range(PARTS)]
    parts = [observe(model, names, deal, workspace) for deal in deals]
    known = [name for name in names if all(name in part for part in parts)]
    held = [_HeldOut(layers[name], tuple(part[name] for part in parts)) for name in known]
    for name, value in zip(known, workspace.map(SHRINKAGE, held, "choose shrinkage"), strict=True):
        found[name] = replace(found[name], shrinkage=value)
    return found


@dataclass(frozen=True)
class _HeldOut:
    """One layer, and the moments of every part of the samples."""

    layer: View
    parts: tuple[Moments, ...]


def _few(moments: Moments) -> bool:
    features = len(moments.mean)
    return features <= WIDEST and moments.count < FEW * features and float(moments.variance.sum()) > 0


def _ranks(layer: View) -> tuple[int, ...]:
    side = min(layer.weight.shape)
    return tuple(sorted({rank for rank in (side // 16, side // 8, side // 4) if rank}))


def _choice(held: _HeldOut) -> float | None:
    try:
        return chosen(held.layer, held.parts, _ranks(held.layer)).value
    except DataError:  # its output never varies in a part: nothing to choose by
        return None


def _choice_cost(held: _HeldOut) -> float:
    """Floating-point operations: a decomposition for each candidate and part, and the products before it."""
    m, n = held.layer.out_features, held.layer.in_features
    return PARTS * (4.0 * m * n * (m + n) + 10.0 * (len(GRID) + len(FORMULAS)) * min(m, n) ** 3)


SHRINKAGE: Step[_HeldOut, float | None] = Step("shrinkage", 1, _choice, None, _choice_cost)
"""Not kept by itself: it is part of the moments."""


def first_feeds(opened: Model, calibration: Samples, samples: int) -> Iterator[Mapping[str, Array]]:
    """Inputs of the first runs of the model."""
    for feed, _ in feeds(calibration.head(samples), opened.inputs):
        yield feed
