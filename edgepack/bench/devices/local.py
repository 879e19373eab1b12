"""This machine as a device: the runner in a fresh process of its own group."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgepack.bench.devices.device import EVERY_MODE, Job
from edgepack.bench.devices.process import kill_group
from edgepack.bench.devices.reply import last_lines, read_reply
from edgepack.errors import StableDeviceError, TransientDeviceError
from edgepack.workspace import shipped

PROBE_TIMEOUT_S = 300.0


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
