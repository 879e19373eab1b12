"""A real Dask cluster on this machine: a scheduler and its workers, each a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SCHEDULER = "import sys; sys.modules['edgepack'] = None; from distributed.cli.dask_scheduler import main; main()"
"""A scheduler on a machine without edgepack."""
WORKER = "from distributed.cli.dask_worker import main; main()"
WITHOUT_EDGEPACK = "import sys; sys.modules['edgepack'] = None; " + WORKER
OLD_EDGEPACK = "import edgepack; edgepack.__version__ = '0.0.1'; " + WORKER


@dataclass(frozen=True)
class DaskCluster:
    """Address of the scheduler, and the processes."""

    address: str
    scheduler: subprocess.Popen[bytes]
    workers: Sequence[subprocess.Popen[bytes]]

    def busy_worker(self, after: threading.Event | None = None) -> subprocess.Popen[bytes]:
        """A worker that has a task in hand; not looked for before the event."""
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            names = {address: worker["name"] for address, worker in client.scheduler_info(-1)["workers"].items()}
            if after is not None:
                after.wait(60)
            for _ in range(1000):
                busy = [names[address] for address, tasks in client.processing().items() if tasks]
                if busy:
                    return self.workers[int(busy[0])]
                time.sleep(0.002)
        raise TimeoutError("no worker is busy")


@contextmanager
def dask_cluster(folder: Path, workers: Sequence[str] = (WORKER, WORKER)) -> Iterator[DaskCluster]:
    """A scheduler on a free port and workers of one thread each, which nobody starts again; all end with the block, and
    soon after a test run that was killed.

    Args:
        workers: the Python code of each.
    """
    file = folder / "scheduler.json"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    started: list[subprocess.Popen[bytes]] = []
    with (folder / "log").open("wb") as log:

        def start(code: str, *args: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-c", code, *args, "--no-dashboard"]
            process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=folder, start_new_session=True)
            started.append(process)
            return process

        try:
            start(
                SCHEDULER,
                "--host",
                "127.0.0.1",
                "--port",
                "0",
                "--no-show",
                "--idle-timeout",
                "120s",
                "--scheduler-file",
                str(file),
            )
            address = _address(file)
            for number, code in enumerate(workers):
                start(
                    code, address, "--no-nanny", "--nthreads", "1", "--name", str(number), "--local-directory", folder
                )
            _wait_for(address, len(workers))
            yield DaskCluster(address, started[0], started[1:])
        finally:
            for process in reversed(started):
                process.kill()
                process.wait()


def _address(file: Path) -> str:
    for _ in range(600):
        if file.is_file() and (content := file.read_text()).endswith("}"):
            return str(json.loads(content)["address"])
        time.sleep(0.05)
    raise TimeoutError("the scheduler has not started")


def _wait_for(address: str, workers: int) -> None:
    from distributed import Client

    if workers:
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=60)
