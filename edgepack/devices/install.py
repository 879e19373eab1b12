"""Runtimes on a device: a virtual environment of its own there, from the network or from wheels sent from here."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgepack.backends.registry import FACTS
from edgepack.devices.remote import RemoteDevice
from edgepack.devices.shell import ShellFacts
from edgepack.errors import DeviceError, LinkError, StableDeviceError, TransientDeviceError
from edgepack.targets.target import Target
from edgepack.validation import plain_text
from edgepack.workspace import Progress, shipped, silent

INSTALL_TIMEOUT_S = 1800.0
DOWNLOAD_TIMEOUT_S = 900.0
WHEELS_FOR = ("x86_64", "aarch64")
_OLDEST_GLIBC = 17


def install_runtimes(device: RemoteDevice, target: Target, progress: Progress = silent) -> Mapping[str, str]:
    """Makes the environment that later sessions use; one that is there is replaced when the new one is whole.

    The device's own network is tried first; where it has none, the wheels are downloaded here and sent.

    Args:
        device: with a Python 3.9 or newer.
        target: whose runtimes are wanted; versions that are known to fail on it are left out.
        progress: told of every step.

    Returns:
        Version by name of everything installed.

    Raises:
        StableDeviceError: there are no wheels for such a device, or its Python cannot make an environment.
        TransientDeviceError: neither the device nor this machine could fetch the wheels.
    """
    wanted = requirements(target)
    progress(f"install on {device.name}: from the network", 0, 2)
    try:
        report = _run(device, wanted, None, ())
    except LinkError:
        raise
    except DeviceError as offline:
        progress(f"install on {device.name}: with wheels from here", 1, 2)
        with tempfile.TemporaryDirectory(prefix="edgepack-wheels-") as folder:
            try:
                wheels = download(wanted, device.facts, Path(folder))
            except TransientDeviceError as err:
                raise TransientDeviceError(
                    f"{err.message}; nor could the device itself: {offline.message}", hint=err.hint
                ) from err
            pip = next(wheel for wheel in wheels if wheel.name.startswith("pip-"))
            report = _run(device, wanted, pip, wheels)
    device.shell.refresh()
    progress(f"install on {device.name}", 2, 2)
    installed = report.get("installed")
    if not isinstance(installed, dict) or not all(isinstance(text, str) for item in installed.items() for text in item):
        raise StableDeviceError(f"install on {device.name}: the report does not say what was installed")
    return {plain_text(name, 100): plain_text(version, 100) for name, version in installed.items()}


def requirements(target: Target) -> list[str]:
    """What pip is asked for: `onnxruntime!=1.21.0` …"""
    wanted = []
    for fmt in target.runtimes:
        name = FACTS[fmt].runtimes[0]  # what came before it has ended, and served the same files
        wanted.append(name + ",".join(f"!={bad.version}" for bad in target.known_bad if bad.runtime == name))
    if not wanted:
        raise StableDeviceError(f"target {target.name} has no runtime to install: {target.no_runtime_reason}")
    return ["numpy", *wanted]


def download(wanted: Sequence[str], facts: ShellFacts, folder: Path) -> list[Path]:
    """Wheels for a device, and pip's own, in a folder here.

    Raises:
        StableDeviceError: no wheels are made for such a device.
        TransientDeviceError: they cannot be fetched.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--only-binary=:all:", "--dest", str(folder), *_platform(facts), "pip", *wanted]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=DOWNLOAD_TIMEOUT_S)
    except subprocess.TimeoutExpired as err:
        raise TransientDeviceError(f"downloading the wheels took over {DOWNLOAD_TIMEOUT_S:.0f} s") from err
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise TransientDeviceError(
            f"this machine cannot download wheels for {facts.machine}, Python {facts.python_version}, {facts.libc}: "
            + plain_text(lines[-1], 300),
            hint="connect this machine or the device to a network that has Python packages",
        )
    return sorted(folder.glob("*.whl"))


def _platform(facts: ShellFacts) -> list[str]:
    """pip's options for a device's Python and C library."""
    glibc = re.fullmatch(r"glibc 2\.(\d{1,3})", facts.libc or "")
    python = re.match(r"3\.(\d{1,2})\.", facts.python_version or "")
    if facts.machine not in WHEELS_FOR or glibc is None or python is None:
        raise StableDeviceError(
            f"there are no wheels for {facts.machine} with {facts.libc or 'an unknown C library'} and Python "
            f"{facts.python_version}; expected {' or '.join(WHEELS_FOR)} with glibc",
            hint="install a runtime there by hand and name its interpreter with --python",
        )
    minors = range(_OLDEST_GLIBC, int(glibc[1]) + 1)
    options = [f"--platform=manylinux_2_{minor}_{facts.machine}" for minor in reversed(minors)]
    options += [f"--platform=manylinux2014_{facts.machine}", f"--platform=linux_{facts.machine}"]
    options += [f"--python-version=3.{python[1]}", "--implementation=cp"]
    return options + [f"--abi={abi}" for abi in (f"cp3{python[1]}", "abi3", "none")]


def _run(device: RemoteDevice, wanted: Sequence[str], pip: Path | None, wheels: Sequence[Path]) -> Mapping[str, Any]:
    program = device.push(shipped("runtimes/install.py"))
    files = [program, *(device.push(wheel) for wheel in wheels)]
    command = [device.interpreter(), program, "--venv", f"{device.facts.root}/venv"]
    if pip is not None:
        command += ["--pip", device.push(pip), "--wheels", *files[1:], "--"]
    return device.run_command([*command, *wanted], files, f"install on {device.name}", INSTALL_TIMEOUT_S, once=True)
