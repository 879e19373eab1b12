"""`--install`: an environment of edgepack's own on a device, from wheels that are sent where it has no network."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgepack.devices.device import Job
from edgepack.devices.install import download, install_runtimes, requirements
from edgepack.devices.shell import ShellFacts
from edgepack.errors import StableDeviceError, TransientDeviceError
from edgepack.targets.file import get_target
from edgepack.targets.target import KnownBad, Target
from tests.devices import sshd

BOARD = ShellFacts(
    "/r", "b", "aarch64", "6.1", "pi", libc="glibc 2.36", python="/usr/bin/python3", python_version="3.11.2"
)


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[sshd.Rig]:
    """A device whose Python has no runtimes, and which has no network but the wire."""
    with sshd.rig(tmp_path, path=sshd.bare_python(tmp_path / "bare")) as rig:
        yield rig


def onnx_only() -> Target:
    return replace(get_target("host"), name="bare", runtimes={"onnx": "onnxruntime"}, known_bad=())


def test_wheels_are_sent_to_a_device_without_network(bare: sshd.Rig, onnx_model: Path) -> None:
    device = bare.device()
    with pytest.raises(StableDeviceError, match="No module named 'numpy'"):
        device.run(Job("latency", "onnx", device.push(onnx_model), runs=3, warmup_runs=0))
    installed = install_runtimes(device, onnx_only())
    assert {"onnxruntime", "numpy"} <= set(installed)
    assert device.facts.python == f"{device.facts.root}/venv/bin/python"
    report = device.run(Job("latency", "onnx", device.push(onnx_model), runs=3, warmup_runs=0))
    assert report["runtime"] == {"name": "onnxruntime", "version": installed["onnxruntime"]}
    device.settle()
    device.close()
    again = bare.device()  # a later session finds it
    assert again.probe()["runtimes"]["onnxruntime"]["imports"] is True
    again.close()
    bare.machine.assert_clean()
    assert bare.machine.jobs() == []


def test_without_any_network_both_sides_are_named(bare: sshd.Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    device = bare.device()
    with pytest.raises(
        TransientDeviceError, match=r"this machine cannot download wheels .* nor could the device itself"
    ) as e:
        install_runtimes(device, onnx_only())
    assert "connect this machine or the device" in (e.value.hint or "")
    device.close()
    assert not (bare.machine.root / "venv").exists()
    assert not (bare.machine.root / "venv.new").exists()
    bare.machine.assert_clean()


def test_versions_that_fail_on_the_target_are_not_asked_for() -> None:
    target = replace(
        get_target("rpi4"), known_bad=(KnownBad("onnxruntime", "1.21.0", "x"), KnownBad("onnxruntime", "9", "y"))
    )
    assert requirements(target) == ["numpy", "onnxruntime!=1.21.0,!=9", "ai-edge-litert"]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (replace(BOARD, machine="armv7l"), "no wheels for armv7l with glibc 2.36 and Python 3.11.2"),
        (replace(BOARD, libc=None), "an unknown C library"),
        (replace(BOARD, python_version=None), "Python None"),
    ],
)
def test_a_device_that_wheels_are_not_made_for(facts: ShellFacts, expected: str, tmp_path: Path) -> None:
    with pytest.raises(StableDeviceError, match=re.escape(expected)) as caught:
        download(["numpy"], facts, tmp_path)
    assert "--python" in (caught.value.hint or "")


def test_wheels_are_those_of_the_device(tmp_path: Path) -> None:
    names = [wheel.name for wheel in download(["onnxruntime"], BOARD, tmp_path)]
    assert any(re.match(r"onnxruntime-.*-cp311-cp311-.*aarch64\.whl", name) for name in names)
    assert any(name.startswith("pip-") for name in names)
    assert not any("x86_64" in name for name in names)
