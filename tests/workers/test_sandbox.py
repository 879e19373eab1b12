"""What a stranger's file may do to the process that reads it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from edgepack.errors import DataError, ModelError, UsageError
from edgepack.workers import sandbox
from edgepack.workers.sandbox import GIB, SECONDS, Limits, limits_of, tried

LIMITS = Limits(20.0, 2**28)


def test_what_works_leaves_no_trace() -> None:
    seen: list[int] = []
    tried("a file", LIMITS, lambda: seen.append(1))
    assert not seen


def _raise(err: BaseException) -> Callable[[], object]:
    def call() -> object:
        raise err

    return call


def test_errors_are_those_of_the_copy() -> None:
    with pytest.raises(DataError, match="no samples") as caught:
        tried("a file", LIMITS, _raise(DataError("no samples", hint="give some")))
    assert caught.value.hint == "give some"


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "brings down .*SIGSEGV"),
        (lambda: os._exit(7), "exit code 7"),
        (lambda: np.ones(2**30), "more memory"),
        (_raise(IndexError("of a library")), "cannot be read: IndexError: of a library"),
        (_raise(RecursionError()), "nested too deep"),
        (_raise(KeyboardInterrupt()), "brings down"),
    ],
    ids=["crash", "exit", "memory", "library", "recursion", "interrupt"],
)
def test_what_goes_wrong_in_the_copy_is_a_message(what: Callable[[], object], says: str) -> None:
    with pytest.raises(ModelError, match=f"a file: .*{says}"):
        tried("a file", LIMITS, what)


def test_what_never_ends_is_ended() -> None:
    with pytest.raises(ModelError, match="took over 1 s") as caught:
        tried("a file", Limits(1.0, 2**28), lambda: time.sleep(600))
    assert SECONDS in (caught.value.hint or "")
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_work_that_never_ends_is_ended() -> None:
    with pytest.raises(ModelError, match="took over 1 s"):
        tried("a file", Limits(1.0, 2**28), _work_for_ever)


def _work_for_ever() -> object:
    while True:
        pass


def test_a_copy_that_hangs_on_a_lock_of_another_thread_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "STALLED_S", 0.6)
    lock, held, given_up = threading.Lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            given_up.wait()

    threading.Thread(target=hold, daemon=True).start()
    held.wait()
    threading.Timer(0.3, given_up.set).start()  # long before the second copy, whose lock is free then
    tried("a file", LIMITS, lambda: lock.acquire())
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_the_environment_raises_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    before = limits_of(10**6)
    monkeypatch.setenv(SECONDS, "100")
    monkeypatch.setenv(GIB, "3")
    after = limits_of(10**6)
    assert (after.seconds - before.seconds, after.memory_bytes - before.memory_bytes) == (80.0, 2 * 2**30)


@pytest.mark.parametrize("text", ["", "soon", "-1", "0", "nan", "inf", "1e400"])
def test_limits_are_numbers(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(GIB, text)
    with pytest.raises(UsageError, match=GIB):
        limits_of(0)
