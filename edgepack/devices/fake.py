"""A device that answers from a function, for the error paths that no real machine shows on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgepack.devices.device import EVERY_MODE, Job


class FakeDevice:
    """Answers every job from `answer` and keeps what it was asked.

    Args:
        report: the probe report.
        answer: gives the report of a job, or raises.
    """

    name = "fake"
    modes = EVERY_MODE
    resumed = 0

    def __init__(self, report: Mapping[str, Any], answer: Callable[[Job], Mapping[str, Any]]) -> None:
        self._report = report
        self._answer = answer
        self.jobs: list[Job] = []
        self.closed = False

    def probe(self) -> Mapping[str, Any]:
        """See `Device.probe`."""
        return self._report

    def push(self, path: Path) -> str:
        """See `Device.push`: the path stays what it is."""
        return str(path)

    def run(self, job: Job) -> Mapping[str, Any]:
        """See `Device.run`."""
        self.jobs.append(job)
        return self._answer(job)

    def close(self) -> None:
        """See `Device.close`."""
        self.closed = True
