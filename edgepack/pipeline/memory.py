"""What a process holds for one model file at its peak, measured on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.bench.devices.device import Job
from edgepack.bench.devices.local import LocalDevice
from edgepack.errors import StableDeviceError
from edgepack.model.scheme import Format
from edgepack.workspace import TOOLS, Keyed, Step, Workspace, file_digest


def peak_ram_bytes(path: Path, fmt: Format, workspace: Workspace) -> int:
    """Peak memory of a fresh process after three inferences, without that of one that only imports the runtime.

    Raises:
        DeviceError: the process failed, or the kernel does not say what it held.
    """
    return workspace.cached(PEAK, Keyed([file_digest(path), fmt], lambda: _File(path, fmt)))


@dataclass(frozen=True)
class _File:
    path: Path
    fmt: Format


def _measured(file: _File) -> int:
    device = LocalDevice()
    alone, loaded = (_peak(device.run(Job("memory", file.fmt, model))) for model in (None, device.push(file.path)))
    return max(loaded - alone, 0)


def _peak(report: Mapping[str, Any]) -> int:
    peak = report["ran" if not report["import_only"] else "imported"]["peak_bytes"]
    if peak is None:
        raise StableDeviceError("this machine does not say how much memory a process held", hint="leave --ram out")
    return int(peak)


PEAK: Step[_File, int] = Step("memory", 2, _measured, tools=TOOLS)
