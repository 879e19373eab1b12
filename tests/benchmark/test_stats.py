"""Statistics: the process is the unit, and a difference is only claimed where there is one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.benchmark.stats import compare, is_narrow, process_medians, summarize

times = st.floats(1e-7, 10.0)
processes = st.lists(st.lists(times, min_size=1, max_size=20), min_size=1, max_size=6)


@given(processes)
def test_summary_is_ordered_and_inside_the_data(raw: list[list[float]]) -> None:
    found = summarize(raw)
    everything = [value for process in raw for value in process]
    assert found.minimum == min(everything)
    assert found.minimum <= found.p90 <= max(everything)
    assert found.iqr >= 0
    assert min(process_medians(raw)) <= found.median <= max(process_medians(raw))
    assert (found.processes, found.samples) == (len(raw), len(everything))
    if len(raw) == 1:
        assert (found.low, found.high) == (None, None)
    else:
        assert found.low <= found.high
        assert min(process_medians(raw)) <= found.low
        assert found.high <= max(process_medians(raw))


@given(processes, st.floats(0.01, 100))
def test_scaling_time_scales_the_summary(raw: list[list[float]], factor: float) -> None:
    one, other = summarize(raw), summarize([[value * factor for value in process] for process in raw])
    assert other.median == pytest.approx(one.median * factor, rel=1e-9)
    assert other.p90 == pytest.approx(one.p90 * factor, rel=1e-9)


@given(processes, processes)
def test_comparing_the_other_way_round_inverts_the_speedup(a: list[list[float]], b: list[list[float]]) -> None:
    one, other = compare(a, b), compare(b, a)
    assert one.speedup * other.speedup == pytest.approx(1.0)
    assert one.p_value == pytest.approx(other.p_value)
    assert (one.verdict == "no difference") == (other.verdict == "no difference")


@given(processes)
def test_a_variant_does_not_differ_from_itself(raw: list[list[float]]) -> None:
    found = compare(raw, raw)
    assert (found.speedup, found.verdict) == (1.0, "no difference")


def test_known_values() -> None:
    found = summarize([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [3.0, 4.0, 5.0]])
    assert (found.median, found.minimum, found.p90, found.iqr) == (3.0, 1.0, 5.0, 2.0)


def test_a_process_with_more_samples_does_not_weigh_more() -> None:
    found = summarize([[1.0] * 1000, [2.0]])
    assert found.p90 == 2.0
    assert found.median == 1.5


def test_clear_differences_are_claimed_with_four_processes_and_not_with_three() -> None:
    fast, slow = [[1.0], [1.1], [1.2], [1.3]], [[2.0], [2.1], [2.2], [2.3]]
    found = compare(fast, slow)
    assert found.verdict == "faster"
    assert found.p_value == pytest.approx(2 / 70)  # the exact test: both extremes of 8 choose 4
    assert found.low < found.speedup < found.high
    assert compare(slow, fast).verdict == "slower"
    assert compare(fast[:3], slow[:3]).verdict == "no difference"


def test_many_samples_of_one_process_are_no_evidence() -> None:
    """10,000 samples that all sit in one process say nothing about the next process."""
    rng = np.random.default_rng(0)
    a, b = 1.0 + 0.001 * rng.random(10000), 1.1 + 0.001 * rng.random(10000)
    assert compare([a.tolist()], [b.tolist()]).verdict == "no difference"


def test_false_alarms_are_as_rare_as_promised() -> None:
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(200):
        medians = rng.normal(1.0, 0.05, (2, 5, 1)).tolist()
        alarms += compare(*medians).verdict != "no difference"
    assert alarms <= 20  # 5 % of 200 are 10; three standard deviations above


def test_intervals_are_the_same_every_time() -> None:
    raw = [[1.0, 1.2], [1.1], [1.4], [0.9]]
    assert summarize(raw) == summarize(raw)


@pytest.mark.parametrize(
    ("medians", "expected"),
    [([1.0], False), ([1.0, 1.0, 1.0, 1.0], True), ([1.0, 1.01, 1.02, 1.03], True), ([1.0, 1.0, 1.3, 1.3], False)],
)
def test_an_interval_is_narrow_by_its_share_of_the_median(medians: list[float], expected: bool) -> None:
    assert is_narrow([[value] for value in medians], 0.04) is expected
