"""The device's half, `runtimes/device.sh`, called over a link: its answers checked, lost connections made again."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from edgepack.devices.local import Finished
from edgepack.devices.ssh import Link
from edgepack.errors import LinkError, StableDeviceError
from edgepack.validation import plain_lines
from edgepack.workspace import shipped

CALL_TIMEOUT_S = 60.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
_CANNOT_WRITE = (73, 74)
_Answer = TypeVar("_Answer")

# Read by the device's shell from its standard input, so that no login shell's quoting matters. A cut text is a syntax
# error and runs nothing: the braces are open until the end.
_BOOTSTRAP = """{{
umask 077
root=${{2:-${{XDG_CACHE_HOME:-$HOME/.cache}}/edgepack-device}}
mkdir -p "$root" || exit 73
chmod 700 "$root" 2> /dev/null
file=$root/device-$1.sh
if [ ! -s "$file" ]; then
cat > "$file.$$" << 'end-of-{mark}' && mv "$file.$$" "$file" || {{ rm -f "$file.$$"; exit 74; }}
{text}
end-of-{mark}
fi
echo "{mark}"
exec sh "$file" "$root" facts
}}
"""


@dataclass(frozen=True)
class ShellFacts:
    """What the device's shell says of it: the part of the preflight that needs no Python.

    Attributes:
        root: folder of edgepack's files there, absolute.
        boot: changes when the device starts again.
        python: path of the interpreter that runs the programs; None where there is none.
        free_bytes: of the disk that `root` is on.
        lacks: small programs that edgepack needs there and the device has not.
        governors: in force, each once; empty where the kernel has none.
        governors_settable: whether edgepack may change them.
        throttled: `vcgencmd get_throttled` of a Raspberry Pi.
    """

    root: str
    boot: str
    machine: str
    kernel: str
    user: str
    libc: str | None = None
    python: str | None = None
    python_version: str | None = None
    free_bytes: int | None = None
    ram_bytes: int | None = None
    available_bytes: int | None = None
    lacks: tuple[str, ...] = ()
    governors: tuple[str, ...] = ()
    governors_settable: bool = False
    temperature_c: float | None = None
    throttled: str | None = None
    perf_event_paranoid: int | None = None


class DeviceShell:
    """Calls `device.sh` over a link, again and again for `patience_s` where the connection is lost.

    Args:
        link: to the device; whoever made it closes it.
        patience_s: how long a lost connection is tried again.

    Raises:
        DeviceError: the device cannot be reached, or its folder cannot be written.
    """

    def __init__(self, link: Link, patience_s: float) -> None:
        self._link = link
        self.patience_s = patience_s
        self._text, self._digest = _script()
        self.facts = self._connect()

    @property
    def name(self) -> str:
        """Of the device."""
        return self._link.name

    @property
    def script(self) -> str:
        """Path of `device.sh` there."""
        return f"{self.facts.root}/device-{self._digest}.sh"

    def call(self, *arguments: str, what: str, timeout_s: float = CALL_TIMEOUT_S, patient: bool = True) -> bytes:
        """Runs one command of `device.sh` and gives what it printed; it may run twice where its answer was lost.

        Args:
            arguments: the command and its arguments.
            what: is done, for messages.
            timeout_s: of one try.
            patient: whether a lost connection is made again.

        Raises:
            LinkError: no connection for `patience_s`.
            StableDeviceError: the command failed.
        """
        mark = _mark()
        # Whatever the start of a login shell prints stands before the mark.
        text = 'echo "$1"; shift; exec sh "$@"'
        command = ["sh", "-c", text, "sh", mark, self.script, self.facts.root, *arguments]

        def ask() -> bytes:
            finished = self._link.run(command, timeout_s=timeout_s, what=what)
            if finished.returncode != 0:
                raise self._failed(what, finished)
            return _after(mark, finished.stdout, f"{what} on {self.name}")

        return self.patiently(ask) if patient else ask()

    def patiently(self, action: Callable[[], _Answer]) -> _Answer:
        """The action's answer; where the connection is lost it is made again and the action repeated.

        Raises:
            LinkError: no connection for `patience_s`, or the device was started anew meanwhile.
        """
        lost_at: float | None = None
        first = ""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                if lost_at is not None:
                    self._again()
                return action()
            except LinkError as err:
                lost_at = lost_at if lost_at is not None else time.monotonic()
                first = first or err.message
                if time.monotonic() - lost_at + pause_s > self.patience_s:
                    raise LinkError(
                        f"{first} (tried again for {self.patience_s:.0f} s)",
                        hint="the device goes on with what was started there; the same command takes it up",
                    ) from err
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def refresh(self) -> None:
        """Asks for the facts again."""
        self.facts = self._connect()

    def _again(self) -> None:
        facts = self._connect()
        if facts.boot != self.facts.boot:
            raise StableDeviceError(
                f"{self.name} was started anew during the measurement",
                hint="check its power supply, and measure again: what ran before the start is not mixed with the rest",
            )

    def _connect(self) -> ShellFacts:
        what = "connect"
        mark = _mark()
        script = _BOOTSTRAP.format(mark=mark, text=self._text).encode()
        command = ["sh", "-s", "--", self._digest, self._link.root]
        finished = self._link.run(command, stdin=script, timeout_s=CALL_TIMEOUT_S, what=what)
        if finished.returncode != 0:
            raise self._failed(what, finished)
        return _facts(_after(mark, finished.stdout, f"{what} on {self.name}"), self.name)

    def _failed(self, what: str, finished: Finished) -> StableDeviceError:
        lines = [line for line in printable(finished.stderr).splitlines() if line.strip()]
        reason = "; ".join(lines[-2:])[:400] or f"exit code {finished.returncode}"
        hint = "is there a POSIX shell, and space on its disk?"
        if finished.returncode in _CANNOT_WRITE:
            hint = "edgepack needs a folder there that it may write, and space in it (XDG_CACHE_HOME names another)"
        return StableDeviceError(f"{what} on {self.name}: {reason}", hint=hint)


def printable(raw: bytes) -> str:
    """Text of a device without control characters but line ends."""
    return plain_lines(raw.decode(errors="replace"), len(raw))


def whole_number(word: str) -> int | None:
    """A number of at most 15 digits, as the device's shell prints it; None of anything else."""
    return int(word) if re.fullmatch(r"[0-9]{1,15}", word) else None


def _mark() -> str:
    return f"edgepack-{secrets.token_hex(8)}"


def _after(mark: str, stdout: bytes, what: str) -> bytes:
    _, found, rest = stdout.partition(mark.encode() + b"\n")
    if not found:
        raise LinkError(
            f"{what}: the answer is not whole", hint="the connection may have ended in the middle; try again"
        )
    return rest


def _script() -> tuple[str, str]:
    """The text of device.sh and the start of its digest."""
    raw = shipped("runtimes/device.sh").read_bytes()
    return raw.decode().rstrip("\n"), hashlib.sha256(raw).hexdigest()[:16]


def _facts(answer: bytes, device: str) -> ShellFacts:
    found: dict[str, list[str]] = {}
    for line in printable(answer[: 1 << 16]).splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value.strip()[:300])
    one = {key: values[0] for key, values in found.items()}
    missing = [key for key in ("root", "boot", "machine", "kernel") if not one.get(key)]
    if missing or not one["root"].startswith("/"):
        raise StableDeviceError(f"{device}: its facts are not as expected: no {', '.join(missing) or 'absolute root'}")
    return ShellFacts(
        root=one["root"],
        boot=one["boot"],
        machine=one["machine"],
        kernel=one["kernel"],
        user=one.get("user", ""),
        libc=one.get("libc"),
        python=one.get("python"),
        python_version=one.get("python_version"),
        free_bytes=_number(one, "free_kb", 1024),
        ram_bytes=_number(one, "ram_kb", 1024),
        available_bytes=_number(one, "available_kb", 1024),
        lacks=tuple(found.get("lacks", ())),
        governors=tuple(found.get("governor", ())),
        governors_settable="governor_writable" in one or "sudo" in one,
        temperature_c=None if (milli := _number(one, "millidegrees", 1)) is None else milli / 1000,
        throttled=one.get("throttled"),
        perf_event_paranoid=_number(one, "perf_event_paranoid", 1),
    )


def _number(found: Mapping[str, str], key: str, scale: int) -> int | None:
    value = found.get(key, "")
    return int(value) * scale if re.fullmatch(r"-?[0-9]{1,15}", value) else None
