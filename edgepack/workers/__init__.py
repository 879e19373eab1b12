"""Heavy work, spread over the processes of this machine or over the workers of a Dask cluster.

    with workers(scheduler) as executor:
        for index, result in map_tasks(executor, function, tasks, cost):
            ...

A task is a pure function of arrays and plain data, defined in a module that the worker can import; it reads no files.
Its result is the same, bit for bit, wherever it runs: BLAS works with one thread in all places. (Between CPUs for
which BLAS has different kernels the last bits may differ, as they do without any of this.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgepack.workers.tasks import Workers, map_tasks, prepare_workers, spreads
from edgepack.workers.threads import one_thread

__all__ = ["Workers", "map_tasks", "one_thread", "prepare_workers", "spreads", "workers"]


@contextmanager
def workers(scheduler: str | None = None) -> Iterator[Workers]:
    """Workers for a block of work: processes of this machine, or a Dask cluster.

    Local processes start with the first work that is worth them, and end with the block; if an error or an interrupt
    leaves it, at once.

    Args:
        scheduler: address of a Dask scheduler, "tcp://host:port". Dask has no authentication but TLS: whoever reaches
            a scheduler can run code on its workers, and whoever runs the scheduler can do so here.

    Raises:
        DeviceError: the scheduler cannot be reached, has no workers, or `distributed` is not installed.
    """
    executor: Workers
    if scheduler is None:
        from edgepack.workers.local import LocalProcesses

        executor = LocalProcesses()
    else:
        from edgepack.workers.cluster import connect

        executor = connect(scheduler)
    try:
        yield executor
    except BaseException:
        executor.stop()
        raise
    else:
        executor.shutdown()
