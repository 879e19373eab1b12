"""Stages and learning rates."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgepack.distill.schedule import MOST_STAGES, make_schedule, stage_sizes


@given(st.integers(1, 5000), st.integers(1, MOST_STAGES))
def test_every_step_has_a_stage_and_the_last_one_trains_all_layers(total: int, stages: int) -> None:
    schedule = make_schedule(total, stages)
    found = [schedule.stage(step) for step in range(total)]
    assert found == sorted(found)
    assert found[-1] == stages - 1
    assert all(0.0 < schedule.rate(step) <= 1.0 for step in range(total))


def test_long_runs_warm_up_in_every_stage_and_end_slowly() -> None:
    schedule = make_schedule(1000, 3)
    assert schedule.starts == (0, 200, 400)
    for start in schedule.starts:
        assert schedule.rate(start) < 0.1 < schedule.rate(start + 60)
    assert schedule.rate(999) < 0.03


@given(st.integers(1, 200))
def test_stages_grow_from_the_input_on_until_all_layers_are_in(layers: int) -> None:
    sizes = stage_sizes(layers)
    assert sizes[-1] == layers
    assert list(sizes) == sorted(set(sizes))
    assert len(sizes) <= MOST_STAGES
    assert (len(sizes) > 1) == (layers >= 12)
