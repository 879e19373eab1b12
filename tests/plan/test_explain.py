"""What is said of a layer: what else there was, and by how much it lost."""

# The sentences are wider than a line of code on purpose.
# ruff: noqa: E501

from __future__ import annotations

from edgepack.backends.onnx import schemes
from edgepack.model.scheme import Scheme
from edgepack.model.types import Candidate
from edgepack.plan.explain import kind, others, reason
from tests.linear_plans import linear_candidate


def one(scheme: Scheme, rank: int | None, loss: float, size: int, microseconds: float) -> Candidate:
    return linear_candidate(scheme, rank, loss, size, size, microseconds * 1e-6)


FP32 = one(schemes.FP32, None, 0.0, 4000, 40)
INT8 = one(schemes.INT8_DYNAMIC, None, 0.001, 1000, 20)
INT4 = one(schemes.NBITS4, None, 0.02, 560, 25)
WIDE = one(schemes.INT8_DYNAMIC, 32, 0.004, 500, 12)
THIN = one(schemes.INT8_DYNAMIC, 8, 0.1, 125, 6)
ALL = (FP32, INT8, INT4, WIDE, THIN)


def test_kinds() -> None:
    assert [kind(c) for c in ALL] == ["dense fp32", "dense int8", "dense int4", "low rank", "low rank"]


def test_a_pair_names_what_it_beats_and_what_the_next_rank_would_lose() -> None:
    assert reason(ALL, WIDE, 0.001) == (
        "rank 32 int8-dynamic: 1.7× faster and 2.0× smaller than dense int8-dynamic; rank 8 would lose 25.0 times as much"
    )


def test_dense_names_the_loss_of_the_pair_that_would_be_faster() -> None:
    assert reason(ALL, INT8, 0.001) == (
        "dense int8-dynamic: rank 32 int8-dynamic would be 1.7× faster and 2.0× smaller, but would lose 3.0 times what "
        "the budget leaves"
    )
    assert ", but would lose far more than what the budget leaves" in reason(ALL, INT8, 0.0)


def test_dense_names_the_pair_that_would_be_slower() -> None:
    slow = one(schemes.INT8_DYNAMIC, 32, 0.0, 500, 26)
    assert reason((INT8, slow), INT8, 0.5) == (
        "dense int8-dynamic: rank 32 int8-dynamic would be 1.3× slower and 2.0× smaller on this target"
    )


def test_dense_that_is_not_int8_says_why() -> None:
    said = reason((FP32, INT8), FP32, 0.0001, "the data never reach it")
    assert said == (
        "dense fp32: the data never reach it; dense int8-dynamic would be 2.0× faster and 4.0× smaller, but would lose "
        "10.0 times what the budget leaves"
    )


def test_only_one_candidate() -> None:
    assert reason((FP32,), FP32, 0.0) == "dense fp32: nothing else was allowed"
    assert reason((FP32,), FP32, 0.0, "no rank pays, its break-even rank is 3") == (
        "dense fp32: no rank pays, its break-even rank is 3"
    )


def test_equals_are_said_to_be_equal() -> None:
    twin = one(schemes.INT8_DYNAMIC, 8, 0.0, 1000, 20)
    assert (
        reason((INT8, twin), INT8, 1.0) == "dense int8-dynamic: rank 8 int8-dynamic would be no better on this target"
    )
    assert reason((INT8, twin), twin, 1.0) == "rank 8 int8-dynamic: as fast and as small as dense int8-dynamic"


def test_others_are_the_best_of_each_kind_that_fits() -> None:
    assert set(others(ALL, INT8, 0.2)) == {FP32, INT4, THIN}
    assert WIDE in others(ALL, INT8, 0.01)
    assert INT4 in others(ALL, INT8, 0.0), "the one that loses least stands in where none fits"


def test_a_layer_that_an_inference_does_not_reach_takes_no_time_in_any_scheme() -> None:
    fp32, int8 = one(schemes.FP32, None, 0.0, 4000, 0), one(schemes.INT8_DYNAMIC, None, 0.0, 1000, 0)
    assert reason((fp32, int8), int8, 1.0, "the data never reach it") == "dense int8-dynamic: the data never reach it"
    assert reason((fp32, int8), fp32, 1.0) == "dense fp32: dense int8-dynamic would be 4.0× smaller on this target"
