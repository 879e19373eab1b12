"""What `doctor` says of a device, from a probe of this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, cast

import pytest

from edgepack.devices.doctor import TESTED_RUNTIMES, examine_device
from edgepack.devices.remote import RemoteDevice
from edgepack.devices.shell import ShellFacts
from edgepack.workspace import shipped


class Device:
    """This machine with other runtimes."""

    name = "board"
    facts = ShellFacts("/tmp/edgepack", "1", "aarch64", "6.1", "pi", python="/usr/bin/python3", python_version="3.11.2")

    def __init__(self, runtimes: dict[str, Any]) -> None:
        self.runtimes = runtimes

    def probe(self) -> dict[str, Any]:
        command = [sys.executable, str(shipped("runtimes/runner.py")), "probe", "--no-imports"]
        done = subprocess.run(command, capture_output=True, check=True)
        return {**json.loads(done.stdout), "runtimes": self.runtimes}


@pytest.mark.parametrize("imports", [True, False])
def test_a_runtime_that_is_newer_than_tested_is_named(imports: bool) -> None:
    here = TESTED_RUNTIMES["onnxruntime"]
    newer = {"version": "99.1", "imports": imports, "error": None if imports else "SIGILL"}
    device = Device({"onnxruntime": newer, "ai-edge-litert": {"version": "2.0", "imports": True, "error": None}})
    checks = {check.name: check for check in examine_device(cast(RemoteDevice, device))}
    assert (checks["onnxruntime"].found == f"99.1, newer than the tested {here}") is imports
    assert (checks["onnxruntime"].advice is None) is imports
    assert checks["ai-edge-litert"].found == "2.0"
