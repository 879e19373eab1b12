"""Processes of this machine: started when there is work worth a start, never left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any, TypeVar

from edgepack.lifeline import end_with
from edgepack.workers.tasks import FLOPS_PER_S, Workers, alone, preparations

R = TypeVar("R")

START_S = 1.5
"""What must be saved before processes are started: each imports Python, numpy and scipy first."""
SEND_S = 0.1
"""What must be saved once they run: arguments and results are copied."""


class LocalProcesses(Workers):
    """A pool of as many processes as there are cores for this one."""

    def __init__(self, slots: int | None = None) -> None:
        self.slots = slots or _cores()
        self.memory_bytes = _physical_memory() / 2
        self._context = _Spawn()
        self._pool: ProcessPoolExecutor | None = None
        self._broken = False

    @property
    def processes(self) -> tuple[SpawnProcess, ...]:
        """Those that run."""
        return tuple(process for process in self._context.started if process.is_alive())

    def worth(self, cost: Sequence[float]) -> bool:
        """Whether the time saved exceeds that of the start."""
        if self._broken or not cost:
            return False
        saved_s = (sum(cost) - max(max(cost), sum(cost) / self.slots)) / FLOPS_PER_S
        return saved_s > (START_S if self._pool is None else SEND_S)

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """As of any executor; the first call starts the pool."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.slots, mp_context=self._context, initializer=_begin_worker, initargs=preparations()
            )
        return self._pool.submit(fn, *args, **kwargs)

    def begin(self, function: Callable[..., R], shared: Sequence[Any], task: Sequence[Any]) -> Future[R]:
        """See `Workers`."""
        return self.submit(alone, function, *shared, *task)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """A pool with a dead process takes no more work; what is left is done by the caller."""
        try:
            yield
        except BrokenProcessPool:
            self._broken = True
            raise

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As of any executor."""
        if self._pool is not None:
            self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def stop(self) -> None:
        """Kill the processes: a task in numpy or onnxruntime cannot be asked to stop."""
        for process in self.processes:
            process.kill()
        self.shutdown(cancel_futures=True)


class _Process(SpawnProcess):
    """A process that does not run the caller's main module again: no task is defined there, and a script without
    `if __name__ == "__main__"` would start over in each of them.
    """

    def start(self) -> None:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            with _interrupts_held():
                super().start()
        finally:
            sys.modules["__main__"] = main


class _Spawn(SpawnContext):
    """Fresh interpreters, never forks: this process may hold locks in threads of BLAS or onnxruntime."""

    def __init__(self) -> None:
        self.started: list[SpawnProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]
        process = _Process(*args, **kwargs)
        self.started.append(process)
        return process


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """What starts inside never hears Ctrl-C; this thread hears it afterwards."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(*prepare: Callable[[], object]) -> None:
    """Leave Ctrl-C to the parent, and end when it does, however that happens; then call what tasks need first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        end_with(parent.sentinel)
    threading.Thread(target=_end_with_parent, daemon=True).start()  # where there is no such signal, or it came before
    for function in prepare:
        function()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _physical_memory() -> float:
    if sys.platform == "win32":
        return float("inf")
    return float(os.sysconf("SC_PAGE_SIZE")) * float(os.sysconf("SC_PHYS_PAGES"))
