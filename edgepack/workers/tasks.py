"""A list of independent tasks, run here or by workers, largest first, their results as they come."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

from edgepack.workers.threads import one_thread

R = TypeVar("R")

FLOPS_PER_S = 2e10
"""What one core does in double precision, roughly: turns the cost of tasks into time."""
CHECK_S = 5.0
"""After this long without a result, ask whether there is anybody left who works."""
SHARES = 4
"""How often what tasks share is given out before it is lost for good."""


_preparations: dict[tuple[Callable[..., object], tuple[Any, ...]], None] = {}


def prepare_workers(function: Callable[..., object], *args: Any) -> None:
    """Have every worker that starts from now on call `function(*args)` before its first task.

    Args:
        function: defined at the top level of a module that workers can import; a second call of it changes nothing.
        args: plain data.
    """
    _preparations[function, args] = None


def preparations() -> tuple[Callable[[], object], ...]:
    """What a worker is to call, in the order in which it was asked for."""
    return tuple(partial(function, *args) for function, args in _preparations)


class Workers(Executor):
    """An executor that knows how much it can do at once, and what it costs to ask it.

    Attributes:
        slots: tasks that run at the same time.
        spare: further tasks that wait at the workers, so that none is idle while a result travels.
        memory_bytes: what running tasks may need together.
    """

    slots: int = 1
    spare: int = 1
    memory_bytes: float = float("inf")

    def worth(self, cost: Sequence[float]) -> bool:
        """Whether tasks of these costs are done sooner by the workers than one after another here."""
        raise NotImplementedError

    def begin(self, function: Callable[..., R], shared: Sequence[Any], task: Sequence[Any]) -> Future[R]:
        """Start `function(*shared, *task)` with BLAS held to one thread."""
        raise NotImplementedError

    def share(self, value: Any) -> Any:
        """Something to pass to `begin` in place of a value that many tasks need."""
        return value

    def shares_again(self) -> bool:
        """Whether tasks that ended as cancelled can begin anew, once what they share has been given out again."""
        return False

    def check(self) -> None:
        """Raise if what has begun will never end."""

    def explaining(self) -> AbstractContextManager[None]:
        """Turns failures of the workers, not of the tasks, into typed errors."""
        return nullcontext()

    def stop(self) -> None:
        """End at once; what has begun is lost."""
        self.shutdown(wait=False, cancel_futures=True)


def spreads(executor: Workers | None, cost: Sequence[float]) -> bool:
    """Whether `map_tasks` would give tasks of these costs to the workers."""
    return executor is not None and executor.worth(cost)


def map_tasks(
    executor: Workers | None,
    function: Callable[..., R],
    tasks: Sequence[tuple[Any, ...]],
    cost: Sequence[float],
    *,
    shared: Sequence[Any] = (),
    memory: Sequence[float] | None = None,
) -> Iterator[tuple[int, R]]:
    """Run `function(*shared, *task)` for every task; (index, result) as they finish.

    Work too small to be worth sending, and all work without an executor, runs here, in the order of the tasks. Only as
    many tasks are sent as keep the workers busy, so a large list is never in memory twice. If a local process dies,
    what it took with it is done again here.

    Args:
        function: pure, defined at the top level of a module that workers can import.
        tasks: its arguments: arrays and plain data. Workers may find the arrays read-only.
        cost: of each task, in floating-point operations; a rough estimate will do. 2e10 are about a second.
        shared: first arguments of every task, sent to each Dask worker once.
        memory: bytes that each task needs while it runs; local processes then share half of the machine's memory.

    Raises:
        DeviceError: the workers are gone, or differ from this machine in the versions of what they compute with.
        Exception: what a task raised; tasks that have not begun by then never do.
    """
    if executor is None or not executor.worth(cost):
        left: Sequence[int] = range(len(tasks))
    else:
        left = yield from _spread(executor, function, tasks, cost, shared, memory or [0.0] * len(tasks))
    for index in left:
        yield index, alone(function, *shared, *tasks[index])


def alone(function: Callable[..., R], *args: Any) -> R:
    """`function(*args)` with BLAS held to one thread."""
    with one_thread():
        return function(*args)


def _spread(
    executor: Workers,
    function: Callable[..., R],
    tasks: Sequence[tuple[Any, ...]],
    cost: Sequence[float],
    shared: Sequence[Any],
    memory: Sequence[float],
) -> Generator[tuple[int, R], None, Sequence[int]]:
    """Results of what the workers did; returns what they left undone because a process died."""
    waiting = deque(sorted(range(len(tasks)), key=lambda index: -cost[index]))
    running: dict[Future[R], int] = {}
    try:
        with executor.explaining():
            for shares_left in reversed(range(SHARES)):
                try:
                    yield from _worked_off(executor, function, tasks, shared, memory, waiting, running)
                    break
                except CancelledError:  # the only worker that held what they share has died
                    if not shares_left or not executor.shares_again():
                        raise
                    _take_back(running, waiting)
    except BrokenExecutor:
        undone = sorted([*running.values(), *waiting])
        warnings.warn(
            f"a local process died, perhaps for lack of memory; {len(undone)} of {len(tasks)} tasks are done again, "
            "one after another",
            RuntimeWarning,
            stacklevel=3,
        )
        running.clear()
        return undone
    finally:
        for future in running:
            future.cancel()
    return []


def _worked_off(
    executor: Workers,
    function: Callable[..., R],
    tasks: Sequence[tuple[Any, ...]],
    shared: Sequence[Any],
    memory: Sequence[float],
    waiting: deque[int],
    running: dict[Future[R], int],
) -> Iterator[tuple[int, R]]:
    """Results of the waiting tasks as they come, all of them with what they share given out once."""
    given = [executor.share(value) for value in shared]
    while waiting or running:
        while waiting and _fits(executor, waiting[0], list(running.values()), memory):
            running[executor.begin(function, given, tasks[waiting[0]])] = waiting[0]
            waiting.popleft()
        done = wait(running, timeout=CHECK_S, return_when=FIRST_COMPLETED).done
        if not done:
            executor.check()
        for future in done:
            result = future.result()
            yield running.pop(future), result


def _take_back(running: dict[Future[R], int], waiting: deque[int]) -> None:
    """Let what is running wait again, in front."""
    for future in running:
        future.cancel()
    waiting.extendleft(reversed(running.values()))
    running.clear()


def _fits(executor: Workers, index: int, running: Sequence[int], memory: Sequence[float]) -> bool:
    if len(running) >= executor.slots + executor.spare:
        return False
    return not running or memory[index] + sum(memory[i] for i in running) <= executor.memory_bytes
