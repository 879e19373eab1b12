"""Over a real sshd: links that are lost while a job runs. The job goes on, and its result is not lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgepack.devices import remote, shell, ssh
from edgepack.devices.device import Job
from edgepack.devices.remote import RemoteDevice
from edgepack.errors import LinkError, StableDeviceError
from tests.devices import netns, sshd

pytestmark = pytest.mark.system


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[sshd.Rig]:
    with sshd.rig(tmp_path) as made:
        yield made


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "FIRST_PAUSE_S", 0.1)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def start(
    rig: sshd.Rig, pool: ThreadPoolExecutor, device: RemoteDevice, model: Path, runs: int = 1
) -> Future[Mapping[str, Any]]:
    """A job that has begun on the device and waits there for `go`."""
    before = len(rig.runs())
    job = Job("latency", "onnx", device.push(model), runs=runs)
    future = pool.submit(device.run, job)
    sshd.until("the job", lambda: len(rig.runs()) > before or future.done())
    return future


def given_up(rig: sshd.Rig, future: Future[Mapping[str, Any]]) -> LinkError:
    with pytest.raises(LinkError) as caught:
        future.result(60)
    assert caught.value.hint == "the device goes on with what was started there; the same command takes it up"
    return caught.value


@pytest.mark.parametrize("times", [1, 2])
def test_a_reset_in_mid_run_is_survived(rig: sshd.Rig, pool: ThreadPoolExecutor, onnx_model: Path, times: int) -> None:
    device = rig.device(python=rig.stand_in(sshd.WAIT))
    future = start(rig, pool, device, onnx_model)
    for number in range(times):
        before = rig.relay.connections
        rig.relay.reset()
        sshd.until(f"connection {number + 2}", lambda before=before: rig.relay.connections > before)
    rig.go()
    assert future.result(60)["answer"] == 42
    assert len(rig.runs()) == 1
    device.settle()
    device.close()
    assert rig.machine.jobs() == []
    rig.machine.assert_clean()


def test_a_result_that_comes_while_the_link_is_away(rig: sshd.Rig, pool: ThreadPoolExecutor, onnx_model: Path) -> None:
    device = rig.device(python=rig.stand_in(sshd.WAIT))
    future = start(rig, pool, device, onnx_model)
    rig.relay.refuse()
    rig.relay.reset()
    rig.go()
    sshd.until("the end of the job", lambda: list(rig.machine.root.glob("jobs/*/done")))
    assert not future.done()
    rig.relay.open()
    assert future.result(60)["answer"] == 42
    assert len(rig.runs()) == 1
    device.close()
    rig.machine.assert_clean()


def test_a_cable_that_is_pulled_and_plugged_in_again(
    tmp_path: Path, pool: ThreadPoolExecutor, onnx_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No reset reaches this end: it is ssh that notices the silence."""
    monkeypatch.setattr(ssh, "ALIVE_INTERVAL_S", 1)
    monkeypatch.setattr(ssh, "ALIVE_COUNT", 2)
    monkeypatch.setattr(ssh, "CONNECT_TIMEOUT_S", 3)
    with sshd.gated_rig(tmp_path) as (_, rig):
        device = rig.device(python=rig.stand_in(sshd.WAIT))
        future = start(rig, pool, device, onnx_model)
        netns.plug(rig.machine.pid, "down")
        sshd.until("the client to notice", lambda: rig.relay.live == 0 or rig.relay.connections > 1)
        rig.go()
        netns.plug(rig.machine.pid, "up")
        assert future.result(60)["answer"] == 42
        assert rig.relay.connections > 1
        assert len(rig.runs()) == 1
        device.settle()
        device.close()
        assert rig.machine.jobs() == []
        rig.machine.assert_clean()


def test_a_new_session_takes_up_what_a_lost_one_started(
    rig: sshd.Rig, pool: ThreadPoolExecutor, onnx_model: Path
) -> None:
    device = rig.device(python=rig.stand_in(sshd.WAIT), patience_s=1.0)
    future = start(rig, pool, device, onnx_model)
    rig.relay.refuse()
    rig.relay.reset()
    error = given_up(rig, future)
    assert error.message.startswith("latency of mlp.onnx on device: ")
    assert "(tried again for 1 s" in error.message
    device.close()
    assert rig.machine.processes()  # the job goes on
    rig.go()
    sshd.until("the end of the job", lambda: list(rig.machine.root.glob("jobs/*/done")))
    rig.relay.open()
    again = rig.device(python=rig.stand_in(sshd.WAIT))
    job = Job("latency", "onnx", again.push(onnx_model), runs=1)
    assert again.run(job)["answer"] == 42
    assert len(rig.runs()) == 1
    # The same job once more is a second measurement, not the first one's result.
    assert again.run(job)["answer"] == 42
    assert len(rig.runs()) == 2
    again.settle()
    again.close()
    assert rig.machine.jobs() == []
    rig.machine.assert_clean()


def test_what_was_taken_up_is_counted(rig: sshd.Rig, pool: ThreadPoolExecutor, onnx_model: Path) -> None:
    """Whatever the time that a job took there."""
    device = rig.device(python=rig.stand_in(sshd.WAIT), patience_s=1.0)
    future = start(rig, pool, device, onnx_model)
    rig.relay.refuse()
    rig.relay.reset()
    given_up(rig, future)
    device.close()
    rig.go()
    sshd.until("the end of the job", lambda: list(rig.machine.root.glob("jobs/*/done")))
    rig.relay.open()
    again = rig.device(python=rig.stand_in(sshd.WAIT))
    first, second = (Job("latency", "onnx", again.push(onnx_model), runs=runs) for runs in (1, 2))
    assert again.run(first)["answer"] == 42
    assert again.resumed == 1
    assert again.run(second)["answer"] == 42
    assert again.resumed == 1
    again.close()


def test_a_new_session_waits_for_a_job_that_still_runs(
    rig: sshd.Rig, pool: ThreadPoolExecutor, onnx_model: Path
) -> None:
    device = rig.device(python=rig.stand_in(sshd.WAIT), patience_s=1.0)
    future = start(rig, pool, device, onnx_model)
    rig.relay.refuse()
    rig.relay.reset()
    given_up(rig, future)
    device.close()
    rig.relay.open()
    again = rig.device(python=rig.stand_in(sshd.WAIT))
    taken_up = pool.submit(again.run, Job("latency", "onnx", again.push(onnx_model), runs=1))
    rig.go()
    assert taken_up.result(60)["answer"] == 42
    assert len(rig.runs()) == 1
    again.close()
    rig.machine.assert_clean()


def test_a_fresh_session_does_not(rig: sshd.Rig, onnx_model: Path) -> None:
    for fresh, runs in ((False, 1), (False, 1), (True, 2)):
        device = rig.device(python=rig.stand_in(), fresh=fresh)
        assert device.run(Job("latency", "onnx", device.push(onnx_model)))["answer"] == 42
        device.close()  # without settle, as a session that failed
        assert len(rig.runs()) == runs
    rig.machine.assert_clean()


def silence(rig: sshd.Rig) -> None:
    rig.relay.stall()


def refuse(rig: sshd.Rig) -> None:
    rig.relay.refuse()
    rig.relay.reset()


@pytest.mark.parametrize("lose", [silence, refuse])
def test_a_link_that_stays_away_ends_the_session(
    rig: sshd.Rig,
    pool: ThreadPoolExecutor,
    onnx_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    lose: Callable[[sshd.Rig], None],
) -> None:
    monkeypatch.setattr(ssh, "ALIVE_INTERVAL_S", 1)
    monkeypatch.setattr(ssh, "CONNECT_TIMEOUT_S", 1)
    device = rig.device(python=rig.stand_in(sshd.WAIT), patience_s=1.5)
    future = start(rig, pool, device, onnx_model)
    lose(rig)
    given_up(rig, future)
    device.close()  # must not wait for ever, and must not raise
    rig.go()


def test_a_device_that_starts_anew_in_mid_run(rig: sshd.Rig, pool: ThreadPoolExecutor, onnx_model: Path) -> None:
    device = rig.device(python=rig.stand_in(sshd.WAIT))
    future = start(rig, pool, device, onnx_model)
    rig.machine.reboot()
    with pytest.raises(StableDeviceError) as caught:
        future.result(60)
    assert caught.value.message == "device was started anew during the measurement"
    assert "check its power supply" in (caught.value.hint or "")
    device.close()
    rig.go()
    again = rig.device(python=rig.stand_in())
    assert again.facts.boot == "first again"
    assert again.run(Job("latency", "onnx", again.push(onnx_model), runs=1))["answer"] == 42
    assert len(rig.runs()) == 2
    again.settle()
    again.close()
    rig.machine.assert_clean()


def test_a_real_measurement_that_is_cut(
    rig: sshd.Rig, pool: ThreadPoolExecutor, onnx_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a stand-in: the runner and onnxruntime, with a connection that is cut while they are at work."""
    monkeypatch.setattr(remote, "WAIT_S", 1)
    device = rig.device()
    job = Job("latency", "onnx", device.push(onnx_model), runs=20, seconds=1.5, warmup_runs=1)
    future = pool.submit(device.run, job)
    sshd.until("the runner", lambda: any("runner.py" in line for line in rig.machine.processes().values()))
    before = rig.relay.connections
    rig.relay.reset()
    report = future.result(60)
    assert report["runs"] >= 20
    assert report["seconds"] >= 1.5
    assert rig.relay.connections == before + 1
    device.settle()
    device.close()
    rig.machine.assert_clean()
