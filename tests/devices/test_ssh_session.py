"""Over a real sshd: what a session does when nothing goes wrong, and that it leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgepack.benchmark.results import BenchResult
from edgepack.benchmark.schedule import QUICK
from edgepack.benchmark.session import Settings, Variant, bench_variants
from edgepack.devices.device import Device, Job
from edgepack.devices.local import LocalDevice
from edgepack.devices.remote import RemoteDevice
from edgepack.devices.ssh import SshLink
from edgepack.targets.file import get_target
from tests.devices import netns, sshd
from tests.devices.relay import Relay

pytestmark = pytest.mark.system


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[sshd.Rig]:
    with sshd.rig(tmp_path) as made:
        yield made


def latency(model: str, *, runs: int = 5) -> Job:
    return Job("latency", "tflite" if model.endswith("tflite") else "onnx", model, runs=runs, warmup_runs=1)


def masters(link: SshLink) -> list[str]:
    """Command lines of processes that hold a link's shared connection; their folder is the link's alone."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            line = (folder / "cmdline").read_bytes() if folder.name.isdecimal() else b""
        except OSError:
            continue
        if line.startswith(b"ssh") and link._folder.name.encode() in line:
            found.append(line.decode())
    return found


def test_jobs_of_both_formats_on_one_connection(rig: sshd.Rig, onnx_model: Path, tflite_models: Path) -> None:
    link = rig.link()
    device = RemoteDevice(link)
    probe = device.probe()
    assert probe["runtimes"]["onnxruntime"]["imports"]
    for model in (onnx_model, tflite_models / "int8.tflite"):
        assert len(device.run(latency(device.push(model), runs=7))["latency_s"]) == 7
    assert device.facts.python == str(Path(sshd.PROJECT_PATH.split(":")[0], "python3"))
    assert device.facts.boot == "first"
    assert device.resumed == 0
    assert rig.relay.connections == 1
    assert masters(link)
    device.settle()
    device.close()
    assert rig.machine.jobs() == []
    sshd.until("the end of the shared connection", lambda: rig.relay.live == 0)
    sshd.until("the end of its process", lambda: not masters(link))
    assert not Path(link._folder.name).exists()
    rig.machine.assert_clean()


def test_files_of_the_device_are_its_users_alone(rig: sshd.Rig, onnx_model: Path) -> None:
    device = rig.device()
    device.run(latency(device.push(onnx_model)))
    device.close()
    found = [rig.machine.root, *rig.machine.root.rglob("*")]
    assert len(found) > 8
    modes = {oct(path.stat().st_mode & 0o777) for path in found}
    assert modes == {"0o600", "0o700"}


def test_a_second_push_of_the_same_content_sends_nothing(rig: sshd.Rig, tmp_path: Path) -> None:
    from tests import bench_models

    model = bench_models.write_mlp(tmp_path / "large.onnx", [1024, 1024, 64])
    same = tmp_path / "again" / "large.onnx"
    same.parent.mkdir()
    same.write_bytes(model.read_bytes())
    used = []
    for path in (model, same):
        before = rig.relay.up
        device = rig.device()
        device.run(latency(device.push(path), runs=1))
        device.settle()
        device.close()
        used.append(rig.relay.up - before)
    assert used[0] > model.stat().st_size > 4_000_000
    assert used[1] < 50_000


def test_a_file_of_the_same_name_with_other_content_is_another(rig: sshd.Rig, tmp_path: Path) -> None:
    device = rig.device(python=str(echo_arguments(rig)))
    model = tmp_path / "model.onnx"
    seen = []
    for content in ("one", "two"):
        model.write_text(content)
        seen.append(device.run(latency(device.push(model)))["arguments"])
    device.close()
    assert sorted(path.read_text() for path in rig.machine.root.glob("store/*/model.onnx")) == ["one", "two"]
    assert seen[0] != seen[1]


NAMES = ["two words.onnx", "it's.onnx", 'say "hi" $(touch owned) `id`;&.onnx', "-rf.onnx", "größe\n.onnx", "%s*?.onnx"]


def test_any_file_name_will_do(rig: sshd.Rig, tmp_path: Path) -> None:
    device = rig.device(python=str(echo_arguments(rig)))
    for name in NAMES:
        model = tmp_path / name
        model.write_text(name)
        arguments = device.run(latency(device.push(model)))["arguments"]
        there = Path(arguments[arguments.index("--model") + 1])
        assert rig.machine.inside(there).read_text() == name
        assert there.is_relative_to(rig.machine.cache / "edgepack-device" / "store")
    device.close()
    assert list(tmp_path.rglob("owned")) == []


def echo_arguments(rig: sshd.Rig) -> Path:
    """A python there that reports the arguments it was given."""
    text = (
        f"exec {sshd.PROJECT_PATH.split(':')[0]}/python -c 'import json, sys; "
        'print(json.dumps({"schema_version": 1, "arguments": sys.argv[1:]}))\' "$@"\n'
    )
    return sshd.program(rig.machine.folder / "a folder's $HOME", "python 3", text)


def test_what_a_login_shell_prints_confuses_nobody(tmp_path: Path, onnx_model: Path) -> None:
    noise = 'ForceCommand echo "Welcome"; echo "done 0 0 0 mine"; echo warning >&2; eval "$SSH_ORIGINAL_COMMAND"'
    (tmp_path / "banner").write_text("Authorised users only\n")
    with sshd.rig(tmp_path, config=f"{noise}\nBanner {tmp_path}/banner") as rig:
        (rig.machine.home / ".bashrc").write_text("echo from the bashrc; echo mine\n")
        device = rig.device()
        large = tmp_path / "weights.onnx"
        large.write_bytes(onnx_model.read_bytes() + bytes(100_000))
        device.push(large)
        assert len(device.run(latency(device.push(onnx_model)))["latency_s"]) == 5
        device.settle()
        device.close()
        rig.machine.assert_clean()


def shape(result: BenchResult) -> object:
    return [
        (made.name, made.format, made.sha256, len(made.warm) > 0, len(made.cold), len(made.memory), len(made.counters))
        for made in result.variants
    ]


def test_a_whole_session_has_the_shape_of_a_local_one(rig: sshd.Rig, onnx_model: Path) -> None:
    variants = [Variant("edgepack", "onnx", onnx_model)]
    schedule = replace(QUICK, processes=1, warmup_s=0.0, seconds=0.02, runs=5, cold_runs=2, retries=0)
    settings = Settings(quick=True, schedule=schedule)
    remote = rig.device()
    devices: list[Device] = [LocalDevice(), remote]
    found = []
    for device in devices:
        found.append(bench_variants(variants, target=get_target("host"), device=device, settings=settings))
    here, there = found
    remote.settle()
    remote.close()
    assert shape(here) == shape(there)
    assert here.conditions.device.fingerprint == there.conditions.device.fingerprint
    assert here.conditions.cpus == there.conditions.cpus
    rig.machine.assert_clean()
    assert rig.machine.jobs() == []


def test_through_a_jump_host(rig: sshd.Rig, tmp_path: Path, onnx_model: Path) -> None:
    """The device's network is reached from the first host alone."""
    device = sshd.Machine(tmp_path / "device")
    try:
        _, address = netns.join(rig.machine.pid, device.pid)
        (tmp_path / "client2").mkdir()
        (device.folder / "user_key.pub").write_bytes((rig.machine.folder / "user_key.pub").read_bytes())
        hosts = [
            sshd.host("jump", rig.relay.port),
            sshd.host("behind", 22, name=address, more="ProxyJump jump"),
        ]
        config = sshd.write_client(tmp_path / "client2", rig.machine, hosts)
        sshd.know(tmp_path / "client2", "127.0.0.1", rig.relay.port, rig.machine)
        sshd.know(tmp_path / "client2", address, 22, device)
        link = SshLink("behind", config=config)
        remote = RemoteDevice(link)
        assert len(remote.run(latency(remote.push(onnx_model)))["latency_s"]) == 5
        remote.settle()
        remote.close()
        device.assert_clean()
        assert not rig.machine.root.exists()
        sshd.until("the end of the connection", lambda: rig.relay.live == 0)
        sshd.until("the end of its process", lambda: not masters(link))
    finally:
        device.stop()


def test_two_devices_in_one_process(rig: sshd.Rig, tmp_path: Path, onnx_model: Path) -> None:
    """Sessions of two devices do not know of each other, though files and jobs are the same."""
    with sshd.rig(tmp_path / "second") as other:
        first, second = (each.device(python=str(echo_arguments(each))) for each in (rig, other))
        for device in (first, second):
            assert "latency" in device.run(latency(device.push(onnx_model)))["arguments"]
        first.close()
        assert "latency" in second.run(latency(second.push(onnx_model), runs=3))["arguments"]
        second.close()
        for machine in (rig.machine, other.machine):
            machine.assert_clean()


def test_a_relay_that_delays(rig: sshd.Rig, onnx_model: Path) -> None:
    rig.relay.delay_s = 0.02
    device = rig.device(python=str(echo_arguments(rig)))
    assert "latency" in device.run(latency(device.push(onnx_model)))["arguments"]
    device.close()
    rig.machine.assert_clean()


def test_the_relay_itself(tmp_path: Path) -> None:
    """What the tests of faults stand on."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        relay = Relay(lambda: socket.create_connection(server.getsockname()))
        try:
            with socket.create_connection(("127.0.0.1", relay.port), timeout=20) as client:
                there, _ = server.accept()
                with there:
                    client.sendall(b"one")
                    assert there.recv(9) == b"one"
                    relay.stall()
                    client.sendall(b"two")
                    there.settimeout(0.2)
                    with pytest.raises(TimeoutError):
                        there.recv(9)
                    there.settimeout(20)
                    relay.resume()
                    assert there.recv(9) == b"two"
                    relay.cut_after(2)
                    client.sendall(b"three")
                    with pytest.raises(ConnectionResetError):
                        client.recv(9)
                    assert relay.cut
                    assert relay.up == 8
            relay.refuse()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", relay.port), timeout=20)
            relay.open()
            with socket.create_connection(("127.0.0.1", relay.port), timeout=20) as client:
                there, _ = server.accept()
                with there:
                    there.sendall(b"back")
                    assert client.recv(9) == b"back"
        finally:
            relay.close()
