"""Devices: what becomes of a runner that fails, crashes, hangs or talks nonsense."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from edgepack.devices.device import Device, Job
from edgepack.devices.fake import FakeDevice
from edgepack.devices.local import LocalDevice
from edgepack.errors import DataError, DeviceError, StableDeviceError, TransientDeviceError

JOB = Job("latency", "onnx", "m.onnx", warmup_runs=0)
GOOD = 'print(\'{"schema_version": 1, "mode": "latency"}\')'


def device_of(tmp_path: Path, code: str) -> LocalDevice:
    """A local device whose runner is the given script."""
    script = tmp_path / "script.py"
    script.write_text("import os, signal, sys, time\n" + code)
    return LocalDevice(runner=script)


def failure(device: LocalDevice, kind: type[Exception], job: Job = JOB) -> DeviceError:
    with pytest.raises(kind) as caught:
        device.run(job)
    assert isinstance(caught.value, DeviceError | DataError)
    return caught.value  # type: ignore[return-value]


def test_both_drivers_play_the_role() -> None:
    devices: list[Device] = [LocalDevice(), FakeDevice({}, lambda job: {})]
    assert [device.name for device in devices] == ["local", "fake"]


def test_a_job_is_a_list_of_arguments() -> None:
    job = Job("cold", "tflite", "/a b.tflite", "/in.npz", threads=2, cpus=(1, 3), runs=7, evict_bytes=64)
    assert job.arguments() == [
        "cold", "--format", "tflite", "--threads", "2", "--model", "/a b.tflite", "--inputs", "/in.npz",
        "--cpus", "1,3", "--evict-bytes", "64",
        "--warmup-runs", "5", "--warmup-seconds", "0.0", "--runs", "7", "--seconds", "0.0",
    ]  # fmt: skip
    assert Job("memory", "onnx", None).arguments()[:6] == [
        "memory",
        "--format",
        "onnx",
        "--threads",
        "1",
        "--import-only",
    ]


def test_a_real_measurement(onnx_model: Path) -> None:
    found = LocalDevice().run(Job("latency", "onnx", str(onnx_model), runs=5, warmup_runs=1))
    assert len(found["latency_s"]) == 5


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    error = failure(LocalDevice(), StableDeviceError, Job("latency", "onnx", str(tmp_path / "gone.onnx")))
    assert error.message == f"latency of gone.onnx on local: no model file at {tmp_path / 'gone.onnx'} (model-missing)"
    assert error.exit_code == 4


def test_a_rejected_model(tmp_path: Path) -> None:
    (tmp_path / "bad.tflite").write_bytes(b"nonsense")
    error = failure(LocalDevice(), StableDeviceError, Job("latency", "tflite", str(tmp_path / "bad.tflite")))
    assert "latency of bad.tflite on local: bad.tflite: ValueError" in error.message


def test_a_missing_python() -> None:
    device = LocalDevice(python=("/nowhere/python3",))
    assert "cannot start /nowhere/python3" in failure(device, StableDeviceError).message


def test_a_python_without_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('no such library')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    error = failure(LocalDevice(), StableDeviceError)
    assert "no runtime for onnx imports here (onnxruntime: no such library)" in error.message
    assert "pip install" in (error.hint or "")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("SIGILL", StableDeviceError), ("SIGSEGV", StableDeviceError), ("SIGKILL", TransientDeviceError)],
)
def test_a_killed_runner_is_named_by_its_signal(tmp_path: Path, name: str, kind: type[DeviceError]) -> None:
    number = getattr(signal, name).value
    device = device_of(tmp_path, f"print('loading', file=sys.stderr, flush=True); os.kill(os.getpid(), {number})")
    error = failure(device, kind)
    assert error.message == f"latency of m.onnx on local: the process died of {name}; last lines on stderr: loading"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('not json')", "exit code 0 and no JSON report on stdout: found 'not json\\n'"),
        ("print('[' * 100000)", "no JSON report on stdout"),
        ("", "exit code 0 and no JSON report on stdout: found ''"),
        ("print('[]')", "schema_version None, expected 1"),
        ("print('{\"schema_version\": 2}')", "schema_version 2, expected 1"),
        (GOOD + "; sys.exit(3)", "exit code 3 in spite of a whole report"),
        ("raise SystemExit('a reason')", "last lines on stderr: a reason"),
        ('print(\'{"schema_version": 1, "error": 5}\')', "latency of m.onnx on local: 5 (None)"),
    ],
)
def test_a_report_that_is_none(tmp_path: Path, code: str, expected: str) -> None:
    assert expected in failure(device_of(tmp_path, code), StableDeviceError).message


def test_inputs_that_do_not_fit_are_bad_data(tmp_path: Path) -> None:
    report = '{"schema_version": 1, "error": {"kind": "inputs", "message": "input x wants …"}}'
    error = failure(device_of(tmp_path, f"print({report!r}); sys.exit(1)"), DataError)
    assert error.exit_code == 3


def test_a_timeout_kills_the_whole_group(tmp_path: Path) -> None:
    code = (
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "print('waiting', file=sys.stderr, flush=True); time.sleep(600)\n"
    )
    error = failure(device_of(tmp_path, code), TransientDeviceError, Job("latency", "onnx", "m.onnx", timeout_s=1.5))
    assert error.message == "latency of m.onnx on local: no answer within 2 s, killed; last lines on stderr: waiting"
    assert gone(int((tmp_path / "pid").read_text()))


def gone(pid: int) -> bool:
    """Whether a process is no more, or only waits to be collected."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_an_interrupt_leaves_no_process_behind(tmp_path: Path) -> None:
    """Ctrl-C reaches the parent only, for the runner has a process group of its own."""
    pid_file = tmp_path / "pid"
    code = (
        f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); os.kill(os.getppid(), signal.SIGINT); time.sleep(600)"
    )
    with pytest.raises(KeyboardInterrupt):
        device_of(tmp_path, code).run(JOB)
    assert gone(int(pid_file.read_text()))
    assert os.getpid() != int(pid_file.read_text())
