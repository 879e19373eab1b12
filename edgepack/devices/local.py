"""This machine as a device: the runner in a fresh process of its own group, none left behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgepack.devices.device import EVERY_MODE, Job, last_lines, read_reply
from edgepack.errors import StableDeviceError, TransientDeviceError
from edgepack.lifeline import TiedProcess
from edgepack.workspace import shipped

PROBE_TIMEOUT_S = 300.0

MAX_STDOUT_BYTES = 64 << 20
MAX_STDERR_BYTES = 64 << 10
_CHUNK = 1 << 12


class LocalDevice:
    """Runs jobs on this machine.

    Args:
        python: the command of the interpreter that has the runtimes; by default the one that runs edgepack.
        runner: a file in place of the shipped programs.
        environment: of the process, whole; by default this process's own.
        name: for messages.
    """

    def __init__(
        self,
        python: Sequence[str] = (sys.executable,),
        runner: Path | None = None,
        environment: Mapping[str, str] | None = None,
        name: str = "local",
    ) -> None:
        self._python = tuple(python)
        self._runner = runner
        self._environment = environment
        self.name = name
        self.modes = EVERY_MODE
        self.resumed = 0

    def probe(self, *, imports: bool = True) -> Mapping[str, Any]:
        """See `Device.probe`; without `imports` no runtime is tried."""
        arguments = ["probe", *([] if imports else ["--no-imports"])]
        return self._run("runner.py", arguments, f"probe of {self.name}", PROBE_TIMEOUT_S)

    def push(self, path: Path) -> str:
        """See `Device.push`: the file is here already."""
        return str(path.resolve())

    def run(self, job: Job) -> Mapping[str, Any]:
        """See `Device.run`."""
        return self._run(job.program, job.arguments(), f"{job.title} on {self.name}", job.timeout_s)

    def close(self) -> None:
        """See `Device.close`: nothing was left behind."""

    def _run(self, program: str, arguments: Sequence[str], what: str, timeout_s: float) -> dict[str, Any]:
        file = self._runner or shipped(f"runtimes/{program}")
        try:
            ended = run_client(
                [*self._python, str(file), *arguments], timeout_s=timeout_s, environment=self._environment
            )
        except OSError as err:
            raise StableDeviceError(f"{what}: cannot start {self._python[0]}: {err.strerror}") from err
        if ended.overflow:
            raise StableDeviceError(f"{what}: the answer is larger than any that edgepack expects")
        if ended.returncode is None:
            raise TransientDeviceError(
                f"{what}: no answer within {timeout_s:.0f} s, killed{last_lines(ended.stderr)}",
                hint="the machine may be busy; try again",
            )
        return read_reply(what, ended.returncode, ended.stdout, ended.stderr)


@dataclass(frozen=True)
class Finished:
    """How a command ended.

    Attributes:
        returncode: of the client; None where its time was up or its answer grew beyond all bounds, and it was killed.
        stdout: at most 64 MiB.
        stderr: the last 64 KiB.
        overflow: stdout was longer than that.
    """

    returncode: int | None
    stdout: bytes
    stderr: bytes
    overflow: bool = False


def run_client(
    command: Sequence[str], *, stdin: bytes = b"", timeout_s: float, environment: Mapping[str, str] | None = None
) -> Finished:
    """Runs a client in a process group of its own.

    Args:
        command: program and arguments.
        stdin: bytes for it.
        timeout_s: after which the whole group is killed.
        environment: of the process, whole; by default this process's own.

    Raises:
        OSError: the program cannot be started.
    """
    process = TiedProcess(
        list(command),
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    ended = _ended_fd(process)
    out, err = (
        _Reader(process, process.stdout, ended, MAX_STDOUT_BYTES, kill=True),
        _Reader(process, process.stderr, ended),
    )
    threads = [threading.Thread(target=reader.run, daemon=True) for reader in (out, err)]
    if stdin:
        threads.append(threading.Thread(target=_feed, args=(process.stdin, stdin), daemon=True))
    try:
        for thread in threads:
            thread.start()
        if ended is not None:  # asleep until then: `wait` would look twenty times a second, beside what is measured
            until = time.monotonic() + timeout_s
            # A second at a time: Ctrl-C may have gone to another thread, and is heard here when this one wakes.
            while (timeout_s := until - time.monotonic()) > 0 and not select.select(
                [ended], [], [], min(timeout_s, 1.0)
            )[0]:
                pass
            timeout_s = max(timeout_s, 0.0)
        process.wait(timeout_s)
        in_time = True
    except subprocess.TimeoutExpired:
        in_time = False
    finally:
        if process.returncode is None:  # also on Ctrl-C
            kill_group(process)
        for thread in threads:
            if thread.ident is not None:  # else Ctrl-C came before it started
                thread.join(timeout=5.0)
        for file in (process.stdout, process.stderr):
            if file is not None:
                file.close()
        if ended is not None:
            os.close(ended)
        process.let_go()
    returncode = process.returncode if in_time and not out.overflow else None
    return Finished(returncode, b"".join(out.kept), b"".join(err.kept), out.overflow)


def _ended_fd(process: subprocess.Popen[bytes]) -> int | None:
    """A descriptor that can be read once the process has ended; None where the system has none."""
    try:
        return os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        return None


class _Reader:
    """Reads a pipe and keeps a bounded part, the start of an answer or the end of a log; beyond the bound of an answer
    the process is killed. It ends with the pipe, or once the process has ended and there is nothing more to read: what
    that left behind in a session of its own may hold the pipe for good.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        pipe: IO[bytes] | None,
        ended: int | None,
        most: int = MAX_STDERR_BYTES,
        *,
        kill: bool = False,
    ) -> None:
        self._process = process
        self._pipe = pipe
        self._ended = ended
        self._most = most
        self._kill = kill
        self.kept: deque[bytes] = deque()
        self.overflow = False

    def run(self) -> None:
        size = 0
        while chunk := self._next():
            self.kept.append(chunk)
            size += len(chunk)
            if size > self._most and self._kill:
                self.overflow = True
                kill_group(self._process)
                return
            while size > self._most:
                size -= len(self.kept.popleft())

    def _next(self) -> bytes:
        """What comes next; empty where nothing more will."""
        if self._pipe is None:
            return b""
        wanted = [self._pipe.fileno()] + ([] if self._ended is None else [self._ended])
        ready = select.select(wanted, [], [])[0]
        if wanted[0] not in ready:  # it has ended; what it wrote last may have come meanwhile
            ready = select.select(wanted[:1], [], [], 0.0)[0]
        return os.read(wanted[0], _CHUNK) if wanted[0] in ready else b""


def _feed(pipe: IO[bytes] | None, data: bytes) -> None:
    if pipe is None:
        return
    try:
        with pipe:
            pipe.write(data)
    except BrokenPipeError:
        return  # the client's exit code says why it stopped reading


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a process that leads a session, and all it started there."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()
