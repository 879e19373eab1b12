"""Tasks here and in local processes: the same bits, typed errors, and no process left behind."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from edgepack import errors
from edgepack.errors import BudgetError, DataError, EdgepackError, LayerError
from edgepack.workers import Workers, map_tasks, one_thread, spreads, workers
from edgepack.workers.local import LocalProcesses
from tests.workers import executor_tasks as tasks

LARGE = 1e11
SECONDS_OF_WORK = [LARGE, LARGE]


@pytest.fixture(scope="module")
def local() -> Iterator[LocalProcesses]:
    """Two processes, started once for all tests that leave them whole."""
    with workers() as executor:
        assert isinstance(executor, LocalProcesses)
        executor.slots = 2
        yield executor
    assert executor.processes == ()


def run(executor: Workers | None, function: object, *args: tuple[object, ...]) -> dict[int, object]:
    return dict(map_tasks(executor, function, args, [LARGE] * len(args)))  # type: ignore[arg-type]


def test_small_work_and_work_without_an_executor_stays_here() -> None:
    with workers() as executor:
        small = [*map_tasks(executor, tasks.who, [(i,) for i in range(5)], [1e6] * 5)]
        single = [*map_tasks(executor, tasks.who, [(0,)], [LARGE])]
        assert isinstance(executor, LocalProcesses)
        assert executor.processes == ()
    assert small == [(i, os.getpid()) for i in range(5)]
    assert single == [(0, os.getpid())]
    assert [*map_tasks(None, tasks.who, [(0,), (1,)], [LARGE, LARGE])] == [(0, os.getpid()), (1, os.getpid())]


def test_what_is_worth_a_start() -> None:
    executor = LocalProcesses(slots=4)
    assert spreads(executor, [LARGE] * 2)
    assert not spreads(executor, [LARGE]), "one task takes as long anywhere"
    assert not spreads(executor, [1e9] * 4)
    assert not spreads(executor, [LARGE, 1e9]), "the rest is soon done"
    assert not spreads(executor, [])
    assert not spreads(LocalProcesses(slots=1), [LARGE] * 9)
    assert not spreads(None, [LARGE] * 9)


def test_large_work_goes_to_other_processes_largest_first(
    local: LocalProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    def begin(function: object, shared: object, task: tuple[float | int, ...]) -> object:
        begun.append(int(task[-1]))
        return LocalProcesses.begin(local, function, shared, task)  # type: ignore[arg-type]

    monkeypatch.setattr(local, "begin", begin)
    costs = [LARGE, 3 * LARGE, 2 * LARGE, LARGE]
    found = dict(map_tasks(local, tasks.nap, [(0.01, i) for i in range(4)], costs))
    assert begun == [1, 2, 0, 3]
    assert [found[i][0] for i in range(4)] == [0, 1, 2, 3]
    pids = set(run(local, tasks.who, (0,), (1,)).values())
    assert os.getpid() not in pids
    assert pids <= {process.pid for process in local.processes}


def test_the_same_bits_here_and_there(local: LocalProcesses) -> None:
    given = [(seed,) for seed in range(4)]
    here, there = run(None, tasks.decomposed, *given), run(local, tasks.decomposed, *given)
    for index in here:
        for a, b in zip(here[index], there[index], strict=True):  # type: ignore[call-overload]
            np.testing.assert_array_equal(a, b)


def test_blas_has_one_thread_in_tasks_and_its_own_afterwards(local: LocalProcesses) -> None:
    before = tasks.blas_threads()
    assert run(None, tasks.blas_threads, (0,)) == {0: {1}}
    assert run(local, tasks.blas_threads, (0,), (1,)) == {0: {1}, 1: {1}}
    with one_thread(), ThreadPoolExecutor(4) as threads:
        # Tasks that overlap in one process: the first to end must not lift the limit for the others.
        assert [*threads.map(_held, [0.05, 0.01, 0.0, 0.02] * 3)] == [{1}] * 12
        assert tasks.blas_threads() == {1}
    assert tasks.blas_threads() == before


def _held(seconds: float) -> set[int]:
    with one_thread():
        time.sleep(seconds)
        return tasks.blas_threads()


def test_shared_arguments_come_first(local: LocalProcesses) -> None:
    matrix = np.ones((30, 40))
    for executor in (None, local):
        found = dict(map_tasks(executor, tasks.scaled, [(1.0,), (2.0,)], SECONDS_OF_WORK, shared=[matrix]))
        assert found == {0: 1200.0, 1: 2400.0}


def test_a_typed_error_arrives_whole_and_ends_the_rest(local: LocalProcesses, tmp_path: Path) -> None:
    given = [(str(tmp_path), index) for index in range(30)]
    with pytest.raises(DataError, match="layer fc1: NaN flows") as caught:
        [*map_tasks(local, tasks.refuse, given, [LARGE] * 30)]
    assert caught.value.hint == "look for an overflow"
    assert caught.value.message == "layer fc1: NaN flows"
    assert "executor_tasks.py" in str(caught.value.__cause__), "where it happened"
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) < 8


KINDS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, EdgepackError) and value is not LayerError
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_travels(kind: type[EdgepackError]) -> None:
    found = copy.copy(kind("what", hint="how"))  # by the same protocol as pickle
    assert (type(found), found.message, found.hint, str(found)) == (kind, "what", "how", "what")
    assert copy.copy(BudgetError("what")).hint is None


def test_an_error_of_layers_travels_with_them() -> None:
    found = copy.copy(LayerError({"fc1": "why", "fc2": "because"}, hint="how"))
    assert (found.layers, found.hint) == ({"fc1": "why", "fc2": "because"}, "how")
    assert found.message == str(found) == "fc1: why; fc2: because"


def test_few_tasks_are_taken_at_a_time(local: LocalProcesses) -> None:
    taken: list[int] = []

    class Listed(list[tuple[int]]):
        def __getitem__(self, index: int) -> tuple[int]:  # type: ignore[override]
            taken.append(index)
            return super().__getitem__(index)

    results = map_tasks(local, tasks.who, Listed((i,) for i in range(40)), [LARGE] * 40)
    next(results)
    assert len(set(taken)) <= local.slots + local.spare
    assert len(dict(results)) == 39


def test_tasks_share_the_memory(local: LocalProcesses) -> None:
    whole = [local.memory_bytes] * 3
    found = dict(map_tasks(local, tasks.nap, [(0.1, i) for i in range(3)], [LARGE] * 3, memory=whole))
    spans = sorted(span for _, *span in found.values())
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_what_a_dead_process_took_with_it_is_done_here() -> None:
    given = [(os.getpid(), index) for index in range(6)]
    with workers() as executor:
        with pytest.warns(RuntimeWarning, match=r"a local process died, .* of 6 tasks are done again"):
            found = dict(map_tasks(executor, tasks.die_unless, given, [LARGE] * 6))
        assert found == {i: i for i in range(6)}
        assert not spreads(executor, [LARGE] * 6), "nothing more for the broken pool"
        assert set(run(executor, tasks.who, (0,), (1,)).values()) == {os.getpid()}


SCRIPT = """
import sys
from tests.workers import executor_tasks
from edgepack.workers import map_tasks, workers
with open(sys.argv[1] + "/starts", "a") as log:
    log.write("started\\n")
try:
    with workers() as executor:
        executor.slots = 2
        for _ in map_tasks(executor, executor_tasks.sign_in, [(sys.argv[1], i) for i in range(4)], [1e12] * 4):
            pass
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_process_outlives_a_script_that_is_stopped(how: signal.Signals, code: int, tmp_path: Path) -> None:
    """A script without a guard around its main part, stopped at work."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            pids = _signed_in(tmp_path, 2)
            started = time.monotonic()
            if how == signal.SIGINT:
                os.killpg(process.pid, how)  # as a terminal does: to all of them
            else:
                process.send_signal(how)
            errors = process.communicate(timeout=20)[1]
        finally:
            process.kill()
    assert process.returncode == code
    assert how == signal.SIGKILL or errors == ""
    assert time.monotonic() - started < 10
    assert (tmp_path / "starts").read_text() == "started\n"
    _assert_gone(pids)


def _signed_in(folder: Path, count: int) -> list[int]:
    for _ in range(600):
        pids = [int(path.stem) for path in folder.glob("*.pid")]
        if len(pids) == count:
            return pids
        time.sleep(0.05)
    raise TimeoutError("the processes have not started")


def _assert_gone(pids: list[int]) -> None:
    for _ in range(100):
        if not any(_runs(pid) for pid in pids):
            return
        time.sleep(0.05)
    raise AssertionError(f"still there: {[pid for pid in pids if _runs(pid)]}")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
