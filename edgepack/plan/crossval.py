"""Rank by k-fold cross-validation: the smallest that the folds cannot tell from the best.

Breiman, Friedman, Olshen and Stone, "Classification and Regression Trees", 1984, section 3.4.3: take the simplest model
whose mean score lies within one standard error of the best mean. The standard error is that of the best rank's mean
over the folds, s / √k with s their sample standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from edgepack.errors import DataError, UsageError
from edgepack.model.types import Array


@dataclass(frozen=True)
class RankScores:
    """One row of the table.

    Attributes:
        scores: of the folds that were looked at, in their order.
        mean, standard_error: over all folds; None where the decision was certain before all were looked at.
    """

    rank: int
    scores: tuple[float, ...]
    mean: float | None
    standard_error: float | None


@dataclass(frozen=True)
class CrossValidated:
    """The rule's answer and what it was found from.

    Attributes:
        rank: the smallest within one standard error of the best.
        best: the rank of the highest mean; the smallest of equals.
        threshold: mean of `best` minus its standard error.
        table: by rising rank.
    """

    rank: int
    best: int
    threshold: float
    table: tuple[RankScores, ...]


def rank_by_cv(
    score: Callable[[int, int], float],
    ranks: Sequence[int],
    folds: int,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> CrossValidated:
    """The smallest rank whose mean score is within one standard error of the best.

    With bounds, scores that can no longer matter are not asked for: a rank is given up once its remaining folds at
    their best could not make it the best, nor bring it to the threshold. The rank, the best and the threshold are those
    of the full table.

    Args:
        score: score(rank, fold), higher is better, fold 0 … folds − 1; each is asked for once at most.
        ranks: rising.
        folds: two or more.
        bounds: lowest and highest score possible: (0, 100) for an accuracy in percent.

    Raises:
        UsageError: no ranks, ranks that do not rise, or fewer than two folds.
        DataError: a score is not finite or out of bounds.
    """
    if not ranks or ranks[0] < 1 or any(low >= high for low, high in pairwise(ranks)):
        raise UsageError(f"ranks to cross-validate must rise from 1 or more, found {list(ranks)}")
    if folds < 2:
        raise UsageError(f"cross-validation needs two folds or more, found {folds}")
    race = _Race(score, ranks, folds, bounds)
    best = _best(race, ranks)
    threshold = race.mean(best) - race.standard_error(best)
    rank = _smallest(race, ranks, threshold)
    return CrossValidated(rank, best, threshold, tuple(race.row(rank) for rank in ranks))


def _best(race: _Race, ranks: Sequence[int]) -> int:
    """The rank of the highest mean. The largest comes first: it is most likely the best, and then the rest is quick."""
    best = ranks[-1]
    race.finish(best)
    for rank in reversed(ranks[:-1]):
        while not race.finished(rank) and race.mean(rank, race.high) >= race.mean(best):
            race.ask(rank)
        if race.finished(rank) and race.mean(rank) >= race.mean(best):
            best = rank
    return best


def _smallest(race: _Race, ranks: Sequence[int], threshold: float) -> int:
    for rank in ranks:
        while not race.finished(rank) and race.mean(rank, race.low) < threshold <= race.mean(rank, race.high):
            race.ask(rank)
        if race.mean(rank, race.low) >= threshold:
            return rank
    return ranks[-1]  # not reached: the best rank is within the threshold


class _Race:
    """Scores known so far. Means go over all folds, the missing ones at a bound.

    They are summed in one order: rounding then never puts a mean outside of those at the bounds.
    """

    def __init__(
        self, score: Callable[[int, int], float], ranks: Sequence[int], folds: int, bounds: tuple[float, float]
    ) -> None:
        self.score, self.folds = score, folds
        self.low, self.high = bounds
        self.known: dict[int, list[float]] = {rank: [] for rank in ranks}

    def ask(self, rank: int) -> None:
        fold = len(self.known[rank])
        value = float(self.score(rank, fold))
        if not math.isfinite(value) or not self.low <= value <= self.high:
            raise DataError(
                f"rank {rank} scores {value} on fold {fold}, expected a number in {self.low:g} … {self.high:g}"
            )
        self.known[rank].append(value)

    def finish(self, rank: int) -> None:
        while not self.finished(rank):
            self.ask(rank)

    def finished(self, rank: int) -> bool:
        return len(self.known[rank]) == self.folds

    def mean(self, rank: int, missing: float = math.nan) -> float:
        known = self.known[rank]
        return sum([*known, *[missing] * (self.folds - len(known))]) / self.folds

    def standard_error(self, rank: int) -> float:
        return float(np.std(self.known[rank], ddof=1) / math.sqrt(self.folds))

    def row(self, rank: int) -> RankScores:
        scores = tuple(self.known[rank])
        if not self.finished(rank):
            return RankScores(rank, scores, None, None)
        return RankScores(rank, scores, self.mean(rank), self.standard_error(rank))


def stratified_folds(labels: Array, folds: int, seed: int) -> list[tuple[Array, Array]]:
    """(training rows, held-out rows) of every fold, sorted; each row is held out once, each class in equal shares.

    Args:
        labels: (N,) whole numbers or text.
        folds: two or more.
        seed: the same seed gives the same folds.

    Raises:
        UsageError: fewer than two folds.
        DataError: no labels, labels that are no classes, a single class, or a class with fewer samples than folds.
    """
    if folds < 2:
        raise UsageError(f"cross-validation needs two folds or more, found {folds}")
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iubUS":
        raise DataError(
            f"labels are {labels.dtype} of shape {labels.shape}, expected one whole number or text per sample",
            hint="cross-validation of the rank needs class labels: y in --data",
        )
    classes, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise DataError(f"all {len(labels)} samples are of class {classes[0]!s}, expected two classes or more")
    if counts.min() < folds:
        rare = classes[counts.argmin()]
        raise DataError(
            f"class {rare!s} has {counts.min()} samples, expected at least one for each of {folds} folds",
            hint="take fewer folds or give more data",
        )
    # Class after class, dealt in turns without a break: folds differ by one sample at most, in all and in each class.
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    order = shuffled[np.argsort(numbers[shuffled], kind="stable")]
    fold_of = np.empty(len(labels), np.int64)
    fold_of[order] = np.arange(len(labels)) % folds
    return [(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(folds)]
