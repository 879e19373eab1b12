"""Over a real sshd: devices whose Python or runtimes are missing, crash, or talk nonsense."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepack.benchmark.session import Settings, Variant, bench_variants
from edgepack.devices.device import Job
from edgepack.devices.remote import RemoteDevice
from edgepack.errors import DataError, DeviceError, EdgepackError, StableDeviceError
from edgepack.targets.file import get_target
from tests.devices import sshd

pytestmark = pytest.mark.system


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[sshd.Rig]:
    with sshd.rig(tmp_path) as made:
        yield made


def failure(device: RemoteDevice, model: Path, kind: type[EdgepackError] = StableDeviceError) -> EdgepackError:
    with pytest.raises(kind) as caught:
        device.run(Job("latency", "onnx", device.push(model)))
    assert type(caught.value) is kind
    return caught.value


def finish(rig: sshd.Rig, device: RemoteDevice) -> None:
    device.close()
    assert rig.machine.jobs() == []
    rig.machine.assert_clean()


def test_no_python(tmp_path: Path, onnx_model: Path) -> None:
    with sshd.rig(tmp_path, path=sshd.without_python(tmp_path / "programs")) as rig:
        device = rig.device()
        assert device.facts.python is None
        error = failure(device, onnx_model)
        assert error.message == (
            f"device has no Python 3: found neither {rig.machine.cache}/edgepack-device/venv/bin/python nor python3"
        )
        assert error.hint == "install it there, on Debian: sudo apt-get install python3"
        with pytest.raises(StableDeviceError, match="device has no Python 3"):
            device.probe()
        finish(rig, device)


def test_no_tools(tmp_path: Path) -> None:
    path = sshd.without_python(tmp_path / "programs")
    for name in ("setsid", "timeout"):
        Path(path, name).unlink()
    with sshd.rig(tmp_path, path=path) as rig:
        with pytest.raises(StableDeviceError) as caught:
            rig.device()
        assert caught.value.message == "device lacks setsid, timeout"
        assert caught.value.hint == "install coreutils and util-linux there (or BusyBox or toybox)"
        rig.machine.assert_clean()


def test_no_runtime(tmp_path: Path, onnx_model: Path) -> None:
    with sshd.rig(tmp_path, path=sshd.bare_python(tmp_path / "bare")) as rig:
        device = rig.device()
        assert device.facts.python == f"{tmp_path}/bare/bin/python3"
        assert not [name for name, found in device.probe()["runtimes"].items() if found["imports"]]
        error = failure(device, onnx_model)
        assert error.message == "latency of mlp.onnx on device: ModuleNotFoundError: No module named 'numpy'"
        assert error.hint == "install it in the device's Python: pip install numpy"
        finish(rig, device)


def with_onnxruntime(rig: sshd.Rig, source: str) -> str:
    """The tests' Python there, with another onnxruntime."""
    package = rig.machine.folder / "packages" / "onnxruntime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(source)
    text = f'export PYTHONPATH={package.parent}\nexec {sys.executable} "$@"\n'
    return str(sshd.program(rig.machine.folder, "python", text))


def test_a_runtime_of_other_instructions(rig: sshd.Rig, onnx_model: Path) -> None:
    python = with_onnxruntime(rig, "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    device = rig.device(python=python)
    found = device.probe()["runtimes"]
    assert not found["onnxruntime"]["imports"]
    assert "SIGILL" in found["onnxruntime"]["error"]
    assert found["ai-edge-litert"]["imports"]
    error = failure(device, onnx_model)
    assert error.message.startswith("latency of mlp.onnx on device: the process died of SIGILL")
    assert "it is unsupported here; try another version of it" in (error.hint or "")
    with pytest.raises(StableDeviceError, match=r"the device runs no onnx: onnxruntime .*SIGILL"):
        bench_variants(
            [Variant("m", "onnx", onnx_model)],
            target=get_target("host"),
            device=device,
            settings=Settings(quick=True),
        )
    finish(rig, device)


NONSENSE = [
    ("echo not json", "exit code 0 and no JSON report on stdout: found 'not json\\n"),
    ("printf '\\033[31m\\000\\377\\376'", "exit code 0 and no JSON report on stdout: found '\\x1b[31m\\x00"),
    ("head -c 300000 /dev/zero | tr '\\000' '['", "no JSON report on stdout: found '[[[["),
    ("true", "exit code 0 and no JSON report on stdout: found ''"),
    ("echo '{\"schema_version\": 1}' && exit 3", "exit code 3 in spite of a whole report"),
    ("echo '{\"schema_version\": 7}'", "schema_version 7, expected 1"),
    ("printf '\\033]0;owned\\007\\033[2J\\n' >&2; exit 4", "exit code 4 and no JSON report"),
    (
        'printf \'{"schema_version": 1, "error": {"kind": "failed", "message": "\\\\u001b[2J\\\\u0007 gone"}}\'',
        "latency of mlp.onnx on device: ",
    ),
]


def test_nonsense(rig: sshd.Rig, onnx_model: Path) -> None:
    device = rig.device(python=str(rig.machine.folder / "python"))
    for text, expected in NONSENSE:
        sshd.program(rig.machine.folder, "python", text + "\n")
        message = failure(device, onnx_model).message
        assert message.startswith("latency of mlp.onnx on device: ")
        assert expected in message
        assert message.isprintable(), text
        assert len(message) < 2000
    finish(rig, device)


def test_an_answer_without_end(rig: sshd.Rig, onnx_model: Path) -> None:
    device = rig.device(python=str(sshd.program(rig.machine.folder, "python", "head -c 80M /dev/zero\n")))
    error = failure(device, onnx_model)
    assert "latency of mlp.onnx on device" in error.message
    assert "larger than any that edgepack expects" in error.message
    finish(rig, device)


def test_stderr_without_end(rig: sshd.Rig, onnx_model: Path) -> None:
    device = rig.device(python=rig.stand_in("head -c 30M /dev/zero | tr '\\000' x >&2"))
    before = rig.relay.down
    assert device.run(Job("latency", "onnx", device.push(onnx_model)))["answer"] == 42
    assert rig.relay.down - before < 1 << 20
    device.settle()
    finish(rig, device)


def test_inputs_that_do_not_fit_are_bad_data(rig: sshd.Rig, onnx_model: Path) -> None:
    report = '{"schema_version": 1, "error": {"kind": "inputs", "message": "input x wants another shape"}}'
    device = rig.device(python=str(sshd.program(rig.machine.folder, "python", f"echo '{report}'; exit 1\n")))
    error = failure(device, onnx_model, DataError)
    assert error.message == "latency of mlp.onnx on device: input x wants another shape"
    finish(rig, device)


def test_a_shell_that_answers_nonsense(rig: sshd.Rig) -> None:
    """As if device.sh itself were another's."""
    rig.device().close()
    (script,) = rig.machine.root.glob("device-*.sh")
    for text in ("echo 'owner \033[2J'", "exit 3", "printf '\\377\\000'", "head -c 70M /dev/zero"):
        script.write_text(f"{text}\n")
        with pytest.raises(DeviceError) as caught:
            rig.device(patience_s=0.0)
        assert caught.value.message.isprintable()
    subprocess.run(["rm", "-rf", str(rig.machine.root)], check=True)
    device = rig.device()
    finish(rig, device)
