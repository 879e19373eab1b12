"""Tasks on a real Dask cluster: the same bits as here, and a typed error for all that can be wrong with it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

from edgepack.errors import DataError, DeviceError, StableDeviceError, TransientDeviceError
from edgepack.workers import Workers, cluster, map_tasks, spreads, workers
from tests.workers import executor_tasks as tasks
from tests.workers.dask_cluster import OLD_EDGEPACK, WITHOUT_EDGEPACK, WORKER, DaskCluster, dask_cluster

LARGE = 1e11


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """Two workers that no test harms."""
    with dask_cluster(tmp_path_factory.mktemp("dask")) as found:
        yield found


@pytest.fixture(scope="module")
def executor(running: DaskCluster) -> Iterator[Workers]:
    with workers(running.address) as found:
        yield found


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONNECT_S", "WORKERS_S"):
        monkeypatch.setattr(cluster, name, 1.0)
    monkeypatch.setattr("edgepack.workers.tasks.CHECK_S", 0.5)


def test_both_workers_work_and_give_the_same_bits(executor: Workers, running: DaskCluster) -> None:
    given = [(seed,) for seed in range(6)]
    here = dict(map_tasks(None, tasks.decomposed, given, [LARGE] * 6))
    there = dict(map_tasks(executor, tasks.decomposed, given, [LARGE] * 6))
    for index in here:
        for a, b in zip(here[index], there[index], strict=True):
            np.testing.assert_array_equal(a, b)
    assert executor.slots == 2
    assert {pid for _, pid in map_tasks(executor, tasks.who, given, [LARGE] * 6)} <= {w.pid for w in running.workers}
    assert {t for _, found in map_tasks(executor, tasks.blas_threads, given, [LARGE] * 6) for t in found} == {1}


def test_small_work_is_not_sent(executor: Workers) -> None:
    assert not spreads(executor, [1e8] * 3)
    assert [*map_tasks(executor, tasks.who, [(0,)], [1e8])] == [(0, os.getpid())]


def test_shared_arguments_are_sent_once(executor: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []
    share = executor.share
    monkeypatch.setattr(executor, "share", lambda value: sent.append(value) or share(value))
    matrix = np.ones((300, 400))
    found = dict(map_tasks(executor, tasks.scaled, [(float(i),) for i in range(6)], [LARGE] * 6, shared=[matrix]))
    assert found == {i: 120000.0 * i for i in range(6)}
    assert len(sent) == 1


def test_a_typed_error_arrives_whole_and_ends_the_rest(executor: Workers, tmp_path: Path) -> None:
    given = [(str(tmp_path), index) for index in range(30)]
    with pytest.raises(DataError, match="layer fc1: NaN flows") as caught:
        [*map_tasks(executor, tasks.refuse, given, [LARGE] * 30)]
    assert caught.value.hint == "look for an overflow"
    assert len(list(tmp_path.iterdir())) < 10


def test_a_worker_killed_at_work_changes_nothing(tmp_path: Path) -> None:
    here = dict(map_tasks(None, tasks.decomposed, [(seed, 401) for seed in range(12)], [LARGE] * 12))
    gate = tmp_path / "gate"
    given = [(str(gate), seed, 401) for seed in range(12)]
    with dask_cluster(tmp_path) as found, workers(found.address) as executor:
        results = map_tasks(executor, tasks.decomposed_behind, given, [LARGE] * 12)
        there = dict([next(results)])
        victim = found.busy_worker()
        victim.kill()
        gate.touch()
        there |= dict(results)
        assert victim.wait() < 0
    for index in here:
        for a, b in zip(here[index], there[index], strict=True):
            np.testing.assert_array_equal(a, b)


def test_data_that_the_killed_worker_shared_is_not_lost(tmp_path: Path) -> None:
    matrix = np.ones((1000, 1000))
    with dask_cluster(tmp_path) as found, workers(found.address) as executor:
        results = map_tasks(executor, tasks.scaled, [(float(i),) for i in range(40)], [LARGE] * 40, shared=[matrix])
        first = next(results)
        found.workers[0].kill()
        assert dict([first, *results]) == {i: 1e6 * i for i in range(40)}


@pytest.mark.parametrize("after", ["sharing", "first result"])
def test_data_is_shared_again_when_its_only_holder_is_killed(
    after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker may die before what it was given has reached the others."""
    matrix, shared = np.ones((1000, 1000)), 0
    scatter = Client.scatter

    def scatter_to_one(client: Client, data: list[bytes], **_: object) -> Any:
        nonlocal shared
        there = client.scheduler_info(-1)["workers"]
        held = scatter(client, data, workers=[a for a in there if str(there[a]["name"]) == str(shared)], hash=False)
        shared += 1
        if shared == 1 and after == "sharing":
            found.workers[0].kill()
        return held

    monkeypatch.setattr(Client, "scatter", scatter_to_one)
    with dask_cluster(tmp_path) as found, workers(found.address) as executor:
        results = map_tasks(executor, tasks.scaled, [(float(i),) for i in range(40)], [LARGE] * 40, shared=[matrix])
        first = next(results)
        found.workers[0].kill()
        assert dict([first, *results]) == {i: 1e6 * i for i in range(40)}
    assert shared == 2 or after == "first result"


def test_a_task_that_kills_its_workers_is_given_up(tmp_path: Path) -> None:
    with (
        dask_cluster(tmp_path, [WORKER] * 4) as found,
        pytest.raises(StableDeviceError, match="one task has brought down 4 workers") as caught,
        workers(found.address) as executor,
    ):
        [*map_tasks(executor, tasks.die, [(0,)], [LARGE])]
    assert "memory" in str(caught.value.hint)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("whole", "says"), [(False, "all workers are gone"), (True, "the scheduler is gone")])
def test_a_cluster_that_goes_away(whole: bool, says: str, tmp_path: Path) -> None:
    with dask_cluster(tmp_path, [WORKER]) as found:
        victim = found.scheduler if whole else found.workers[0]
        with pytest.raises(TransientDeviceError, match=f"{found.address}: {says}") as caught:
            _work_until(found.address, victim.kill)
    assert "goes on where it was" in str(caught.value.hint)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("code", "says"),
    [(WITHOUT_EDGEPACK, "a worker cannot import what a task needs"), (OLD_EDGEPACK, r"edgepack 0\.0\.1 instead of")],
    ids=["none", "old"],
)
def test_a_worker_of_another_installation_is_named_and_survives(code: str, says: str, tmp_path: Path) -> None:
    with dask_cluster(tmp_path, [code]) as found:
        with pytest.raises(StableDeviceError, match=says) as caught, workers(found.address) as executor:
            [*map_tasks(executor, tasks.who, [(0,)], [LARGE])]
        assert "in the versions of this machine" in str(caught.value.hint)
        assert found.workers[0].poll() is None


@pytest.mark.usefixtures("impatient")
def test_a_scheduler_without_workers(tmp_path: Path) -> None:
    with (
        dask_cluster(tmp_path, []) as found,
        pytest.raises(TransientDeviceError, match="the scheduler has no workers") as caught,
        workers(found.address),
    ):
        pass
    assert caught.value.hint == f"start some: dask worker {found.address}"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("reply", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["none", "mute", "http"])
def test_nobody_or_somebody_else_answers(reply: bytes | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        if reply is None:
            server.close()
        elif reply:
            threading.Thread(target=_answer, args=(server, reply)).start()
        with (
            pytest.raises(TransientDeviceError, match=f"{address}: no Dask scheduler answers") as caught,
            workers(address),
        ):
            pass
    assert "dask scheduler" in str(caught.value.hint)
    assert str(caught.value).count("\n") == 0


def _answer(server: socket.socket, reply: bytes) -> None:
    caller, _ = server.accept()
    with caller:
        caller.sendall(reply)
        caller.recv(1000)


@pytest.mark.parametrize(
    "address", ["", "127.0.0.1:8786", "host", "tcp://host", "tcp://:8786", "http://host:8786", "tcp://host:port"]
)
def test_malformed_addresses(address: str) -> None:
    with pytest.raises(DeviceError, match="is no address of a scheduler") as caught, workers(address):
        pass
    assert "tcp://HOST:PORT" in str(caught.value.hint)


def test_an_interrupt_leaves_no_work_with_the_cluster(running: DaskCluster) -> None:
    from distributed import Client

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _work_until(running.address, interrupt)
    with Client(running.address, set_as_default=False) as client:
        for _ in range(40):
            left = sum(len(keys) for keys in client.processing().values())
            if not left:
                break
            threading.Event().wait(0.1)
    assert left == 0


def _work_until(address: str, event: Callable[[], None]) -> None:
    """A list of tasks that lasts for seconds; the event happens when one is done."""
    with workers(address) as executor:
        for done, _ in enumerate(map_tasks(executor, tasks.nap, [(0.3, i) for i in range(20)], [LARGE] * 20)):
            if done == 0:
                event()
