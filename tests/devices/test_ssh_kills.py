"""Over a real sshd: programs that are killed on the device, and that nothing is left of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgepack.devices.device import Job
from edgepack.devices.remote import RemoteDevice
from edgepack.errors import DeviceError, StableDeviceError, TransientDeviceError
from tests.devices import sshd

pytestmark = pytest.mark.system
CHILD = "sleep 600 &\necho waiting >&2"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[sshd.Rig]:
    with sshd.rig(tmp_path) as made:
        yield made


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def start(rig: sshd.Rig, pool: ThreadPoolExecutor, device: RemoteDevice, model: Path) -> Future[Mapping[str, Any]]:
    future = pool.submit(device.run, Job("latency", "onnx", device.push(model)))
    sshd.until("the job", lambda: len(rig.runs()) or future.done())
    return future


def pid_of(rig: sshd.Rig, words: str) -> int:
    """Of the process of the device whose command line starts like this."""
    return sshd.until(
        words, lambda: next((pid for pid, line in rig.machine.processes().items() if line.startswith(words)), 0)
    )


def failure(future: Future[Mapping[str, Any]], kind: type[DeviceError]) -> DeviceError:
    with pytest.raises(kind) as caught:
        future.result(90)
    assert type(caught.value) is kind
    return caught.value


def finish(rig: sshd.Rig, device: RemoteDevice) -> None:
    device.close()
    assert rig.machine.jobs() == []
    rig.machine.assert_clean()


def test_a_runner_that_is_killed_as_for_want_of_memory(
    rig: sshd.Rig, pool: ThreadPoolExecutor, onnx_model: Path
) -> None:
    device = rig.device(python=rig.stand_in(f"{CHILD}\n{sshd.WAIT}"))
    future = start(rig, pool, device, onnx_model)
    os.kill(pid_of(rig, f"/bin/sh {rig.machine.folder}/python"), signal.SIGKILL)
    error = failure(future, TransientDeviceError)
    assert error.message.startswith(
        "latency of mlp.onnx on device: the process died of SIGKILL; last lines on stderr: waiting"
    )
    assert error.hint == "often the kernel ended it for want of memory; see `dmesg`"
    finish(rig, device)


def test_a_runner_that_really_runs_out_of_memory(rig: sshd.Rig, onnx_model: Path) -> None:
    python = Path(sshd.PROJECT_PATH.split(":")[0], "python")
    limited = sshd.program(rig.machine.folder, "python", f'ulimit -v 150000\nexec {python} "$@"\n')
    device = rig.device(python=str(limited))
    with pytest.raises(StableDeviceError) as caught:
        device.run(Job("latency", "onnx", device.push(onnx_model)))
    assert caught.value.message.startswith("latency of mlp.onnx on device: ")
    finish(rig, device)


def test_all_of_a_job_is_killed(rig: sshd.Rig, pool: ThreadPoolExecutor, onnx_model: Path) -> None:
    """The shell around the job as well, so that nobody writes down how it ended."""
    device = rig.device(python=rig.stand_in(f"{CHILD}\n{sshd.WAIT}"))
    future = start(rig, pool, device, onnx_model)
    rig.machine.kill(pid for pid, line in rig.machine.processes().items() if " attend " not in line)
    error = failure(future, TransientDeviceError)
    assert error.message == "latency of mlp.onnx on device: the process is gone and left no answer"
    assert "`dmesg` on the device" in (error.hint or "")
    finish(rig, device)


@pytest.mark.parametrize("words", ["sh {root}/device-", "timeout "])
def test_only_what_stands_around_the_job_is_killed(
    rig: sshd.Rig, pool: ThreadPoolExecutor, onnx_model: Path, words: str
) -> None:
    """What it leaves behind would disturb all that is measured after it."""
    device = rig.device(python=rig.stand_in(f"{CHILD}\n{sshd.WAIT}"))
    future = start(rig, pool, device, onnx_model)
    root = rig.machine.cache / "edgepack-device"
    start_of = words.format(root=root)
    victim = next(
        pid
        for pid, line in rig.machine.processes().items()
        if line.startswith(start_of) and (" work " in line or line.startswith("timeout"))
    )
    os.kill(victim, signal.SIGKILL)
    failure(future, TransientDeviceError)
    finish(rig, device)


def test_a_job_beyond_its_time_is_killed_on_the_device(rig: sshd.Rig, onnx_model: Path) -> None:
    device = rig.device(python=rig.stand_in(f"{CHILD}\n{sshd.WAIT}"))
    with pytest.raises(TransientDeviceError) as caught:
        device.run(Job("latency", "onnx", device.push(onnx_model), timeout_s=1.0))
    assert caught.value.message.startswith("latency of mlp.onnx on device: no answer within 1 s, killed")
    assert caught.value.hint == "the device may be busy; try again"
    finish(rig, device)


def test_an_interrupt_here_ends_the_job_there(
    rig: sshd.Rig, pool: ThreadPoolExecutor, onnx_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a job runs: somebody does not want it any more."""
    device = rig.device(python=rig.stand_in(f"{CHILD}\n{sshd.WAIT}"))
    call = device.shell.call

    def interrupted(*arguments: str, **options: Any) -> Any:
        if arguments[0] == "attend":
            call(arguments[0], arguments[1], "0", "0", *arguments[4:], **options)  # it has started
            sshd.until("the job", rig.runs)
            raise KeyboardInterrupt
        return call(*arguments, **options)

    monkeypatch.setattr(device.shell, "call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        device.run(Job("latency", "onnx", device.push(onnx_model)))
    finish(rig, device)


def test_after_a_failed_job_the_next_one_is_measured(rig: sshd.Rig, pool: ThreadPoolExecutor, onnx_model: Path) -> None:
    device = rig.device(python=rig.stand_in(sshd.WAIT))
    future = start(rig, pool, device, onnx_model)
    os.kill(pid_of(rig, f"/bin/sh {rig.machine.folder}/python"), signal.SIGKILL)
    failure(future, TransientDeviceError)
    rig.go()
    assert device.run(Job("latency", "onnx", device.push(onnx_model)))["answer"] == 42
    assert len(rig.runs()) == 2
    device.settle()
    finish(rig, device)
