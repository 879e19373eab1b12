"""Which figures have grown too much, and what is said of those that cannot be compared."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgepack.benchmark.results import LayerCounts
from edgepack.benchmark.stats import compare
from edgepack.check.changes import INSTRUCTIONS_NOISE, MISSES_NOISE, Change, changes, notes, over
from edgepack.check.figures import FileFigures, PackFigures
from edgepack.check.latency import Latency
from edgepack.check.thresholds import STANDARD
from edgepack.emulator.counts import Counts


def counts(instructions: float, misses: float) -> Counts:
    return Counts(instructions, 0.0, 0.0, {"L1i": 7.0, "L1d": misses, "L2": misses / 10})


FILE = FileFigures(
    "onnx", 10_000, "ab" * 32, 97.0, 0.1, counts(1e6, 1e5),
    (LayerCounts("fc1", True, counts(4e5, 5e4)), LayerCounts("fc2", True, counts(5e5, 4e4))),
)  # fmt: skip
BASE = PackFigures("mlp", "rpi4", "accuracy", "seeded", None, (FILE,))


def pack(file: FileFigures) -> PackFigures:
    return replace(BASE, files=(file,))


def found(file: FileFigures, base: FileFigures = FILE) -> list[Change]:
    return over(changes(pack(file), pack(base), STANDARD))


def test_a_pack_is_not_worse_than_itself() -> None:
    every = list(changes(BASE, BASE, STANDARD))
    assert not over(every)
    assert [(one.part, one.figure) for one in every][:5] == [
        (None, "size_bytes"), (None, "drop"), (None, "instructions"), (None, "L1d_misses"), (None, "L2_misses"),
    ]  # fmt: skip
    assert len(every) == 5 + 2 * 3
    assert not list(notes(BASE, BASE))


def test_the_layer_that_grew_is_named_before_its_file() -> None:
    grown = replace(FILE, layers=(FILE.layers[0], replace(FILE.layers[1], counts=counts(5.15e5, 4e4))))
    (one,) = found(grown)
    assert (one.file, one.part, one.figure, one.growth) == ("model.onnx", "fc2", "instructions", pytest.approx(0.03))
    whole = replace(grown, counts=counts(1.015e6, 1e5))
    assert [each.part for each in found(whole)] == ["fc2", None]
    assert not found(FILE, grown), "it shrank"
    assert [each.part for each in changes(pack(FILE), pack(grown), STANDARD) if each.better] == ["fc2"]


@pytest.mark.parametrize("share", [0.0099, 0.0101])
def test_the_threshold_is_a_share_of_the_base(share: float) -> None:
    assert bool(found(replace(FILE, size_bytes=round(10_000 * (1 + share))))) is (share > 0.01)
    assert bool(found(replace(FILE, counts=counts(1e6 * (1 + share), 1e5)))) is (share > 0.01)


def test_growth_that_two_counts_of_one_file_may_have_is_none() -> None:
    small = replace(FILE, counts=counts(1000, 100), layers=())
    within = counts(1000 + INSTRUCTIONS_NOISE, 100 + MISSES_NOISE)
    assert not found(replace(small, counts=within), small)
    beyond = counts(1001 + INSTRUCTIONS_NOISE, 101 + MISSES_NOISE)
    assert [one.figure for one in found(replace(small, counts=beyond), small)] == ["instructions", "L1d_misses"]


def test_what_the_base_had_and_the_pack_lacks_is_over() -> None:
    (gone,) = over(changes(replace(BASE, files=(replace(FILE, format="tflite"),)), BASE, STANDARD))
    assert (gone.file, gone.own, gone.why) == ("model.onnx", None, "the pack has no such file any more")
    (unknown,) = found(replace(FILE, drop=None))
    assert (unknown.figure, unknown.own) == ("drop", None)
    assert not found(FILE, replace(FILE, drop=None)), "the base says nothing to hold it against"


def test_drops_are_compared_in_the_unit_of_one_metric() -> None:
    assert not found(replace(FILE, drop=0.6))
    (worse,) = found(replace(FILE, drop=0.61))
    assert (worse.figure, worse.growth) == ("drop", pytest.approx(0.51))
    other = replace(pack(replace(FILE, drop=9.0)), metric="f1")
    assert not over(changes(other, BASE, STANDARD))
    assert list(notes(other, BASE)) == ["the drops are of two metrics, accuracy and f1: they are not compared"]


def test_latency_is_over_where_all_of_its_interval_is() -> None:
    base = [[1.0 + 0.001 * number] for number in range(8)]
    for factor, wanted in ((1.05, False), (1.3, True), (0.7, False)):
        own = [[factor * times[0]] for times in base]
        measured = Latency("onnx", 1.0, factor, compare(own, base))
        assert [one.figure for one in over(changes(BASE, BASE, STANDARD, [measured]))] == ["latency_s"] * wanted
    wide = [[1.3 if number % 2 else 0.9] for number in range(8)]
    assert not over(changes(BASE, BASE, STANDARD, [Latency("onnx", 1.0, 1.1, compare(wide, base))]))


def test_what_is_not_compared_is_said() -> None:
    renamed = replace(FILE, layers=(FILE.layers[0], replace(FILE.layers[1], name="fc3")))
    own = replace(BASE, inputs="cd" * 32, files=(renamed, replace(FILE, format="tflite")))
    assert list(notes(own, BASE)) == [
        "model.onnx: parts that are new: fc3",
        "model.onnx: parts that are gone: fc2",
        "model.tflite: the base has no such file",
    ]
    whole = pack(replace(FILE, layers=(), layers_missing="fc1 is not found"))
    assert list(notes(whole, BASE)) == ["model.onnx was counted as a whole alone: fc1 is not found"]
