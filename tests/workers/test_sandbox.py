"""What a stranger's file may do to the process that reads it."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edgepack.errors import DataError, ModelError, UsageError
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


def test_what_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    made, fork = list[int](), os.fork
    monkeypatch.setattr(os, "fork", lambda: made.append(fork()) or made[-1])
    with pytest.raises(ModelError, match="took over 1 s") as caught:
        tried("a file", Limits(1.0, 2**28), lambda: time.sleep(600))
    assert SECONDS in (caught.value.hint or "")
    (copy,) = made
    with pytest.raises(ChildProcessError):
        os.waitpid(copy, os.WNOHANG)


def test_work_that_never_ends_is_ended() -> None:
    with pytest.raises(ModelError, match="took over 1 s"):
        tried("a file", Limits(1.0, 2**28), _work_for_ever)


def _work_for_ever() -> object:
    while True:
        pass


def test_a_session_that_nobody_holds_any_more_is_no_matter_of_the_copy() -> None:
    """Its end would wait there for threads that only this process has."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    gc.disable()
    try:
        garbage: list[object] = [ort.InferenceSession(made.SerializeToString(), options)]
        garbage.append(garbage)
        time.sleep(0.2)  # its threads wait for work
        del garbage
        tried("a file", Limits(5.0, 2**28), gc.collect)
    finally:
        gc.enable()


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
