"""What holds for every suite here: the figures that a suite notes are printed at the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_NOTES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def note(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Takes a line that is printed at the end of the session."""
    return pytestconfig.stash.setdefault(_NOTES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(_NOTES, [])
    if lines:
        terminalreporter.section("figures: files in turns, in fresh processes")
    for line in lines:
        terminalreporter.write_line(line)
