"""What `--distill` takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.distill import Epochs, Seconds, parse_budget
from edgepack.errors import UsageError


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("3epochs", Epochs(3)),
        ("1epoch", Epochs(1)),
        (" 2 epochs ", Epochs(2)),
        ("10min", Seconds(600.0)),
        ("90s", Seconds(90.0)),
        ("1.5min", Seconds(90.0)),
        ("2h", Seconds(7200.0)),
    ],
)
def test_epochs_and_times_are_told_apart(text: str, budget: Epochs | Seconds) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    "text", ["", "3", "epochs", "-1epochs", "0epochs", "1.5epochs", "0s", "infs", "nanmin", "10 minutes!", "1e3s", "²s"]
)
def test_nonsense_is_a_usage_error_that_says_how_to_write_it(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_budget(text)
    assert "3epochs" in (caught.value.hint or "")


@given(st.text(max_size=12))
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        budget = parse_budget(text)
    except UsageError:
        return
    assert isinstance(budget, Epochs | Seconds)
