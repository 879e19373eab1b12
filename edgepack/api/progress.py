"""How a program wants to hear where long work is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgepack.report.progress import shown_progress
from edgepack.workspace import Progress, silent

Wanted = bool | Progress
"""True for a bar where somebody looks on: in a terminal or a notebook; False for none; or `f(stage, done, total)`,
called with the name of a stage, how much of it is done, and of how much: 0 where that is not known."""


@contextmanager
def heard(wanted: Wanted) -> Iterator[Progress]:
    """What is told where the work of the block is."""
    if not isinstance(wanted, bool):
        yield wanted
    elif wanted:
        with shown_progress() as bars:
            yield bars[""]
    else:
        yield silent
