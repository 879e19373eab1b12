"""Samples on their way into a model: the seeded split, runs of a batch, and one example."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.data import Ragged, Samples, example, feeds, first_runs, is_stacked, split, validate
from edgepack.errors import DataError
from edgepack.model.types import Array, TensorSpec


def spec(name: str = "x", shape: tuple[int | None, ...] = (None, 3), dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, shape, np.dtype(dtype))


X = (spec(),)


def varied(*shape: int) -> Array:
    return np.arange(np.prod(shape)).reshape(shape).astype(np.float32)


def numbered(count: int) -> Samples:
    return Samples({"x": np.arange(count, dtype=np.float32)[:, None]}, np.arange(count))


@given(st.integers(2, 3000), st.integers(0, 2**31), st.integers(0, 4000))
def test_split_is_disjoint_whole_and_aligned(count: int, seed: int, wanted: int) -> None:
    parts = split(numbered(count), seed, wanted)
    given = [part for part in (parts.calibration, parts.validation, parts.confirmation) if part is not None]
    assert sorted(label for part in given for label in part.labels) == list(range(count))
    for part in given:
        np.testing.assert_array_equal(part.inputs["x"][:, 0], part.labels)
    assert len(parts.calibration) == max(min(wanted, count // 3), 1)
    assert len(parts.validation) >= 1
    if count >= 60:
        assert parts.confirmation is not None
        assert len(parts.confirmation) - len(parts.validation) in (0, 1)
    else:
        assert parts.confirmation is None


def test_split_is_seeded() -> None:
    first, again, other = (split(numbered(600), seed, 100).validation.labels for seed in (1, 1, 2))
    assert first is not None
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(first) == 250


def test_one_sample_cannot_be_split() -> None:
    with pytest.raises(DataError, match="1 sample cannot be split"):
        split(numbered(1), 0, 1)


@given(st.integers(1, 300), st.sampled_from([None, 1, 7, 64]))
def test_feeds_cover_every_sample_once_in_order(count: int, batch: int | None) -> None:
    samples, specs = numbered(count), (spec("x", (batch, 1)),)
    seen: list[float] = []
    for feed, valid in feeds(samples, specs):
        rows = feed["x"][:, 0]
        assert 1 <= valid <= len(rows)
        if batch is None:
            assert len(rows) == valid <= 64
        else:
            assert len(rows) == batch
            assert (rows[valid:] == count - 1).all(), "a fixed batch is filled up with the last sample"
        seen += rows[:valid].tolist()
    assert seen == list(range(count))


def test_stacked_samples_are_whole_inputs() -> None:
    """A model of fixed shape (2, 3): each of five samples is a (2, 3) input."""
    specs = (spec("x", (2, 3)), spec("s", ()))
    samples = validate({"x": varied(5, 2, 3), "s": varied(5)}, specs, "o")
    assert is_stacked(samples.inputs["x"], specs[0])
    runs = list(feeds(samples, specs))
    assert len(runs) == 5
    for i, (feed, valid) in enumerate(runs):
        assert valid == 1
        assert feed["s"].shape == ()
        np.testing.assert_array_equal(feed["x"], varied(5, 2, 3)[i])


def test_one_batch_for_all_inputs() -> None:
    specs = (spec("a", (4, 3)), spec("b", (None, 2)))
    runs = list(feeds(Samples({"a": varied(6, 3), "b": varied(6, 2)}), specs))
    assert [(f["a"].shape, f["b"].shape, valid) for f, valid in runs] == [((4, 3), (4, 2), 4), ((4, 3), (4, 2), 2)]


def test_example_inputs() -> None:
    samples = Samples({"x": varied(6, 3)})
    np.testing.assert_array_equal(example(samples, X, 0)["x"], varied(6, 3)[:1])
    np.testing.assert_array_equal(example(samples, (spec("x", (4, 3)),), 0)["x"], varied(6, 3)[:4])
    stacked = Samples({"x": varied(6, 2, 3)})
    np.testing.assert_array_equal(example(stacked, X, 0)["x"], varied(6, 2, 3)[0])


def test_stand_ins_are_seeded_and_fit() -> None:
    specs = (spec("x", (None, 3)), spec("ids", (2, None), "int64"), spec("h", (1, 4), "float16"), spec("s", ()))
    first, again, other = (example(None, specs, seed) for seed in (0, 0, 1))
    for s in specs:
        assert first[s.name].dtype == s.dtype
        np.testing.assert_array_equal(first[s.name], again[s.name])
    assert [first[s.name].shape for s in specs] == [(1, 3), (2, 1), (1, 4), ()]
    assert not np.array_equal(first["x"], other["x"])
    assert not first["ids"].any()


def test_first_runs_have_the_shapes_of_the_example() -> None:
    lengths = [3, 2, 3, 3, 3]
    ragged = Ragged(np.arange(14, dtype=np.float32), np.array(lengths)[:, None])
    specs = (TensorSpec("x", (1, None), np.dtype(np.float32)),)
    found = first_runs(Samples({"x": ragged}), specs)
    assert [run["x"].tolist() for run in found] == [[[0, 1, 2]], [[5, 6, 7]], [[8, 9, 10]]]
