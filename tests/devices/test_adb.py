"""adb as a wire: the real client and its server against a daemon that speaks the transport protocol. No phone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepack.devices import adb as adb_module
from edgepack.devices.adb import BLOCK_BYTES, AdbLink, refusal, write_failure
from edgepack.devices.device import Job
from edgepack.devices.remote import RemoteDevice
from edgepack.errors import DeviceError, LinkError, StableDeviceError, UsageError
from tests.devices.adbd import FEATURES, Adbd, Fault, private_server

pytestmark = pytest.mark.skipif(shutil.which("adb") is None, reason="no adb client here: apt-get install adb")


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with private_server(tmp_path_factory.mktemp("home")) as port:
        yield port


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Adbd]:
    folder = tmp_path / "device"
    folder.mkdir()
    with Adbd(folder) as running:
        yield running
        assert running.fault is None, "the fault that the test asked for never happened"


@pytest.fixture
def link(daemon: Adbd) -> AdbLink:
    return AdbLink(daemon.serial, root=str(daemon.folder / "edgepack"))


def echo(link: AdbLink, text: str = "here") -> bytes:
    return link.run(["echo", text], timeout_s=10, what="echo").stdout


def failure(link: AdbLink, kind: type[DeviceError], *command: str, timeout_s: float = 10) -> DeviceError:
    with pytest.raises(kind) as caught:
        link.run(command or ("true",), timeout_s=timeout_s, what="look")
    return caught.value


def is_running(text: str) -> bool:
    found = subprocess.run(["pgrep", "-f", text], capture_output=True, check=False)
    return found.returncode == 0


# ---------------------------------------------------------------- commands


def test_arguments_output_and_exit_code_arrive_as_they_are(link: AdbLink) -> None:
    awkward = ["a b", "'\"", "$HOME `id` \\n", "*", "line\nbreak", "ü", "", "-n"]
    found = link.run(["printf", "%s|", *awkward], timeout_s=10, what="print")
    assert found.stdout.decode() == "".join(f"{text}|" for text in awkward)
    found = link.run(["sh", "-c", "echo out; echo err >&2; exit 41"], timeout_s=10, what="end")
    assert (found.returncode, found.stdout, found.stderr) == (41, b"out\n", b"err\n")
    assert link.run(["no-such-program"], timeout_s=10, what="start").returncode == 127


def test_standard_input_is_binary_and_ends(link: AdbLink) -> None:
    data = bytes(range(256)) * 4000
    assert link.run(["cat"], stdin=data, timeout_s=20, what="copy").stdout == data
    assert link.run(["cat"], timeout_s=10, what="copy").stdout == b""


def test_a_timeout_ends_the_command_there_too(link: AdbLink) -> None:
    mark = f"7{os.getpid()}.25"
    error = failure(link, LinkError, "sleep", mark, timeout_s=1)
    assert error.message == f"look on {link.name}: no answer within 1 s"
    until = time.monotonic() + 30
    while is_running(f"sleep {mark}") and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(f"sleep {mark}")
    assert echo(link) == b"here\n"


@pytest.mark.parametrize("kind", ["cut", "garbage"])
def test_a_lost_connection_is_not_taken_for_an_answer(daemon: Adbd, link: AdbLink, kind: str) -> None:
    """adb itself ends with 0 there, and with a part of the output."""
    echo(link)
    daemon.fault = Fault("shell", kind, after_bytes=500)  # type: ignore[arg-type]
    failure(link, LinkError, "sh", "-c", "head -c 400 /dev/zero; sleep 0.2; head -c 400 /dev/zero; exit 3")
    assert echo(link) == b"here\n"


def test_a_silent_connection_is_made_anew(daemon: Adbd, link: AdbLink) -> None:
    echo(link)
    daemon.fault = Fault("shell", "stall")
    assert "no answer within 2 s" in failure(link, LinkError, "echo", "x", timeout_s=2).message
    assert echo(link) == b"here\n"


def test_a_device_that_goes_and_comes_back(daemon: Adbd, link: AdbLink) -> None:
    echo(link)
    daemon.stop()
    for _ in range(2):
        failure(link, LinkError)
    daemon.start()
    assert echo(link) == b"here\n"


# ---------------------------------------------------------------- files


def upload(link: AdbLink, path: Path, there: Path, start: int = 0) -> list[int]:
    told: list[int] = []
    link.upload(path, str(there), start, what=f"push {path.name}", sent=told.append)
    return told


def test_a_file_arrives_whole_and_private(daemon: Adbd, link: AdbLink, tmp_path: Path) -> None:
    path, there = tmp_path / "big", daemon.folder / "edgepack" / "big.part"
    path.write_bytes(os.urandom(9 << 20))
    assert upload(link, path, there) == [8 << 20, 9 << 20]
    assert there.read_bytes() == path.read_bytes()
    assert there.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in there.parent.iterdir()] == ["big.part"], "a slice was left behind"


def test_a_cut_push_costs_one_slice(
    daemon: Adbd, link: AdbLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adb_module, "SLICE_BYTES", 8 * BLOCK_BYTES)
    path, there = tmp_path / "file", daemon.folder / "file.part"
    path.write_bytes(os.urandom(24 * BLOCK_BYTES + 17))
    told: list[int] = []

    def tell(done: int) -> None:
        told.append(done)
        if len(told) == 2:
            daemon.fault = Fault("sync", "cut", after_bytes=4 * BLOCK_BYTES)

    with pytest.raises(LinkError, match="push file on adb 127"):
        link.upload(path, str(there), 0, what="push file", sent=tell)
    arrived = there.stat().st_size
    assert arrived == told[-1] == 16 * BLOCK_BYTES
    before = daemon.received_bytes
    # Some bytes into a block: the block is sent again, what is before it is not.
    assert upload(link, path, there, arrived + 5)[-1] == path.stat().st_size
    assert there.read_bytes() == path.read_bytes()
    assert daemon.received_bytes - before == 8 * BLOCK_BYTES + 17


def test_a_place_that_cannot_be_written(daemon: Adbd, link: AdbLink, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    with pytest.raises(StableDeviceError, match=r"cannot write .*: remote couldn't create file: Permission denied"):
        upload(link, path, tmp_path / "elsewhere")
    daemon.space_bytes = 50
    with pytest.raises(StableDeviceError, match="No space left on device"):
        upload(link, path, daemon.folder / "file.part")


# ---------------------------------------------------------------- refusals


def test_a_device_that_does_not_know_the_key(tmp_path: Path) -> None:
    with Adbd(tmp_path, accepts=False) as daemon:
        error = failure(AdbLink(daemon.serial), StableDeviceError)
    assert "does not accept this computer's key: device unauthorized" in error.message
    assert error.hint is not None
    assert "accept the key on the phone's screen" in error.hint


def test_an_unknown_serial_number_lists_those_that_are_there(daemon: Adbd, link: AdbLink) -> None:
    echo(link)
    error = failure(AdbLink("0123456789ABCDEF"), StableDeviceError)
    assert "no such device; `adb devices` shows" in error.message
    assert f"{daemon.serial} device" in error.message


def test_nobody_at_the_address() -> None:
    error = failure(AdbLink("127.0.0.1:1"), StableDeviceError)
    assert "nobody answers there" in error.message
    assert "Connection refused" in error.message


def test_an_old_device_gives_no_exit_codes(tmp_path: Path) -> None:
    with Adbd(tmp_path, features=tuple(name for name in FEATURES if name != "shell_v2")) as daemon:
        error = failure(AdbLink(daemon.serial), StableDeviceError)
    assert "no shell_v2" in error.message
    assert error.hint == "Android 7 or newer is needed"


def test_no_adb_here_and_no_serial_number() -> None:
    with pytest.raises(StableDeviceError, match="no adb client here: no-such-adb") as caught:
        AdbLink("x", adb="no-such-adb")
    assert caught.value.hint == "install it, on Debian: apt-get install adb"
    for serial in ("", "-s", "two words", "line\nbreak"):
        with pytest.raises(UsageError):
            AdbLink(serial)


def test_a_server_that_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Something else sits on its port."""
    fake = tmp_path / "adb"
    fake.write_text(
        "#!/bin/sh\necho '* daemon not running; starting now at tcp:1'\necho '* failed to start daemon' >&2\n"
    )
    fake.write_text(fake.read_text() + "echo 'error: cannot connect to daemon' >&2\nexit 1\n")
    fake.chmod(0o700)
    error = failure(AdbLink("X1", adb=str(fake)), StableDeviceError)
    assert "adb's own server does not start: cannot connect to daemon" in error.message


@pytest.mark.parametrize(
    ("text", "seen", "kind"),
    [
        ("error: device 'X1' not found\n", False, StableDeviceError),
        ("error: device 'X1' not found\n", True, LinkError),
        ("error: no devices/emulators found\n", True, LinkError),
        ("error: device offline\n", False, LinkError),
        ("error: device still authorizing\n", False, LinkError),
        ("error: closed\n", True, LinkError),
        ("error: protocol fault (couldn't read status): Connection reset by peer\n", True, LinkError),
        ("adb: error: failed to copy 'a' to 'b': couldn't read from device\n", True, LinkError),
        ("error: more than one device/emulator\n", True, StableDeviceError),
        ("error: insufficient permissions for device: user in plugdev group\n", False, StableDeviceError),
        ("error: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set\n", True, StableDeviceError),
        ("failed to authenticate to 10.0.0.5:5555\n", False, StableDeviceError),
        ("error: cannot connect to daemon at tcp:5037: Connection refused\n", True, LinkError),
        ("", True, LinkError),
    ],
)
def test_the_texts_of_adb(text: str, seen: bool, kind: type[DeviceError]) -> None:
    error = refusal("look", "adb X1", text, seen=seen, devices="`adb devices` shows none")
    assert type(error) is kind
    assert error.message.startswith("look on adb X1: ")
    assert error.hint


def test_what_a_device_says_cannot_reach_the_terminal() -> None:
    error = refusal("look", "adb X1", "error: \x1b[31mred\x07\n", seen=True)
    assert error.message == "look on adb X1: ?[31mred?"
    assert write_failure("dd: /x: \x1b[1mNo space left on device") == "?[1mNo space left on device"
    assert write_failure("couldn't read from device") is None


# ---------------------------------------------------------------- a session


def test_a_measurement_over_adb(daemon: Adbd, link: AdbLink, onnx_model: Path) -> None:
    device = RemoteDevice(link, python=sys.executable)
    try:
        model = device.push(onnx_model)
        job = Job("latency", "onnx", model, runs=5, warmup_runs=1)
        report = device.run(job)
        assert len(report["latency_s"]) == 5
        sent = daemon.received_bytes
        assert sent > onnx_model.stat().st_size
        assert device.run(job)["latency_s"] != report["latency_s"], "every job is a fresh process"
        assert daemon.received_bytes == sent, "a file that is there was sent again"
        assert device.facts.root == link.root
        device.settle()
    finally:
        device.close()
    assert not list((daemon.folder / "edgepack" / "jobs").iterdir())


def test_a_session_survives_cuts(daemon: Adbd, link: AdbLink, onnx_model: Path) -> None:
    device = RemoteDevice(link, python=sys.executable, patience_s=20)
    try:
        daemon.fault = Fault("sync", "cut", after_bytes=1000)
        job = Job("latency", "onnx", device.push(onnx_model), runs=5, warmup_runs=1)
        assert device.run(job)["runs"] == 5
        daemon.fault = Fault("shell", "cut", after_bytes=5)
        assert device.run(job)["runs"] == 5
    finally:
        device.close()


def test_a_finished_job_is_taken_up_by_the_next_session(daemon: Adbd, link: AdbLink, onnx_model: Path) -> None:
    first = RemoteDevice(link, python=sys.executable)
    job = Job("latency", "onnx", first.push(onnx_model), runs=5, warmup_runs=1)
    report = first.run(job)
    first.close()
    second = RemoteDevice(AdbLink(daemon.serial, root=link.root), python=sys.executable)
    try:
        second.push(onnx_model)
        assert second.run(job) == report
        assert second.resumed == 1
        second.settle()
    finally:
        second.close()
