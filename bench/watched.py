"""A command in a fresh process: how long it took, and what it and its children held at most."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL_S = 0.05
NEW_HIGH_BYTES = 4_000_000
PROC = Path("/proc")


@dataclass(frozen=True)
class Watched:
    """One finished command.

    Attributes:
        seconds: wall time.
        peak_bytes: most that the process and all its descendants held at one time, a page that they share counted once
            (PSS). Sampled, so that a short spike can be missed, but never less than `largest_peak_bytes`.
        largest_peak_bytes: VmHWM of the largest of them: the kernel's own high-water mark, which misses nothing.
        stdout: as text.
    """

    seconds: float
    peak_bytes: int
    largest_peak_bytes: int
    stdout: str


def run_watched(command: Sequence[str], *, cwd: Path, environment: Mapping[str, str]) -> Watched:
    """Run a command to its end and watch its memory.

    Raises:
        RuntimeError: it failed; the message ends with what it wrote to stderr.
    """
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=cwd, env=dict(environment), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
        )
        memory = _Memory(process.pid)
        try:
            while process.poll() is None:
                memory.sample()
                time.sleep(INTERVAL_S)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
        seconds = time.perf_counter() - start
        stdout.seek(0)
        stderr.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {stderr.read()[-2000:]}")
        # A lone process can only have held more than the samples saw, and shares pages with strangers.
        return Watched(seconds, max(memory.peak, memory.largest), memory.largest, stdout.read())


def fastest_s(command: Sequence[str], *, times: int) -> float:
    """Least wall time of several fresh processes, seconds: what the machine does when nothing else disturbs it."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def edgepack_command() -> str:
    """The console script beside the running interpreter: what a user starts."""
    return str(Path(sys.executable).with_name("edgepack"))


class _Memory:
    """High-water marks of a process and its descendants, sampled at a small price.

    PSS makes the kernel walk every page of a process, milliseconds that the command under watch would pay for. So it
    is read only when the plain sum of resident pages, which is cheap and never less, reaches a new high.
    """

    def __init__(self, root: int) -> None:
        self.peak = 0
        self.largest = 0
        self._root = root
        self._highest = 0

    def sample(self) -> None:
        tree = _tree(self._root)
        fields = [_kilobytes(pid, "status") for pid in tree]
        self.largest = max([self.largest, *(field.get("VmHWM", 0) for field in fields)])
        resident = sum(field.get("VmRSS", 0) for field in fields)
        if resident > self._highest + NEW_HIGH_BYTES:
            self._highest = resident
            self.peak = max(self.peak, sum(_kilobytes(pid, "smaps_rollup").get("Pss", 0) for pid in tree))


def _tree(root: int) -> list[int]:
    """The process and all its descendants, by their parents."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            children.setdefault(_parent(entry), []).append(int(entry.name))
    found, left = [], [root]
    while left:
        pid = left.pop()
        found.append(pid)
        left += children.get(pid, [])
    return found


def _parent(entry: Path) -> int:
    try:
        # The name in brackets may hold spaces and brackets itself.
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _kilobytes(pid: int, file: str) -> dict[str, int]:
    """Bytes of every field in kB of a process's file; empty once it has ended."""
    try:
        lines = (PROC / str(pid) / file).read_text().splitlines()
    except OSError:
        return {}
    return {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
