"""Over a real sshd: devices that cannot be reached, or that must not be trusted, and what the user is told to do."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepack.devices import ssh
from edgepack.devices.remote import RemoteDevice
from edgepack.devices.ssh import SshLink
from edgepack.errors import DeviceError, LinkError, StableDeviceError, UsageError
from tests.devices import sshd

pytestmark = pytest.mark.system


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[sshd.Rig]:
    with sshd.rig(tmp_path) as made:
        yield made


def refused(rig: sshd.Rig, address: str = "device", kind: type[DeviceError] = StableDeviceError) -> DeviceError:
    with pytest.raises(kind) as caught:
        RemoteDevice(rig.link(address), patience_s=5.0)
    assert type(caught.value) is kind
    assert not rig.machine.root.exists()
    return caught.value


def test_a_changed_host_key_is_refused_and_the_hint_mends_it(rig: sshd.Rig) -> None:
    sshd.new_key(rig.machine.folder / "host_key")
    rig.machine.reboot()
    error = refused(rig)
    offered = subprocess.run(
        ["ssh-keygen", "-lf", str(rig.machine.folder / "host_key.pub")], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    known = rig.config.parent / "known_hosts"
    assert error.message == (
        f"connect on device: its host key is another than the one that is known: it offers {offered}"
    )
    forget = f'ssh-keygen -f "{known}" -R "[127.0.0.1]:{rig.relay.port}"'
    assert error.hint == (
        f"if the device was set up anew, forget the old key with: {forget}; "
        f"then connect once by hand: ssh -F {rig.config} device"
    )
    subprocess.run(shlex.split(forget), check=True, capture_output=True)
    assert "its host key is not known here" in refused(rig).message


def test_an_unknown_host_key_is_refused_and_the_hint_mends_it(rig: sshd.Rig) -> None:
    known = rig.config.parent / "known_hosts"
    known.unlink()
    error = refused(rig)
    assert error.message == "connect on device: its host key is not known here"
    assert error.hint == (f"connect once by hand, compare the fingerprint and accept it: ssh -F {rig.config} device")
    assert not known.exists()
    # By hand, somebody says yes; here an option does.
    by_hand = shlex.split(error.hint.partition(": ")[2])
    subprocess.run([*by_hand, "-o", "StrictHostKeyChecking=accept-new", "true"], check=True, capture_output=True)
    rig.device().close()


def test_a_port_in_the_address_is_in_the_hint(rig: sshd.Rig) -> None:
    (rig.config.parent / "known_hosts").write_text("")
    error = refused(rig, f"127.0.0.1:{rig.relay.port}")
    assert (error.hint or "").endswith(f"ssh -F {rig.config} -p {rig.relay.port} 127.0.0.1")


def test_a_wrong_user(rig: sshd.Rig) -> None:
    error = refused(rig, "nobody-of-this-name@device")
    assert error.message.startswith("connect on nobody-of-this-name@device: it does not let this user in: ")
    assert "Permission denied (publickey)" in error.message
    assert error.hint == "check the user's name, and bring your key there: ssh-copy-id nobody-of-this-name@device"


def test_a_wrong_key(rig: sshd.Rig) -> None:
    sshd.new_key(rig.machine.folder / "user_key")
    (rig.machine.folder / "user_key.pub").write_text("")
    assert "connect on device: it does not let this user in: " in refused(rig).message


def test_a_key_that_others_may_read(rig: sshd.Rig) -> None:
    (rig.machine.folder / "user_key").chmod(0o644)
    assert "connect on device: it does not let this user in: " in refused(rig).message


def test_a_closed_port(rig: sshd.Rig) -> None:
    rig.relay.refuse()
    error = refused(rig)
    assert error.message.startswith("connect on device: nothing listens on that port: ")
    assert error.hint == f"is sshd running there, and is this its port? try: ssh -F {rig.config} device"


def test_a_name_that_nobody_knows(rig: sshd.Rig) -> None:
    rig.config.write_text(rig.config.read_text().replace("HostName 127.0.0.1", "HostName nowhere.invalid"))
    error = refused(rig)
    assert error.message.startswith("connect on device: no such host: ")
    assert "nowhere.invalid" in error.message
    assert error.hint == "check the name, or give the address"


def test_a_broken_configuration(rig: sshd.Rig) -> None:
    rig.config.write_text("NoSuchOption yes\n" + rig.config.read_text())
    assert "connect on device: ssh refuses its own configuration" in refused(rig).message


@pytest.mark.parametrize("found", ["not a regular file", "no such file"])
def test_a_configuration_that_is_no_file(tmp_path: Path, found: str) -> None:
    """At a pipe ssh would wait for ever."""
    path = tmp_path / "config"
    if found == "not a regular file":
        os.mkfifo(path)
    with pytest.raises(UsageError, match=f"{path}: {found}"):
        SshLink("pi@there", config=path)


def test_a_host_that_takes_the_connection_and_says_nothing(rig: sshd.Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "CONNECT_TIMEOUT_S", 2)
    rig.relay.stall()
    error = refused(rig, kind=LinkError)
    assert error.message.startswith("connect on device: ")
    assert "timed out" in error.message
    assert error.hint == "check that the device is on and in reach of the network"


def test_a_host_that_ends_every_connection(rig: sshd.Rig) -> None:
    rig.machine.stop()
    error = refused(rig, kind=LinkError)
    rig.machine.start()
    assert error.message.startswith("connect on device: ")
    assert error.hint == "check that the device is on and in reach of the network"


def test_a_jump_host_that_is_not_there(rig: sshd.Rig) -> None:
    rig.relay.refuse()
    entry = sshd.host("behind", 22, name="192.0.2.2", more="ProxyJump device")
    rig.config.write_text(entry + rig.config.read_text())
    error = refused(rig, "behind")
    assert error.message.startswith("connect on behind: nothing listens on that port: ")


def test_a_device_that_is_not_there_behind_the_jump_host(rig: sshd.Rig) -> None:
    entry = sshd.host("behind", 2222, name="127.0.0.1", more="ProxyJump device")
    rig.config.write_text(entry + rig.config.read_text())
    error = refused(rig, "behind")
    assert error.message.startswith("connect on behind: nothing listens on that port: ")


def test_a_device_whose_shell_lets_nobody_work(tmp_path: Path) -> None:
    with sshd.rig(tmp_path, config="ForceCommand echo This account is currently not available.; exit 1") as rig:
        error = refused(rig)
        assert error.message.startswith("connect on device: ")
        assert "exit code 1" in error.message or "not available" in error.message
