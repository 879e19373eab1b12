"""Over a real sshd: files that are cut, damaged, slow, or too large for the device's disk."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepack.devices import remote, shell, ssh
from edgepack.devices.device import Job
from edgepack.devices.remote import RemoteDevice
from edgepack.errors import LinkError, StableDeviceError
from tests.devices import netns, sshd

pytestmark = pytest.mark.system
MB = 1 << 20


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[sshd.Rig]:
    with sshd.rig(tmp_path) as made:
        yield made


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 1 MB, and no long pause before a lost connection is tried again."""
    monkeypatch.setattr(ssh, "CHUNK_BYTES", 16 * ssh.BLOCK_BYTES)
    monkeypatch.setattr(shell, "FIRST_PAUSE_S", 0.1)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Some chunks' worth of what cannot be compressed."""
    path = tmp_path / "large.onnx"
    path.write_bytes(os.urandom(3 * ssh.CHUNK_BYTES + MB // 4))
    return path


def measure(device: RemoteDevice, model: Path) -> None:
    assert device.run(Job("latency", "onnx", device.push(model)))["answer"] == 42


def stored(rig: sshd.Rig) -> list[Path]:
    return list(rig.machine.root.glob("store/*/large.onnx"))


def parts(rig: sshd.Rig) -> list[Path]:
    return list(rig.machine.root.glob("store/*/*.part"))


def finish(rig: sshd.Rig, device: RemoteDevice, model: Path) -> None:
    device.settle()
    device.close()
    (there,) = stored(rig)
    assert there.read_bytes() == model.read_bytes()
    rig.machine.assert_clean()


def test_a_push_that_is_cut_goes_on_where_it_was(rig: sshd.Rig, large: Path) -> None:
    device = rig.device(python=rig.stand_in())
    before = rig.relay.up
    rig.relay.cut_after(ssh.CHUNK_BYTES + MB // 2)
    measure(device, large)
    assert rig.relay.cut
    assert rig.relay.connections == 2
    # The chunk that was cut is sent again, and no more than that.
    assert rig.relay.up - before < large.stat().st_size + ssh.CHUNK_BYTES
    finish(rig, device, large)


def cut_session(rig: sshd.Rig, large: Path) -> LinkError:
    """A session whose link is cut in mid-push and stays away for longer than it is waited for."""
    device = rig.device(python=rig.stand_in(), patience_s=1.0)
    rig.relay.cut_after(ssh.CHUNK_BYTES + MB // 2)
    refuser = threading.Thread(target=lambda: sshd.until("the cut", lambda: rig.relay.cut) and rig.relay.refuse())
    refuser.start()
    with pytest.raises(LinkError) as caught:
        measure(device, large)
    refuser.join()
    device.close()
    rig.relay.open()
    assert rig.runs() == []
    return caught.value


def test_the_next_session_goes_on_with_a_push_that_was_cut(rig: sshd.Rig, large: Path) -> None:
    error = cut_session(rig, large)
    assert error.message.startswith("push large.onnx on device: ")
    assert error.message.endswith(" (tried again for 1 s)")
    assert error.hint == "the device goes on with what was started there; the same command takes it up"
    (part,) = parts(rig)
    assert part.stat().st_size >= ssh.CHUNK_BYTES
    device = rig.device(python=rig.stand_in())
    before = rig.relay.up
    measure(device, large)
    assert rig.relay.up - before < large.stat().st_size - ssh.CHUNK_BYTES + MB // 2
    finish(rig, device, large)


def test_a_part_that_was_damaged_on_the_device_is_sent_again(rig: sshd.Rig, large: Path) -> None:
    cut_session(rig, large)
    (part,) = parts(rig)
    with part.open("r+b") as file:
        file.seek(1000)
        file.write(bytes(64))
    device = rig.device(python=rig.stand_in())
    before = rig.relay.up
    measure(device, large)
    assert rig.relay.up - before > large.stat().st_size
    finish(rig, device, large)


def test_a_part_that_is_longer_than_the_file(rig: sshd.Rig, large: Path) -> None:
    cut_session(rig, large)
    (part,) = parts(rig)
    os.truncate(part, large.stat().st_size + 5)
    device = rig.device(python=rig.stand_in())
    measure(device, large)
    finish(rig, device, large)


def test_a_file_that_lost_its_end_on_the_device_is_sent_again(rig: sshd.Rig, large: Path) -> None:
    """As after a power cut: the name is there before the content is."""
    device = rig.device(python=rig.stand_in())
    measure(device, large)
    device.settle()
    device.close()
    os.truncate(stored(rig)[0], 100_000)
    again = rig.device(python=rig.stand_in())
    measure(again, large)
    finish(rig, again, large)


def test_a_slow_cable_that_stalls(tmp_path: Path) -> None:
    model = tmp_path / "large.onnx"
    model.write_bytes(os.urandom(MB))
    with sshd.gated_rig(tmp_path) as (gate, rig):
        device = rig.device(python=rig.stand_in())
        netns.slow(gate.pid, "8mbit")
        done = []
        pusher = threading.Thread(target=lambda: done.append(measure(device, model)))
        pusher.start()
        sshd.until("the start of the push", lambda: any(part.stat().st_size for part in parts(rig)))
        netns.plug(rig.machine.pid, "down")
        before = rig.relay.connections
        assert not done
        netns.plug(rig.machine.pid, "up")
        pusher.join(60)
        assert len(done) == 1
        assert rig.relay.connections == before  # a short silence is not a cut
        finish(rig, device, model)


def test_a_disk_without_room_is_told_before_anything_is_sent(tmp_path: Path, large: Path) -> None:
    with sshd.rig(tmp_path, disk="size=18m") as rig:
        device = rig.device(python=rig.stand_in())
        before = rig.relay.up
        with pytest.raises(StableDeviceError) as caught:
            measure(device, large)
        device.close()
        free = device.facts.free_bytes
        assert free is not None
        assert free <= 18 * MB
        told = re.fullmatch(
            rf"device: its disk is full: (\d+) bytes and some room are needed, (\d+) are free in "
            rf"{rig.machine.cache}/edgepack-device",
            caught.value.message,
        )
        assert told
        assert large.stat().st_size <= int(told[1]) < large.stat().st_size + MB
        assert int(told[2]) <= free
        assert caught.value.hint == "free some space there; edgepack's own files are in that folder and may be removed"
        assert rig.relay.up - before < MB
        rig.machine.assert_clean()


def test_a_disk_that_fills_up_while_a_file_arrives(
    tmp_path: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SPARE_BYTES", -1 << 40)  # as if it had room
    with sshd.rig(tmp_path, disk="size=2m") as rig:
        device = rig.device(python=rig.stand_in())
        with pytest.raises(StableDeviceError) as caught:
            measure(device, large)
        assert caught.value.message.startswith(
            f"device: its disk is full: large.onnx has {large.stat().st_size} bytes in {rig.machine.cache}"
        )
        device.close()
        rig.machine.assert_clean()


def test_a_disk_that_is_full_when_a_job_answers(tmp_path: Path, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SPARE_BYTES", 0)
    small = tmp_path / "small.onnx"
    small.write_bytes(b"small")
    with sshd.rig(tmp_path, disk="size=4m") as rig:
        device = rig.device(python=rig.stand_in("head -c 8M /dev/zero > cache/fill"))
        with pytest.raises(StableDeviceError) as caught:
            measure(device, small)
        told = f"last lines on stderr: the disk of {rig.machine.cache}/edgepack-device is full"
        assert caught.value.message.endswith(told)
        device.close()
        rig.machine.inside(rig.machine.cache / "fill").unlink()
        assert rig.machine.jobs() == []
        rig.machine.assert_clean()


@pytest.mark.parametrize(("disk", "reason"), [("ro,size=1m", "Read-only file system"), ("size=4k", "No space left")])
def test_a_folder_that_cannot_be_written(tmp_path: Path, disk: str, reason: str) -> None:
    with sshd.rig(tmp_path, disk=disk) as rig:
        with pytest.raises(StableDeviceError) as caught:
            rig.device()
        assert caught.value.message.startswith("connect on device: ")
        assert reason in caught.value.message
        assert "edgepack needs a folder there that it may write" in (caught.value.hint or "")
        assert list(rig.machine.root.rglob("device-*")) == []


def test_a_file_where_the_folder_should_be(rig: sshd.Rig) -> None:
    rig.machine.root.write_text("in the way")
    with pytest.raises(StableDeviceError, match="edgepack-device"):
        rig.device()
    assert rig.machine.root.read_text() == "in the way"
