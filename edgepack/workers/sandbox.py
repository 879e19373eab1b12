"""What may crash, never end or take all memory, done first in a copy of this process that is allowed little.

A file from a stranger goes through parsers, graph optimizers and kernels that are written in C++ and cannot be stopped.
So it is read and run there once before this process does the same. A copy costs milliseconds where a fresh interpreter
would import for seconds. Linux alone has it; elsewhere all is done at once, without limits.
"""

from __future__ import annotations

import gc
import json
import os
import re
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from edgepack import errors
from edgepack.errors import EdgepackError, ModelError, UsageError

SECONDS, GIB = "EDGEPACK_LIMIT_S", "EDGEPACK_LIMIT_GIB"
"""Environment variables that raise the limits."""
DEFAULT_S, DEFAULT_GIB = 20.0, 1.0
BYTES_PER_S = 20e6
"""A large file has more time: what a slow disk gives."""
NODES_PER_S = 1000
"""Of a graph, that can be read, checked and run often enough within the time that there is."""
INPUT_SHARE = 1 / 16
"""Of memory, that the inputs of one inference may take."""
MEMORY_PER_BYTE = 16
"""Memory for each byte of the file, beside `DEFAULT_GIB`."""
MOST_REPLY = 1 << 20
BUSY = 5
"""Times the wall time of its limits that a copy may have where others keep the processors from it."""
_LOOK_S = 0.5
MORE = f"if you trust the file, allow more: {SECONDS}=300 or {GIB}=16 before the command"
_PDEATHSIG = 1


@dataclass(frozen=True)
class Limits:
    """What the copy may take beyond what this process has.

    Attributes:
        seconds: wall time, and of the processors.
        memory_bytes: of addresses.
    """

    seconds: float
    memory_bytes: int


def limits_of(file_bytes: int) -> Limits:
    """What reading a file of this size may take, unless the environment says more.

    Raises:
        UsageError: the environment holds no such number.
    """
    seconds, gib = _given(SECONDS, DEFAULT_S), _given(GIB, DEFAULT_GIB)
    return Limits(seconds + file_bytes / BYTES_PER_S, int(gib * 2**30) + MEMORY_PER_BYTE * file_bytes)


def most_nodes() -> int:
    """Nodes that a graph may have, unless the environment says more; errors as of `limits_of`."""
    return int(limits_of(0).seconds * NODES_PER_S)


def most_input_bytes() -> int:
    """Bytes that the inputs of one inference may have, unless the environment says more; errors as of `limits_of`."""
    return int(limits_of(0).memory_bytes * INPUT_SHARE)


def tried(what: str, limits: Limits, function: Callable[[], object]) -> None:
    """Call a function in a limited copy of this process, and forget what it gives.

    Args:
        what: the file, for messages.
        function: may change nothing outside of memory but files that nobody else reads.

    Raises:
        EdgepackError: what the function raised of that tree.
        ModelError: anything else that it raised; it took too long or too much memory; it brought the process down.
    """
    if sys.platform != "linux":
        return
    reading, writing = os.pipe()
    gc.freeze()  # what the copy would take for garbage may be a session, whose end waits for threads that it lacks
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: the copy needs none of them
            pid = os.fork()
        if pid == 0:
            os.close(reading)
            _in_copy(what, function, limits, writing)
    finally:
        gc.unfreeze()
    os.close(writing)
    try:
        reply = _reply(reading, pid, limits)
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    out_of_time = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
    if reply is None or (not reply and out_of_time):
        raise ModelError(f"{what}: reading it and running it once took over {limits.seconds:.0f} s", hint=MORE)
    if not reply:
        ended = os.waitstatus_to_exitcode(status)
        name = signal.Signals(-ended).name if ended < 0 else f"exit code {ended}"
        raise ModelError(
            f"{what}: it brings down the process that reads it and runs it once within "
            f"{limits.memory_bytes / 2**30:.1f} GiB ({name})",
            hint=MORE,
        )
    error = json.loads(reply)
    if error:
        raise getattr(errors, error["kind"])(error["message"], hint=error["hint"])


def translated(what: str, err: Exception) -> EdgepackError:
    """What a library raised over a file from outside, as an error that says so."""
    if isinstance(err, EdgepackError):
        return err
    if isinstance(err, MemoryError):
        return ModelError(f"{what}: it takes more memory than there is, or than it may", hint=MORE)
    if isinstance(err, RecursionError):
        return ModelError(f"{what}: it is nested too deep", hint="export the model again")
    lines = str(err).strip().splitlines() or [""]
    return ModelError(
        f"{what}: it cannot be read: {type(err).__name__}: {lines[0][:300]}",
        hint="export the model again; where other programs run it, report it with what -v shows",
    )


def out_of_memory(message: str) -> bool:
    """Whether a runtime says that it could not have the memory that it asked for."""
    return re.search(r"alloc|out of memory", message, re.IGNORECASE) is not None


def _given(name: str, default: float) -> float:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < 1e6:
        raise UsageError(f"{name}={text[:40]}: expected a number above 0")
    return found


def _in_copy(what: str, function: Callable[[], object], limits: Limits, writing: int) -> NoReturn:
    """Never comes back: nothing that this process would do at its end is done twice."""
    try:
        reply: dict[str, str | None] = {}
        try:
            _hold_to(limits)
            function()
        except Exception as err:  # noqa: BLE001 - not hidden: it is raised in the process that asked
            error = translated(what, err)
            kind = next(kind.__name__ for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)
            reply = {"kind": kind, "message": error.message, "hint": error.hint}
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(json.dumps(reply).encode())
    finally:
        os._exit(0)


def _hold_to(limits: Limits) -> None:
    import ctypes
    import resource

    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    sink = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(sink, stream)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    with open("/proc/self/statm", encoding="ascii") as file:
        addresses = int(file.read().split()[0]) * resource.getpagesize() + limits.memory_bytes
    _lower(resource.RLIMIT_AS, addresses)
    _lower(resource.RLIMIT_CPU, int(limits.seconds) + 1)
    _lower(resource.RLIMIT_CORE, 0)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def _lower(kind: int, value: int) -> None:
    import resource

    soft, hard = resource.getrlimit(kind)
    value = min([value, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)])
    resource.setrlimit(kind, (value, hard))


def _reply(reading: int, pid: int, limits: Limits) -> bytes | None:
    """All that was said until the copy ended; None where it did not in time."""
    said, start = b"", time.monotonic()
    while True:
        if select.select([reading], [], [], min(_LOOK_S, limits.seconds))[0]:
            more = os.read(reading, MOST_REPLY)
            if not more:
                return said
            said += more
            continue
        worked_s, sleeps = _work(pid)
        is_kept_waiting = worked_s < limits.seconds / 2 and not sleeps
        if time.monotonic() - start > limits.seconds * (BUSY if is_kept_waiting else 1):
            return None


def _work(pid: int) -> tuple[float, bool]:
    """Seconds of processor that a process has had, and whether all its threads sleep (neither run, nor read a disk)."""
    states = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            states.add(_stat(thread)[0])
    _, *fields = _stat(Path(f"/proc/{pid}"))
    return (int(fields[10]) + int(fields[11])) / os.sysconf("SC_CLK_TCK"), states <= {"S", "Z"}


def _stat(folder: Path) -> list[str]:
    """What `proc(5)` has in `stat` from the state on: the name before may hold blanks and parentheses."""
    return (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
