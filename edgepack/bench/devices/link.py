"""The role of a wire to a device: it runs a command at the other end and brings files there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from edgepack.bench.devices.process import Finished

Sent = Callable[[int], None]
"""Told how many bytes of a file are there."""


class Link(Protocol):
    """A wire: SSH, or adb. Whoever made it closes it."""

    @property
    def name(self) -> str:
        """For messages: `pi@raspberrypi.local`, `adb 0123456789ABCDEF`."""

    @property
    def root(self) -> str:
        """The folder for edgepack's files there; empty for the cache folder of the user there."""

    def run(self, command: Sequence[str], *, stdin: bytes = b"", timeout_s: float, what: str) -> Finished:
        """Runs a command on the device.

        Args:
            command: program and arguments, each one element; whatever they hold reaches the program as it is.
            stdin: of the command.
            timeout_s: after which this end gives up.
            what: is done, for messages: `start latency of model.onnx`.

        Returns:
            What the command printed and its exit code, whatever that is.

        Raises:
            LinkError: the wire broke, or the time was up; the command may have run or not.
            StableDeviceError: the device refuses: unknown, closed, another host key, a wrong user.
        """

    def upload(self, path: Path, there: str, start: int, *, what: str, sent: Sent) -> None:
        """Brings a file's bytes to the file `there`, whose first `start` bytes are there already.

        Raises:
            LinkError: the wire broke; what arrived stays there.
            StableDeviceError: the device cannot write it: its disk is full, or the folder is not writable.
        """

    def close(self) -> None:
        """Ends what the link keeps open."""
