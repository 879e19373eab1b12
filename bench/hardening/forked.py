"""Commands in forks of a process that has imported everything: a start costs milliseconds where Python's takes seconds.

What is tried is the real entry point, `edgepack.cli.main`, with its own arguments, streams, folder and limits.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from hardening.case import Case, Outcome

LIMIT_S = 30.0
LIMIT_BYTES = 2 * 10**9
"""What a wrong input may take: more is a hang."""
ADDRESSES = 24 * 2**30
"""Of a child's RLIMIT_AS: far beyond what counts as too much, so that the machine survives what is found."""
SHOWN = 2000
_NEW_MOUNTS, _READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 0x20000, 1, 32, 4096, 16384, 1 << 18
"""Of Linux's `sched.h` and `mount.h`."""


def import_all(program: Path) -> None:
    """What the commands import sooner or later, and no thread is started by.

    Args:
        program: a sound one, whose reading imports much.
    """
    import ai_edge_litert.interpreter
    import onnx
    import onnx_ir
    import onnxruntime
    import pydantic
    import torch.export
    import yaml

    from edgepack.sources.keras import import_keras
    from edgepack.torchgraph import load_program

    import_keras()
    load_program(program)
    assert all((ai_edge_litert.interpreter, onnx, onnx_ir, onnxruntime, pydantic, torch.export, yaml))


def run(case: Case, folder: Path, environment: Mapping[str, str]) -> Outcome:
    """Run one command in a folder of its own, which is gone afterwards."""
    own = Path(tempfile.mkdtemp(dir=folder, prefix="case-"))
    arguments = [argument.replace("{out}", str(own / "out")) for argument in case.arguments]
    environment = {**environment, **case.environment}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        if case.shell is not None:
            pid = _shell(arguments, case.shell, own, environment, said.fileno())
        else:
            sys.stdout.flush()
            sys.stderr.flush()
            pid = os.fork()
            if pid == 0:
                _child(arguments, own, environment, said.fileno())
        code, peak = _waited(pid, start + LIMIT_S)
        seconds = time.perf_counter() - start
        size = said.seek(0, os.SEEK_END)
        said.seek(max(size - SHOWN, 0))
        text = said.read().decode(errors="replace")
    shutil.rmtree(own, ignore_errors=True)
    return Outcome(case, code, seconds, peak, text)


def _child(arguments: list[str], folder: Path, environment: Mapping[str, str], said: int) -> None:
    """Never comes back."""
    code = 121
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        _fence(folder.parent)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.argv = ["edgepack", *arguments]
        tempfile.tempdir = None
        from edgepack.cli import main

        try:
            main()
            code = 0
        except SystemExit as err:
            code = err.code if isinstance(err.code, int) else int(err.code is not None)
    except BaseException:  # noqa: BLE001
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        os._exit(code)


def _fence(folder: Path) -> None:
    """For root, who may replace `/dev/null` by a page: all but a folder is read-only in this process from here on.

    Raises:
        OSError: the system does not let it.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    own = os.fsencode(folder)
    done = libc.unshare(_NEW_MOUNTS) == 0 and all(
        libc.mount(source, target, None, flags, None) == 0
        for source, target, flags in (
            (None, b"/", _RECURSIVE | _PRIVATE),
            (own, own, _BIND),
            (None, b"/", _REMOUNT | _BIND | _READ_ONLY),
            (None, b"/dev", _REMOUNT | _BIND | _READ_ONLY),
        )
    )
    if not done:
        raise OSError(ctypes.get_errno(), "wrong inputs are not run as root where nothing holds them back")


def _shell(arguments: list[str], shell: str, folder: Path, environment: Mapping[str, str], said: int) -> int:
    """The installed command in a shell that gives its own exit code, whatever stands behind it in a pipe."""
    import shlex

    command = shlex.join([str(Path(sys.executable).with_name("edgepack")), *arguments])
    script = f"set -o pipefail; {command} {shell}"
    return subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=said,
        start_new_session=True,
    ).pid


def _waited(pid: int, deadline: float) -> tuple[int | None, int]:
    """Exit code and most resident bytes; whatever still runs of its group is ended."""
    handle = os.pidfd_open(pid)
    ended = bool(select.select([handle], [], [], max(deadline - time.perf_counter(), 0.0))[0])
    os.close(handle)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status) if ended else None, usage.ru_maxrss * 1024
