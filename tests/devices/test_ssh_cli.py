"""Commands with devices over SSH, as a user gives them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.devices import sshd
from tests.e2e.e2e_cli import invoke, run


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[sshd.Rig, sshd.Rig, Path]]:
    """Two devices, and an ssh_config that has both as `one` and `two`, and `closed` where nothing listens."""
    folder = tmp_path_factory.mktemp("devices")
    with sshd.rig(folder / "1") as first, sshd.rig(folder / "2") as second:
        config = folder / "ssh_config"
        text = "".join(
            rig.config.read_text().replace("Host device", f"Host {name}").replace("Host *", f"Host {name}")
            for name, rig in (("one", first), ("two", second))
        )
        config.write_text(f"{text}Host closed\n  HostName 127.0.0.1\n  Port 9\n")
        yield first, second, config


@pytest.fixture
def pack(tmp_path: Path, onnx_model: Path) -> Path:
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(onnx_model.read_bytes())
    manifest = {"schema_version": 1, "model": {"name": "tiny"}, "target": {"name": "host"}, "files": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_two_devices_at_once_and_side_by_side(two: tuple[sshd.Rig, sshd.Rig, Path], pack: Path) -> None:
    first, second, config = two
    done = run("bench", pack, "--host", "one", "--host", "two", "--ssh-config", config, "--quick", "--no-cold")
    assert done.code == 0, done.err
    assert "tiny, host on one, onnx" in done.out
    assert "tiny, host on two, onnx" in done.out
    assert "p50 on each device" in done.out
    results = sorted(file.name for file in (pack / "results").iterdir())
    assert [name.split(".")[2] for name in results] == ["one", "two"]
    for rig in (first, second):
        rig.machine.assert_clean()
        assert rig.machine.jobs() == []
    compared = invoke("compare", pack)
    assert "p50 on each device" in compared.out


def test_what_one_device_fails_at_stops_no_other(two: tuple[sshd.Rig, sshd.Rig, Path], pack: Path) -> None:
    _, _, config = two
    done = run("bench", pack, "--host", "closed", "--host", "one", "--ssh-config", config, "--quick", "--no-cold")
    assert done.code == 4
    assert "error: connect on closed: nothing listens on that port" in done.err
    assert "is sshd running there" in done.err
    assert [file.name.split(".")[2] for file in (pack / "results").iterdir()] == ["one"]
    assert "tiny, host on one" in done.out or "tiny, host, onnx" in done.out


def test_the_hosts_of_a_target_are_measured_without_naming_them(
    two: tuple[sshd.Rig, sshd.Rig, Path], pack: Path, tmp_path: Path
) -> None:
    _, _, config = two
    own = run("targets", "probe", "--host", "one", "--ssh-config", config, "--name", "board")
    assert own.code == 0, own.err
    targets = tmp_path / "targets.yaml"
    targets.write_text(own.out)
    assert yaml.safe_load(own.out)["targets"]["board"]["hosts"] == ["one"]
    assert invoke("targets", "check", targets).out.strip() == f"{targets}: good"
    done = run(
        *("bench", pack, "--target", "board", "--targets-file", targets, "--ssh-config", config, "--quick", "--no-cold")
    )
    assert done.code == 0, done.err
    assert [file.name.split(".")[:3:2] for file in (pack / "results").iterdir()] == [["board", "one"]]


def test_doctor_looks_at_a_device(two: tuple[sshd.Rig, sshd.Rig, Path]) -> None:
    _, _, config = two
    done = run("doctor", "--host", "one", "--ssh-config", config, "--json")
    assert done.code == 0, done.err
    found = {check["name"]: check for check in json.loads(done.out)["one"]}
    assert found["onnxruntime"]["advice"] is None
    assert found["ai-edge-litert"]["advice"] is None
    assert {"system", "CPU", "Python", "free memory", "free disk", "governor", "counters"} <= set(found)
    table = invoke("doctor", "--host", "one", "--ssh-config", config)
    assert "onnxruntime" in table.out
    assert "found" in table.out


def test_calibrate_measures_over_ssh(
    two: tuple[sshd.Rig, sshd.Rig, Path], onnx_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, config = two
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path))
    done = run(
        *("targets", "calibrate", "host", onnx_model, "--host", "one", "--ssh-config", config),
        *("--quick", "--formats", "onnx", "--json"),
    )
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["layers"]
    assert all(layer["seconds"] > 0 for layer in found["layers"])
    assert Path(found["path"]).is_relative_to(tmp_path)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("bench", "PACK", "--host", "a", "--local"), "--local excludes --host and --adb"),
        (("bench", "PACK", "--host", "a", "--emulate"), "--emulate excludes --local, --host, --adb and --browser"),
        (("bench", "PACK", "--host", "a b"), "not a host: 'a b'"),
        (("bench", "PACK", "--host", "pi@x:99999"), "not a host: 'pi@x:99999'"),
        (("bench", "PACK", "--host", "a", "--host", "a"), "a is named twice"),
        (("targets", "probe"), "which device is meant?"),
        (("targets", "calibrate", "rpi4"), "which device is meant?"),
    ],
)
def test_what_makes_no_sense(args: tuple[str, ...], expected: str, pack: Path) -> None:
    done = invoke(*(str(pack) if arg == "PACK" else arg for arg in args))
    assert done.code == 2
    assert expected in done.err
