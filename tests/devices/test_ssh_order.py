"""Over a real sshd: the governor is put back whatever happens, and one session at a time measures a device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgepack.devices.device import Job
from edgepack.devices.remote import RemoteDevice
from edgepack.errors import LinkError, TransientDeviceError
from tests.devices import sshd

pytestmark = pytest.mark.system
BEFORE = {"policy0": "ondemand", "policy4": "powersave"}
DURING = {"policy0": "performance", "policy4": "performance"}


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[sshd.Rig]:
    """A device with two clusters, a thermometer and a Raspberry Pi's tool."""
    policies, zones = tmp_path / "cpufreq", tmp_path / "thermal"
    for policy, governor in BEFORE.items():
        (policies / policy).mkdir(parents=True)
        (policies / policy / "scaling_governor").write_text(f"{governor}\n")
    for zone, milli in (("thermal_zone0", 41500), ("thermal_zone1", 63250)):
        (zones / zone).mkdir(parents=True)
        (zones / zone / "temp").write_text(f"{milli}\n")
    sshd.program(tmp_path / "pi", "vcgencmd", "echo throttled=0x50000\n")
    mounts = {"/sys/devices/system/cpu/cpufreq": policies, "/sys/class/thermal": zones}
    for place in mounts:
        if not Path(place).is_dir():
            pytest.skip(f"this kernel has no {place} to put another in the place of")
    with sshd.rig(tmp_path, mounts=mounts, path=f"{tmp_path}/pi:{sshd.PROJECT_PATH}") as made:
        yield made


def governors(rig: sshd.Rig) -> dict[str, str]:
    folder = rig.machine.folder.parent / "cpufreq"
    return {policy: (folder / policy / "scaling_governor").read_text().strip() for policy in BEFORE}


def start(rig: sshd.Rig, pool: ThreadPoolExecutor, device: RemoteDevice, model: Path) -> Future[Mapping[str, Any]]:
    """A job that runs on the device and waits there for `go`."""
    future = pool.submit(device.run, Job("latency", "onnx", device.push(model), timeout_s=60.0))
    sshd.until("the job", lambda: rig.runs() or future.done())
    assert governors(rig) == DURING
    return future


def abandon(rig: sshd.Rig, pool: ThreadPoolExecutor, model: Path) -> None:
    """A session that loses its link in mid-run for good."""
    device = rig.device(python=rig.stand_in(sshd.WAIT), patience_s=0.5)
    future = start(rig, pool, device, model)
    rig.relay.refuse()
    rig.relay.reset()
    with pytest.raises(LinkError):
        future.result(60)
    device.close()


def test_what_the_device_says_of_itself(rig: sshd.Rig) -> None:
    device = rig.device()
    facts = device.facts
    device.close()
    assert facts.governors == ("ondemand", "powersave")
    assert facts.governors_settable
    assert facts.temperature_c == 63.25
    assert facts.throttled == "0x50000"
    assert governors(rig) == BEFORE


def test_the_governor_during_a_job_and_after_it(rig: sshd.Rig, pool: ThreadPoolExecutor, onnx_model: Path) -> None:
    device = rig.device(python=rig.stand_in(sshd.WAIT))
    future = start(rig, pool, device, onnx_model)
    rig.go()
    assert future.result(60)["answer"] == 42
    assert governors(rig) == BEFORE
    device.close()
    rig.machine.assert_clean()


def test_the_governor_after_the_runner_was_killed(rig: sshd.Rig, pool: ThreadPoolExecutor, onnx_model: Path) -> None:
    device = rig.device(python=rig.stand_in(sshd.WAIT))
    future = start(rig, pool, device, onnx_model)
    shell = f"/bin/sh {rig.machine.folder}/python"
    rig.machine.kill(pid for pid, line in rig.machine.processes().items() if line.startswith(shell))
    with pytest.raises(TransientDeviceError):
        future.result(60)
    assert governors(rig) == BEFORE
    device.close()
    rig.machine.assert_clean()


def test_the_governor_after_the_link_was_lost(rig: sshd.Rig, pool: ThreadPoolExecutor, onnx_model: Path) -> None:
    """Nobody is there to ask for it."""
    abandon(rig, pool, onnx_model)
    rig.go()
    sshd.until("the governor", lambda: governors(rig) == BEFORE)
    sshd.until("the end of the job", lambda: not rig.machine.processes())
    assert not (rig.machine.root / "governors").exists()


@pytest.mark.parametrize("how", ["killed", "started anew"])
def test_the_next_session_puts_the_governor_back(
    rig: sshd.Rig, pool: ThreadPoolExecutor, onnx_model: Path, how: str
) -> None:
    """All that could have done so was killed, or the power went."""
    abandon(rig, pool, onnx_model)
    if how == "killed":
        while found := rig.machine.processes():
            rig.machine.kill(found)
            time.sleep(0.05)
    else:
        rig.machine.reboot()
    assert governors(rig) == DURING
    rig.relay.open()
    device = rig.device()
    assert governors(rig) == BEFORE
    device.close()
    rig.machine.assert_clean()


def test_the_next_session_ends_what_is_left_of_a_job(rig: sshd.Rig, pool: ThreadPoolExecutor, onnx_model: Path) -> None:
    """Only the shell around it was killed: nobody will ever read its answer, but it would disturb."""
    abandon(rig, pool, onnx_model)
    (shell,) = (pid for pid, line in rig.machine.processes().items() if line.startswith("sh ") and " work " in line)
    os.kill(shell, signal.SIGKILL)
    assert rig.machine.processes()
    rig.relay.open()
    device = rig.device()
    device.close()
    assert governors(rig) == BEFORE
    rig.machine.assert_clean()


def test_a_job_of_a_lost_session_is_waited_for(rig: sshd.Rig, pool: ThreadPoolExecutor, onnx_model: Path) -> None:
    """Two jobs at once would disturb each other, even where the second session does not want the first one's."""
    abandon(rig, pool, onnx_model)
    rig.relay.open()
    device = rig.device(python=rig.stand_in(sshd.WAIT))
    other = pool.submit(device.run, Job("cold", "onnx", device.push(onnx_model)))
    sshd.until("the wait", lambda: any(" attend " in line for line in rig.machine.processes().values()))
    time.sleep(0.5)
    assert len(rig.runs()) == 1
    rig.go()
    assert other.result(60)["answer"] == 42
    assert len(rig.runs()) == 2
    device.settle()
    device.close()
    rig.machine.assert_clean()


def test_a_second_session_is_told_who_measures(rig: sshd.Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(socket, "gethostname", lambda: "workshop")
    first = rig.device()
    for there in ("workshop", "office"):
        monkeypatch.setattr(socket, "gethostname", lambda there=there: there)
        with pytest.raises(TransientDeviceError) as caught:
            rig.device()
        assert type(caught.value) is TransientDeviceError
        assert caught.value.message.startswith("device is being measured by ")
        assert "@workshop: two measurements at once would disturb each other" in caught.value.message
        assert "gives the device free after two minutes" in (caught.value.hint or "")
    assert (rig.machine.root / "lock").exists()
    first.close()
    rig.device().close()
    rig.machine.assert_clean()


_TAKE = """
import sys
from pathlib import Path
from edgepack.devices.remote import RemoteDevice
from edgepack.devices.ssh import SshLink
device = RemoteDevice(SshLink("device", config=Path(sys.argv[1])))
print("mine", flush=True)
sys.stdin.read()
"""


def test_the_lock_of_a_client_that_was_killed(rig: sshd.Rig) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        client = subprocess.Popen(
            [sys.executable, "-c", _TAKE, str(rig.config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TMPDIR": short},
        )
        with client:
            assert client.stdout is not None
            assert client.stdout.readline() == b"mine\n"
            with pytest.raises(TransientDeviceError, match="is being measured by"):
                rig.device()
            client.kill()
        device = rig.device()
        device.close()
        rig.machine.assert_clean()
        rig.relay.reset()  # the connection that the killed client left
        sshd.until("its end", lambda: not list(Path(short).rglob("mux")))


def test_a_lock_that_nobody_has_touched_for_minutes(rig: sshd.Rig, pool: ThreadPoolExecutor, onnx_model: Path) -> None:
    """Of another machine, so that nobody here knows whether its session is still there."""

    def pretend(age_s: float) -> None:
        owner = rig.machine.root / "lock" / "owner"
        owner.parent.mkdir(exist_ok=True)
        owner.write_text("ann@elsewhere 5 abc\n")
        for path in (owner, owner.parent):
            os.utime(path, (time.time() - age_s,) * 2)

    rig.device().close()
    pretend(60)
    with pytest.raises(TransientDeviceError, match="is being measured by ann@elsewhere"):
        rig.device()
    for age_s in (300, -86400):  # a clock that was put back by a day since
        pretend(age_s)
        rig.device().close()
        rig.machine.assert_clean()
    abandon(rig, pool, onnx_model)
    rig.relay.open()
    pretend(300)
    with pytest.raises(TransientDeviceError, match="is being measured by ann@elsewhere"):
        rig.device()  # for its job runs
    rig.go()
    sshd.until("the end of the job", lambda: not rig.machine.processes())
    rig.device().close()
    rig.machine.assert_clean()


def test_two_devices_at_once(rig: sshd.Rig, pool: ThreadPoolExecutor, tmp_path: Path, onnx_model: Path) -> None:
    """Both run before either ends."""
    with sshd.rig(tmp_path / "second") as other:
        rigs = (rig, other)
        devices = [each.device(python=each.stand_in(sshd.WAIT)) for each in rigs]
        futures = [
            pool.submit(device.run, Job("latency", "onnx", device.push(onnx_model), runs=3)) for device in devices
        ]
        for each in rigs:
            sshd.until("the job", each.runs)
        assert not any(future.done() for future in futures)
        other.go()
        assert futures[1].result(60)["answer"] == 42
        assert not futures[0].done()
        rig.go()
        assert futures[0].result(60)["answer"] == 42
        for device, each in zip(devices, rigs, strict=True):
            device.settle()
            device.close()
            each.machine.assert_clean()
