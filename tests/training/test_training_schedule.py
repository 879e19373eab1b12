from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import UsageError
from edgepack.training import Schedule


@given(st.integers(0, 50), st.integers(1, 20), st.integers(1, 200))
def test_alpha_is_what_step_by_step_subtraction_gives_without_rounding(begin: int, frequency: int, parts: int) -> None:
    schedule = Schedule(begin, frequency, 1 / parts)
    alpha = Fraction(1)
    for step in range(begin + frequency * (parts + 1)):
        if step > begin and (step - begin) % frequency == 0:
            alpha = max(alpha - Fraction(1, parts), Fraction(0))
        assert schedule.alpha(step) == pytest.approx(float(alpha), abs=1e-12)
        assert (schedule.alpha(step) == 0) == (alpha == 0) == (step >= schedule.end_step)


def test_a_decrement_that_does_not_divide_one_ends_at_zero() -> None:
    schedule = Schedule(10, 5, 0.4)
    assert [schedule.alpha(step) for step in (9, 10, 15, 20, 25)] == pytest.approx([1, 1, 0.6, 0.2, 0])
    assert schedule.end_step == 25


@pytest.mark.parametrize(
    "settings",
    [(-1, 1, 0.1), (1.5, 1, 0.1), (True, 1, 0.1), (0, 0, 0.1), (0, 1, 0.0), (0, 1, 1.01), (0, 1, float("nan"))],
)
def test_settings_that_make_no_schedule_are_refused(settings: tuple[int, int, float]) -> None:
    with pytest.raises(UsageError, match="expected"):
        Schedule(*settings)
