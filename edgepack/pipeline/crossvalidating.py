"""`--rank cv`: the smallest share of the weights that cross-validation on labelled data cannot tell from the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from edgepack import metrics
from edgepack.backends.onnx.schemes import FP32
from edgepack.cache import Cache, digest
from edgepack.data import Samples
from edgepack.errors import UsageError
from edgepack.executor import Workers, one_thread
from edgepack.factorize import factorizer
from edgepack.inference import THREADS, load, predict
from edgepack.model.kinds import views_of
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import FileScheme
from edgepack.pipeline.attempt import Guard
from edgepack.pipeline.onnx_files import OnnxFiles
from edgepack.pipeline.opened import Opened
from edgepack.pipeline.output_gradients import weighed
from edgepack.pipeline.statistics import decompose
from edgepack.plan.candidates import shared_rank
from edgepack.plan.crossval import RankScores, rank_by_cv, stratified_folds
from edgepack.progress import Progress
from edgepack.types import Array, Spectrum

FOLDS = 5
PERCENTS = (2, 3, 4, 6, 8, 11, 16, 23, 32, 45)
"""Shares of each layer's weights to choose from."""

VERSION = 2
_Ranks = Mapping[str, int]


@dataclass(frozen=True)
class CrossValidation:
    """What was found; the ranks of the table are per cent of each layer's weights.

    Attributes:
        percent: the chosen share.
        best: the share of the highest mean accuracy.
        threshold: that mean minus its standard error.
        samples: that the folds share; each was held out once.
    """

    percent: int
    best: int
    threshold: float
    folds: int
    samples: int
    table: tuple[RankScores, ...]

    @property
    def share(self) -> float:
        """As `--rank` takes it."""
        return self.percent / 100


@dataclass
class _Folds:
    """One model and its labelled samples.

    Attributes:
        key: digest of the model, the samples, the method and the seed.
    """

    opened: Opened
    samples: Samples
    labels: Array
    method: str
    seed: int
    key: str
    onnx: OnnxFiles
    cache: Cache
    work: Path
    crew: Workers
    progress: Progress

    @cached_property
    def rows(self) -> list[tuple[Array, Array]]:
        return stratified_folds(self.labels, FOLDS, self.seed)

    @cached_property
    def spectra(self) -> dict[int, Sequence[Spectrum]]:
        """Of the folds that were needed so far; a score that is known needs none."""
        return {}

    def accuracy(self, ranks: _Ranks, fold: int) -> float:
        """In percent, on the held-out samples of a fold, with float factors made from its other samples."""
        held_out = self.samples.take(self.rows[fold][1])
        path = self.work / "fold.onnx"
        self.onnx.write(self._factors(ranks, fold), FileScheme.of(FP32), path)
        answers = predict(load(path, "onnx", threads=THREADS), held_out)
        path.unlink()
        return float(metrics.accuracy(answers, answers, self.labels[self.rows[fold][1]]).mean())

    def _factors(self, ranks: _Ranks, fold: int) -> dict[str, Replacement]:
        if fold not in self.spectra:
            self.spectra[fold] = self._decomposed(fold)
        algorithm = factorizer(self.method)
        with one_thread():  # the same bits on machines with more cores
            return {
                layer.name: algorithm.factors(layer, spectrum, ranks[layer.name])
                for layer, spectrum in zip(views_of(self.opened.layers), self.spectra[fold], strict=True)
                if layer.name in ranks
            }

    def _decomposed(self, fold: int) -> Sequence[Spectrum]:
        seen = self.samples.take(self.rows[fold][0])
        key = digest("fold", self.key, fold, FOLDS)
        opened, cache, progress = self.opened, self.cache, self.progress
        _, gradients = weighed(opened, self.method, seen, "accuracy", self.seed, key, cache, self.work, progress)
        return decompose(
            *(opened.model, views_of(opened.layers), self.method, seen, key, cache, progress, self.crew),
            gradients=gradients,
        )[0]


def check_labels(samples: Samples | None, guard: Guard) -> Array:
    """(N,) int64, the class of every calibration sample.

    Raises:
        UsageError: there are none, or they are no classes of the model.
    """
    if samples is None or samples.labels is None:
        raise UsageError(
            "--rank cv needs labelled data: 'y' in the .npz", hint="add the class numbers as `y`, or use --rank auto"
        )
    metrics.accuracy(guard.reference, guard.reference, guard.samples.labels)
    if samples.labels.ndim != 1:
        raise UsageError(
            f"--rank cv needs one class number per sample, the labels 'y' have the shape {samples.labels.shape}",
            hint="use --rank auto",
        )
    return samples.labels.astype(np.int64)


def cross_validated(
    opened: Opened,
    samples: Samples,
    labels: Array,
    method: str,
    seed: int,
    key: str,
    onnx: OnnxFiles,
    cache: Cache,
    work: Path,
    crew: Workers,
    progress: Progress,
) -> CrossValidation:
    """The smallest share within one standard error of the best, over stratified folds of the calibration samples.

    One share is taken for all layers. Every score is kept in the cache as soon as it is there: an interrupt loses only
    what runs.

    Args:
        labels: of `check_labels`.
        key: digest of the model and the samples.
        onnx: writes the float files that are scored.

    Raises:
        UsageError: no layer can be factored at any of the shares.
        DataError: a class has too few samples for the folds.
    """
    plans = _plans(opened.layers)
    if not plans:
        raise UsageError("--rank cv: no layer is large enough to be factored", hint="use --rank auto")
    key = digest("cross-validation", VERSION, key, labels, method, seed)
    folds = _Folds(opened, samples, labels, method, seed, key, onnx, cache, work, crew, progress)
    asked = 0

    def score(percent: int, fold: int) -> float:
        nonlocal asked
        progress("cross-validate the rank", asked, len(plans) * FOLDS)
        asked += 1
        ranks = plans[percent]
        entry = digest("cross-validation", key, FOLDS, fold, sorted(ranks.items()))
        return float(cache.record("folds", entry, lambda: folds.accuracy(ranks, fold)))

    found = rank_by_cv(score, list(plans), FOLDS, bounds=(0.0, 100.0))
    return CrossValidation(found.rank, found.best, found.threshold, FOLDS, len(samples), found.table)


def _plans(layers: Sequence[Layer]) -> dict[int, _Ranks]:
    """Per cent → rank by layer name, for the shares that differ and factor something."""
    plans: dict[int, _Ranks] = {}
    for percent in PERCENTS:
        asked = {layer.name: shared_rank(layer.out_features, layer.in_features, percent / 100) for layer in layers}
        ranks = {name: rank for name, rank in asked.items() if isinstance(rank, int)}
        if ranks and ranks not in plans.values():
            plans[percent] = ranks
    return plans
