"""`edgepack doctor`: what is installed here or on a device, and the command that installs what is missing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from edgepack.backends.registry import FACTS
from edgepack.devices.device import probed
from edgepack.devices.facts import facts_from_probe
from edgepack.devices.remote import RemoteDevice
from edgepack.devices.shell import ShellFacts
from edgepack.emulator import programs
from edgepack.emulator.install import ARCHITECTURES, missing
from edgepack.errors import install_command
from edgepack.targets.probe import target_from_probe

LITTLE_RAM_BYTES, LITTLE_DISK_BYTES = 128 << 20, 256 << 20
HOT_C = 70.0
_THROTTLED_NOW = 0xF
_INSTALL = "add --install, or name another interpreter with --python"


@dataclass(frozen=True)
class Finding:
    """One tool: its version or path where it was found, else the command that installs it.

    Attributes:
        lacks: what of a tool with several parts is missing.
        tested: the newest version that the tests ran on, of a runtime that is newer here.
    """

    name: str
    purpose: str
    found: str | None
    install: str
    lacks: str | None = None
    tested: str | None = None


TESTED_RUNTIMES: Mapping[str, str] = {facts.runtimes[0]: facts.tested for facts in FACTS.values()}
"""The newest versions of the runtimes that the tests ran on; those of constraints.txt, which no wheel holds."""


def _of_formats(*, own: bool) -> list[tuple[str, str, str]]:
    """The packages of formats that edgepack writes without others, or of those that take some: see `PACKAGES`."""
    return [
        (name, purpose, f"pip install {name}" if own else facts.install)
        for facts in FACTS.values()
        if own == (not facts.packages)
        for name, purpose in facts.purposes.items()
    ]


PACKAGES = (
    *_of_formats(own=True),
    ("torch", "opens torch recipes and .pt2 files", install_command("torch")),
    ("onnxscript", "exports torch models to ONNX", install_command("torch")),
    *_of_formats(own=False),
    ("keras", "opens Keras models", install_command("keras")),
    ("h5py", "reads the weights of Keras models", install_command("keras")),
    ("scikit-learn", "finds codebooks for --method kmeans", install_command("methods")),
    ("pillow", "writes images for --method jpeg", install_command("methods")),
)
"""Name, what it is for, and the command that installs it."""

PROGRAMS = (
    ("ssh", "reaches devices over SSH", "apt-get install openssh-client"),
    ("adb", "reaches Android devices", "apt-get install adb"),
)

EMULATOR_PROGRAMS = (
    ("cc", "compiles the emulator's cache model"),
    ("debootstrap", "fetches the system of emulated Arm targets"),
)


def examine() -> list[Finding]:
    """Look for every package and program that edgepack can use."""
    findings = [_package(name, purpose, install) for name, purpose, install in PACKAGES]
    findings += [Finding(name, purpose, shutil.which(name), install) for name, purpose, install in PROGRAMS]
    findings += [_emulator(arch) for arch in ARCHITECTURES]
    return findings + [
        Finding(name, purpose, programs.find(name), programs.command(name)) for name, purpose in EMULATOR_PROGRAMS
    ]


def _package(name: str, purpose: str, install: str) -> Finding:
    found = _version(name)
    tested = None if found is None else newest_tested(name, found)
    return Finding(name, purpose, found, install, tested=tested)


def _emulator(arch: str) -> Finding:
    lacks = missing(arch)
    found = None if lacks else programs.find(f"qemu-{arch}")
    purpose = f"counts what {arch} targets execute and fetch"
    return Finding(f"emulator {arch}", purpose, found, f"edgepack emulator install --arch {arch}", lacks)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        found: in words.
        advice: what to do about it; None where it is well.
    """

    name: str
    found: str
    advice: str | None = None


def examine_device(device: RemoteDevice) -> list[Check]:
    """Looks at a device: its shell's facts, and the probe with every runtime imported in a process of its own.

    Raises:
        DeviceError: it was lost, or its probe failed.
    """
    facts = device.facts
    checks = [
        Check("system", ", ".join(filter(None, (facts.machine, f"Linux {facts.kernel}", facts.libc)))),
        _python(facts),
        _bytes("free memory", facts.available_bytes, LITTLE_RAM_BYTES),
        _bytes("free disk", facts.free_bytes, LITTLE_DISK_BYTES, facts.root),
        _governor(facts),
        _temperature(facts),
    ]
    if facts.throttled is not None:
        checks.append(_throttled(facts.throttled))
    if facts.python is None:
        return checks
    report = probed(device)
    checks.insert(1, _cpu(report, device.name))
    for facts_of_format in FACTS.values():
        first, *older = facts_of_format.runtimes
        checks.append(_runtime(first, report["runtimes"].get(first)))
        checks += [_runtime(name, report["runtimes"][name]) for name in older if report["runtimes"].get(name)]
    return [*checks, _counters(report.get("counters") or {}, facts)]


def _cpu(report: Mapping[str, Any], device: str) -> Check:
    cluster = target_from_probe(report, device).main_cluster
    levels = [(level, getattr(cluster, level)) for level in ("L1d", "L2", "L3")]
    caches = [f"{level} {cache.size_bytes >> 10}K" for level, cache in levels if cache is not None]
    return Check("CPU", f"{facts_from_probe(report, device).title}, {', '.join(caches) or 'caches not listed'}")


def _python(facts: ShellFacts) -> Check:
    if facts.python is None:
        return Check("Python", "none", "install it there, on Debian: sudo apt-get install python3")
    return Check("Python", f"{facts.python_version}, {facts.python}")


def _bytes(name: str, value: int | None, little: int, where: str = "") -> Check:
    if value is None:
        return Check(name, "the device does not say")
    found = f"{value >> 20} MiB" + (f" in {where}" if where else "")
    return Check(name, found, f"under {little >> 20} MiB: large models may fail" if value < little else None)


def _governor(facts: ShellFacts) -> Check:
    if not facts.governors:
        return Check("governor", "the kernel has none: the clock is not ours to set")
    found = ", ".join(facts.governors)
    if facts.governors == ("performance",):
        return Check("governor", found)
    if facts.governors_settable:
        return Check("governor", f"{found}; performance while a measurement runs")
    return Check(
        "governor", found, "the clock may change: let this user run sudo without a password, or set performance"
    )


def _temperature(facts: ShellFacts) -> Check:
    if facts.temperature_c is None:
        return Check("temperature", "the device does not say")
    hot = facts.temperature_c > HOT_C
    return Check("temperature", f"{facts.temperature_c:.0f} °C", "let it cool down first" if hot else None)


def _throttled(word: str) -> Check:
    try:
        bits = int(word, 0)
    except ValueError:
        return Check("throttling", f"not understood: {word[:20]}")
    if bits & _THROTTLED_NOW:
        return Check("throttling", f"now ({word})", "check its power supply and its cooling")
    return Check("throttling", "since it was started, not now" if bits else "none since it was started")


def _runtime(name: str, found: Mapping[str, Any] | None) -> Check:
    if not found:
        return Check(name, "not installed", _INSTALL)
    if found["imports"]:
        version = str(found["version"])
        tested = newest_tested(name, version)
        return Check(name, version if tested is None else f"{version}, newer than the tested {tested}")
    error = str(found["error"])
    unsupported = "SIGILL" in error
    advice = "this version uses instructions that the CPU lacks: install another" if unsupported else _INSTALL
    return Check(name, f"{found['version']}: {'unsupported, ' if unsupported else ''}{error}", advice)


def _counters(found: Mapping[str, Any], facts: ShellFacts) -> Check:
    if found.get("available"):
        return Check("counters", "available")
    paranoid = facts.perf_event_paranoid
    advice = "sudo sysctl kernel.perf_event_paranoid=2 allows them" if paranoid is not None and paranoid > 2 else None
    return Check("counters", f"unavailable: {found.get('reason') or 'the device does not say why'}", advice)


def newest_tested(runtime: str, found: str) -> str | None:
    """The newest version of a runtime that the tests ran on, if the one that was found is newer; None if not.

    Args:
        runtime: name on PyPI.
        found: its version; what follows the numbers of a release is not compared.
    """
    tested = TESTED_RUNTIMES.get(runtime)
    return tested if tested is not None and _release(found) > _release(tested) else None


def _release(version: str) -> tuple[int, ...]:
    """`1.31.0rc1` → (1, 31): zeros at the end tell no releases apart."""
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    parts = [] if numbers is None else [int(part) for part in numbers[0].split(".")]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
