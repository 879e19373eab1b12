"""The workers of a Dask cluster. A worker needs the packages of this machine in the same versions, and nothing else.

Tasks, and what they share, travel as bytes: Dask would unpack them in the scheduler, which need not have edgepack, and
on the way into a worker, which dies of it when it has not.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import edgepack
from edgepack.errors import DeviceError, StableDeviceError, TransientDeviceError, install_hint
from edgepack.workers.tasks import FLOPS_PER_S, Workers, alone, preparations

if TYPE_CHECKING:
    from distributed import Client

R = TypeVar("R")

CONNECT_S = 10.0
WORKERS_S = 10.0
"""How long to wait for the first worker, and later, when all are gone, for another."""
SEND_S = 0.5
"""Work shorter than this is not sent."""
COUNT_S = 1.0
"""How long the number of workers is taken as known."""
COMPUTED_WITH = ("numpy", "scipy", "onnxruntime")
AGAIN = "run the same command again when the cluster is back: it goes on where it was"


class Cluster(Workers):
    """A connection to a Dask scheduler. A task whose worker dies is given to another one."""

    def __init__(self, client: Client, address: str) -> None:
        self._client = client
        self._address = address
        self._executor = client.get_executor(pure=False)
        self._counted = self._deserted = 0.0
        self._count()

    def worth(self, cost: Sequence[float]) -> bool:
        """Whether it takes longer than the way there and back."""
        return sum(cost) / FLOPS_PER_S > SEND_S

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """As of any executor."""
        import dask

        # Arguments travel with their task, so that it can be given to another worker when its own dies.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}):
            future: Future[R] = self._executor.submit(fn, *args, **kwargs)
        return future

    def begin(self, function: Callable[..., R], shared: Sequence[Any], task: Sequence[Any]) -> Future[R]:
        """See `Workers`."""
        from distributed.protocol.pickle import dumps

        if time.monotonic() - self._counted > COUNT_S:
            self._count()
        return self.submit(
            _work_there(), tuple(versions().items()), dumps((function, tuple(task), preparations())), *shared
        )

    def share(self, value: Any) -> Any:
        """A Dask future of the value, which every worker holds."""
        from distributed.protocol.pickle import dumps

        return self._client.scatter([dumps(value)], broadcast=True, hash=False)[0]

    def shares_again(self) -> bool:
        """Whether the scheduler is still there: a value may die with its worker before another one holds it."""
        running: bool = self._client.status == "running"
        return running

    def check(self) -> None:
        """Raise if there have been no workers for a while."""
        self._count()
        if self._deserted and time.monotonic() - self._deserted > WORKERS_S:
            raise TransientDeviceError(f"{self._address}: all workers are gone", hint=AGAIN)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Raises:
        DeviceError: for what is the cluster's fault.
        """
        from distributed import KilledWorker
        from distributed.client import ClosedClientError
        from distributed.comm import CommClosedError

        try:
            yield
        except KilledWorker as err:
            raise StableDeviceError(
                f"{self._address}: one task has brought down {err.allowed_failures + 1} workers, the last of them "
                f"{err.last_worker.address}",
                hint="see the worker's log; a common cause is a memory limit below what the largest layer needs",
            ) from err
        except (CancelledError, asyncio.CancelledError, CommClosedError, ClosedClientError) as err:
            lost = "lost what its workers held" if self.shares_again() else "the scheduler is gone"
            raise TransientDeviceError(f"{self._address}: {lost}", hint=AGAIN) from err
        except ImportError as err:
            raise _outdated(self._address, f"cannot import what a task needs ({err})") from err

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As of any executor; closes the connection as well."""
        with suppress(OSError, asyncio.CancelledError, CancelledError):
            self._executor.shutdown(wait=wait and not cancel_futures)
            self._client.close()

    def _count(self) -> None:
        """Look who is there: workers come and go."""
        self._counted = time.monotonic()
        try:
            threads = sum(self._client.nthreads().values())
        except OSError as err:
            raise TransientDeviceError(f"{self._address}: the scheduler does not answer", hint=AGAIN) from err
        if threads:
            self._deserted = 0.0
            self.slots = self.spare = threads
        elif not self._deserted:
            self._deserted = self._counted


def connect(address: str) -> Cluster:
    """Connect to a scheduler that has workers.

    Raises:
        DeviceError: the address is malformed, nothing answers there, it is no Dask scheduler, it has no workers, or
            `distributed` is not installed here.
    """
    _check_address(address)
    try:
        from distributed import Client
    except ImportError as err:
        raise StableDeviceError(
            "a Dask scheduler needs the package distributed, which is not installed",
            hint=install_hint("cluster"),
        ) from err
    _quiet_logs()
    try:
        # In a loop of its own, and before there is a client: one that never connected does not end in peace.
        with ThreadPoolExecutor(1) as apart:
            apart.submit(asyncio.run, _knock(address)).result()
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, ImportError, MemoryError) as err:  # a reply that is not Dask's claims any size
        raise TransientDeviceError(
            f"{address}: no Dask scheduler answers there ({str(err) or 'no reply in time'})",
            hint="check the address, the firewall, and that `dask scheduler` of the same version runs",
        ) from err
    with ExitStack() as stack:
        stack.callback(client.close)
        try:
            client.wait_for_workers(1, timeout=WORKERS_S)
        except TimeoutError as err:
            hint = f"start some: dask worker {address}"
            raise TransientDeviceError(f"{address}: the scheduler has no workers", hint=hint) from err
        cluster = Cluster(client, address)
        stack.pop_all()
    return cluster


def _check_address(address: str) -> None:
    with suppress(ValueError):
        found = urlsplit(address)
        if found.scheme in ("tcp", "tls") and found.hostname and found.port and not found.path:
            return
    raise StableDeviceError(
        f"{address!r} is no address of a scheduler", hint="expected tcp://HOST:PORT, as `dask scheduler` prints it"
    )


async def _knock(address: str) -> None:
    from distributed.comm import connect
    from distributed.security import Security

    # Dask itself would wait for ever for somebody who takes the call and says nothing.
    async with asyncio.timeout(CONNECT_S):
        comm = await connect(address, timeout=CONNECT_S, **Security().get_connection_args("client"))
    await comm.close()


def _quiet_logs() -> None:
    """What goes wrong is raised here; Dask need not print it too."""
    for name in ("distributed", *(name for name in logging.root.manager.loggerDict if name.startswith("distributed."))):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@functools.cache
def versions() -> Mapping[str, str]:
    """Versions of what results depend on, of this process."""
    found = {"edgepack": edgepack.__version__, "Python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for package in COMPUTED_WITH:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def _work_there() -> Callable[..., Any]:
    """`work`, as any Python can load it: a function inside of a function travels as code, not by its module's name."""

    def edgepack_task(*args: Any) -> Any:
        from edgepack.workers.cluster import work

        return work(*args)

    return edgepack_task


def work(expected: Sequence[tuple[str, str]], call: bytes, *shared: bytes) -> Any:
    """Do a task on a worker, which may have joined long after the client.

    Args:
        expected: the client's versions.
        call: the function, its own arguments, and what is called first.
        shared: the arguments before them.

    Raises:
        DeviceError: the worker has other versions.
    """
    from distributed import get_worker
    from distributed.protocol.pickle import loads

    found = versions()
    wrong = [f"{name} {found.get(name)} instead of {wanted}" for name, wanted in expected if found.get(name) != wanted]
    if wrong:
        raise _outdated(get_worker().address, f"has {', '.join(wrong)}")
    function, task, prepare = loads(call)
    for each in prepare:
        each()
    return alone(function, *map(loads, shared), *task)


def _outdated(who: str, what: str) -> DeviceError:
    return StableDeviceError(
        f"{who}: a worker {what}", hint="install edgepack and its packages there in the versions of this machine"
    )
