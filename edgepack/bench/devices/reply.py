"""What came back from one run of the runner: its report, or the error that says why there is none."""

from __future__ import annotations

import json
import signal
from typing import Any

from edgepack.errors import DataError, DeviceError, StableDeviceError, TransientDeviceError

SCHEMA_VERSION = 1
# Somebody outside ended the process; all other signals come from what the process did.
_KILLED_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT")
_HINTS = {
    "SIGILL": "the runtime uses instructions that this CPU lacks: it is unsupported here; try another version of it",
    "SIGKILL": "often the kernel ended it for want of memory; see `dmesg`",
}


def read_reply(what: str, returncode: int, stdout: bytes, stderr: bytes) -> dict[str, Any]:
    """The report of a finished runner.

    Args:
        what: the run, for messages: `latency of model.onnx on local`.
        returncode: negative where a signal ended the process.
        stdout: the report, one JSON object.
        stderr: its last lines go into the message.

    Raises:
        TransientDeviceError: the process was killed from outside.
        StableDeviceError: it crashed, failed, or gave no valid report.
        DataError: the inputs do not fit the model.
    """
    tail = last_lines(stderr)
    if returncode < 0:
        raise _died(what, -returncode, tail)
    try:
        report = json.loads(stdout)
    except (ValueError, RecursionError) as err:
        found = stdout[:80].decode(errors="replace")
        raise StableDeviceError(
            f"{what}: exit code {returncode} and no JSON report on stdout: found {found!r}{tail}",
            hint="something on the device prints to stdout, or its Python is too old (3.9 is needed)",
        ) from err
    if not isinstance(report, dict) or report.get("schema_version") != SCHEMA_VERSION:
        version = report.get("schema_version") if isinstance(report, dict) else None
        raise StableDeviceError(
            f"{what}: the report has schema_version {version!r}, expected {SCHEMA_VERSION}",
            hint="the runner on the device is of another edgepack version: push it again",
        )
    error = report.get("error")
    if error is not None:
        raise _failed(what, error, tail)
    if returncode != 0:
        raise StableDeviceError(f"{what}: exit code {returncode} in spite of a whole report{tail}")
    return report


def last_lines(stderr: bytes, count: int = 3) -> str:
    """The last lines of stderr as the end of a message, empty where there are none."""
    lines = [line for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    return "; last lines on stderr: " + " | ".join(_plain(line) for line in lines[-count:]) if lines else ""


def _plain(text: str, most: int = 300) -> str:
    """A device's words for a message: without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text[:most])


def _died(what: str, number: int, tail: str) -> DeviceError:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    kind = TransientDeviceError if name in _KILLED_FROM_OUTSIDE else StableDeviceError
    return kind(f"{what}: the process died of {name}{tail}", hint=_HINTS.get(name))


def _failed(what: str, error: Any, tail: str) -> DeviceError | DataError:
    kind = error.get("kind") if isinstance(error, dict) else None
    message = _plain(str(error.get("message")), 1000) if isinstance(error, dict) else repr(error)[:300]
    if kind == "inputs":
        return DataError(f"{what}: {message}", hint="check the names, shapes and dtypes of the example inputs")
    if kind == "runtime-missing":
        return StableDeviceError(
            f"{what}: {message}", hint="install it in the device's Python: pip install onnxruntime or ai-edge-litert"
        )
    if message.startswith("ModuleNotFoundError: No module named "):
        module = message.split("'")[1] if "'" in message else "it"
        return StableDeviceError(f"{what}: {message}", hint=f"install it in the device's Python: pip install {module}")
    kind = _plain(str(kind))
    return StableDeviceError(f"{what}: {message} ({kind}){tail if kind == 'failed' else ''}")
