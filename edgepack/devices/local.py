"""This machine as a device: the runner in a fresh process of its own group, none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgepack.devices.device import EVERY_MODE, Job, last_lines, read_reply
from edgepack.errors import StableDeviceError, TransientDeviceError
from edgepack.workspace import shipped

PROBE_TIMEOUT_S = 300.0

MAX_STDOUT_BYTES = 64 << 20
MAX_STDERR_BYTES = 64 << 10
_CHUNK = 1 << 16


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
            process = subprocess.Popen(
                [*self._python, str(file), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env=self._environment,
            )
        except OSError as err:
            raise StableDeviceError(f"{what}: cannot start {self._python[0]}: {err.strerror}") from err
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as err:
            kill_group(process)
            tail = last_lines(process.communicate()[1])
            raise TransientDeviceError(
                f"{what}: no answer within {timeout_s:.0f} s, killed{tail}", hint="the machine may be busy; try again"
            ) from err
        finally:
            if process.returncode is None:  # Ctrl-C or another error in the middle
                kill_group(process)
                process.communicate()
        return read_reply(what, process.returncode, stdout, stderr)


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
