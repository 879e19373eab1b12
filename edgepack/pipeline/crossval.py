"""`--rank cv`: the smallest share of the weights that cross-validation on labelled data cannot tell from the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from edgepack.backends.backend import THREADS
from edgepack.backends.runtime import predict
from edgepack.data import Samples
from edgepack.errors import UsageError
from edgepack.methods.registry import factorizer
from edgepack.metrics.classes import accuracy, layout, truth
from edgepack.model.kinds import kind_of, view_name
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.structure import Structure
from edgepack.model.types import Array, Spectrum
from edgepack.natives import native
from edgepack.pipeline.activations import Subject
from edgepack.pipeline.decompositions import decompose
from edgepack.pipeline.evaluate import EvaluationSet
from edgepack.pipeline.gradients import weighed
from edgepack.plan.candidates import AskedRank
from edgepack.plan.crossval import RankScores, rank_by_cv, stratified_folds
from edgepack.workers import one_thread
from edgepack.workspace import Keyed, Step, Workspace, digest

FOLDS = 5
PERCENTS = (2, 3, 4, 6, 8, 11, 16, 23, 32, 45)
"""Shares of each layer's weights to choose from."""

_Ways = Mapping[str, Structure]
"""By layer name, of the layers that are factored."""


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


@dataclass(frozen=True)
class Labelled:
    """A model, samples that it is looked at with, and their classes.

    Attributes:
        labels: of `check_labels`.
        method: the factorizer.
    """

    subject: Subject
    samples: Samples
    labels: Array
    method: str


@dataclass(frozen=True)
class _Folds:
    """Stratified folds of labelled samples.

    Attributes:
        key: digest of the model, the samples, the method and the seed.
    """

    labelled: Labelled
    key: str
    workspace: Workspace

    @cached_property
    def rows(self) -> list[tuple[Array, Array]]:
        return stratified_folds(self.labelled.labels, FOLDS, self.workspace.seed)

    @cached_property
    def spectra(self) -> dict[int, Sequence[Spectrum]]:
        """Of the folds that were needed so far; a score that is known needs none."""
        return {}

    def factors(self, ways: _Ways, fold: int) -> dict[str, Replacement]:
        """Float factors made from the samples that the fold does not hold out."""
        if fold not in self.spectra:
            self.spectra[fold] = self._decomposed(fold)
        algorithm, subject = factorizer(self.labelled.method), self.labelled.subject
        views = {view.name: (view, one) for view, one in zip(subject.views, self.spectra[fold], strict=True)}
        found = {}
        with one_thread():  # the same bits on machines with more cores
            for layer in subject.opened.layers:
                if (way := ways.get(layer.name)) is not None:
                    parts = kind_of(layer).parts(layer, way)
                    made = {
                        name: algorithm.factors(*views[view_name(layer.name, name)], part.ranks[0])
                        for name, part in parts.items()
                    }
                    found[layer.name] = kind_of(layer).replace(layer, way, made)
        return found

    def _decomposed(self, fold: int) -> Sequence[Spectrum]:
        seen, method = self.labelled.samples.take(self.rows[fold][0]), self.labelled.method
        subject = Subject(self.labelled.subject.opened, seen, digest("fold", self.key, fold, FOLDS))
        _, gradients = weighed(subject, method, "accuracy", self.workspace)
        return decompose(subject, method, self.workspace, gradients=gradients)[0]


@dataclass(frozen=True)
class _Fold:
    """One fold, to be scored with given structures."""

    folds: _Folds
    ways: _Ways
    fold: int


def _accuracy(task: _Fold) -> float:
    """In percent, on the held-out samples of the fold, with float factors made from its other samples."""
    folds, labelled = task.folds, task.folds.labelled
    rows = folds.rows[task.fold][1]
    opened, factors = labelled.subject.opened, folds.factors(task.ways, task.fold)
    session = native(opened.native).session(opened.content, factors, threads=THREADS)
    answers = predict(session, labelled.samples.take(rows))
    return float(accuracy(answers, answers, labelled.labels[rows]).mean())


FOLD: Step[_Fold, float] = Step("folds", 3, _accuracy)


def check_labels(samples: Samples | None, validation: EvaluationSet) -> Array:
    """(N,) int64, the class of every calibration sample.

    Raises:
        UsageError: there are none, or they are no classes of the model.
    """
    if samples is None or samples.labels is None or validation.samples.labels is None:
        raise UsageError(
            "--rank cv needs labelled data: 'y' in the .npz", hint="add the class numbers as `y`, or use --rank auto"
        )
    known = layout(validation.reference[0], validation.samples.labels)
    if known is None or samples.labels.squeeze().ndim != 1:
        raise UsageError(
            f"--rank cv needs one class number per sample, the labels 'y' have the shape {samples.labels.shape}",
            hint="use --rank auto",
        )
    return truth(samples.labels, known, validation.reference[0])


def cross_validated(labelled: Labelled, workspace: Workspace) -> CrossValidation:
    """The smallest share within one standard error of the best, over stratified folds of the calibration samples.

    One share is taken for all layers. Every score is kept in the cache as soon as it is there: an interrupt loses only
    what runs.

    Raises:
        UsageError: no layer can be factored at any of the shares.
        DataError: a class has too few samples for the folds.
    """
    plans = _plans(labelled.subject.opened.layers)
    if not plans:
        raise UsageError("--rank cv: no layer is large enough to be factored", hint="use --rank auto")
    key = digest("cross-validation", labelled.subject.key, labelled.labels, labelled.method, workspace.seed)
    folds = _Folds(labelled, key, workspace)
    asked = 0

    def score(percent: int, fold: int) -> float:
        nonlocal asked
        workspace.progress("cross-validate the rank", asked, len(plans) * FOLDS)
        asked += 1
        ways = plans[percent]
        names = {name: str(way) for name, way in ways.items()}
        task = Keyed([key, FOLDS, fold, names], lambda: _Fold(folds, ways, fold))
        return workspace.cached(FOLD, task)

    found = rank_by_cv(score, list(plans), FOLDS, bounds=(0.0, 100.0))
    return CrossValidation(found.rank, found.best, found.threshold, FOLDS, len(labelled.samples), found.table)


def _plans(layers: Sequence[Layer]) -> dict[int, _Ways]:
    """Per cent → structure by layer name, for the shares that differ and factor something."""
    plans: dict[int, _Ways] = {}
    for percent in PERCENTS:
        grid = AskedRank(percent / 100, worthwhile=True)
        offered = ((layer.name, kind_of(layer).structures(layer, grid)) for layer in layers)
        ways = {name: way for name, structures in offered for way in structures if way.is_low_rank}
        if ways and ways not in plans.values():
            plans[percent] = ways
    return plans
