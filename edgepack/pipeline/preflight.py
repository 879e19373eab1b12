"""What a device has and lacks before anything is measured on it, in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgepack.bench.devices.remote import RemoteDevice
from edgepack.bench.devices.shell import ShellFacts
from edgepack.bench.facts import facts_from_probe
from edgepack.host import target_from_probe
from edgepack.workspace import newest_tested

LITTLE_RAM_BYTES, LITTLE_DISK_BYTES = 128 << 20, 256 << 20
HOT_C = 70.0
_THROTTLED_NOW = 0xF
_INSTALL = "add --install, or name another interpreter with --python"


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
    report = device.probe()
    checks.insert(1, _cpu(report, device.name))
    checks += [_runtime(name, report["runtimes"].get(name)) for name in ("onnxruntime", "ai-edge-litert")]
    older = report["runtimes"].get("tflite-runtime")
    if older:
        checks.append(_runtime("tflite-runtime", older))
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
