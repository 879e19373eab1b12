"""Processes that end with the one that started them, however that ends and whatever they are at.

Linux sends a signal when the last writing end of a pipe is closed, which the kernel does for a process that is killed.
Nothing has to run in the process that is to end: it may be deep in a library that lets no other thread run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

if sys.platform == "linux":
    import fcntl

    def end_with(pipe: int, owner: int | None = None) -> None:
        """Have a process killed when the other end of a pipe is closed, on which nothing is written from now on.

        Args:
            pipe: the reading end; the process that is to end keeps it open.
            owner: its number, by default that of this process; below 0 a process group.
        """
        fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid() if owner is None else owner)
        fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)

else:

    def end_with(pipe: int, owner: int | None = None) -> None:
        """There is no such signal on this system."""


class TiedProcess(subprocess.Popen[Any]):
    """A process in a group of its own, which is killed with what it started there when this process ends.

    Args:
        command, more: as of `subprocess.Popen`.

    Raises:
        OSError: the program cannot be started.
    """

    def __init__(self, command: Sequence[str], **more: Any) -> None:
        reading, self._lifeline = os.pipe()
        try:
            super().__init__(command, start_new_session=True, pass_fds=(reading,), **more)
            end_with(reading, -self.pid)
        except BaseException:  # Ctrl-C among them, which may come when the process runs already
            self.let_go()
            if getattr(self, "pid", None):
                with suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
            raise
        finally:
            os.close(reading)

    def let_go(self) -> None:
        """Closes this end of the pipe: what holds the other and has not ended is killed."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def __del__(self, *more: Any) -> None:
        """Forgotten: nobody could end it any more."""
        self.let_go()
        super().__del__(*more)
