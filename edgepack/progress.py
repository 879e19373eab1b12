"""How long work says where it is: a callback, so that library code never prints."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with a stage's name and how much of it is done; `total` 0 means unknown."""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Say where the work is."""


def silent(stage: str, done: int = 0, total: int = 0) -> None:
    """Ignore all progress."""
