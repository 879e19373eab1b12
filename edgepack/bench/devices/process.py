"""A client program (ssh, adb) as a subprocess: a bounded answer, and no process left behind when the time is up."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

MAX_STDOUT_BYTES = 64 << 20
MAX_STDERR_BYTES = 64 << 10
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Finished:
    """How a command ended.

    Attributes:
        returncode: of the client; None where its time was up or its answer grew beyond all bounds, and it was killed.
        stdout: at most 64 MiB.
        stderr: the first 64 KiB.
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
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=environment,
    )
    out, err = _Reader(process, process.stdout, MAX_STDOUT_BYTES, kill=True), _Reader(process, process.stderr)
    threads = [threading.Thread(target=reader.run, daemon=True) for reader in (out, err)]
    if stdin:
        threads.append(threading.Thread(target=_feed, args=(process.stdin, stdin), daemon=True))
    for thread in threads:
        thread.start()
    in_time = True
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        in_time = False
    finally:
        if process.returncode is None:  # also on Ctrl-C
            kill_group(process)
        for thread in threads:
            thread.join(timeout=5.0)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None and not any(thread.is_alive() for thread in threads[:2]):
                pipe.close()
    ended = process.returncode if in_time and not out.overflow else None
    return Finished(ended, b"".join(out.kept), b"".join(err.kept), out.overflow)


class _Reader:
    """Reads a pipe to its end and keeps a bounded part; beyond the bound the process may be killed."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        pipe: IO[bytes] | None,
        most: int = MAX_STDERR_BYTES,
        *,
        kill: bool = False,
    ) -> None:
        self._process = process
        self._pipe = pipe
        self._most = most
        self._kill = kill
        self.kept: list[bytes] = []
        self.overflow = False

    def run(self) -> None:
        size = 0
        while self._pipe is not None and (chunk := os.read(self._pipe.fileno(), _CHUNK)):
            if size + len(chunk) > self._most:
                self.overflow = True
                if self._kill:
                    kill_group(self._process)
                    return
                chunk = chunk[: self._most - size]
            self.kept.append(chunk)
            size += len(chunk)


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
