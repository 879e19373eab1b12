"""adb as a wire: the system's adb client, for Android phones and boards.

Checked with the real client against a daemon in the tests that speaks the transport protocol; not against a phone.
"""

from __future__ import annotations

import re
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from edgepack.devices.local import Finished, run_client
from edgepack.devices.ssh import Sent
from edgepack.errors import DeviceError, LinkError, StableDeviceError, UsageError
from edgepack.validation import plain_text

ROOT = "/data/local/tmp/edgepack"
"""The shell's user may write there and run what lies there, on every Android."""
BLOCK_BYTES = 1 << 16
SLICE_BYTES = 128 * BLOCK_BYTES
"""Pushed at a time: what a cut link costs at most, for adbd removes a file whose push was cut."""
SLOWEST_BYTES_PER_S = 64 << 10
_ASK_TIMEOUT_S = 30.0
_AUTHORIZING_S = 3.0

# On the device: the command with this end's standard input, and last how it ended. Without that line the answer was
# cut: adb itself ends with 0 when a connection is lost in the middle. When this end hangs up, adbd sends SIGHUP.
_ON_DEVICE = """exec 3<&0
child=
trap '[ -z "$child" ] || kill -HUP $child; exit 129' HUP
{command} <&3 3<&- &
child=$!
wait $child
code=$?
printf '\\n{mark} %d\\n' $code
exit $code
"""

_CANNOT_WRITE = (
    r"No space left on device|Read-only file system|Permission denied|Is a directory|Not a directory|Quota exceeded"
    r"|File too large|Operation not permitted|couldn't create file|secure_mkdirs failed|remote write failed"
)


class AdbLink:
    """One device of the adb server, which is started if it does not run and is left running.

    The server's address comes from the environment, as for adb: `ANDROID_ADB_SERVER_PORT`, `ADB_SERVER_SOCKET`. A
    serial number of the form HOST:PORT is connected to as by `adb connect`, again when it was lost.

    Args:
        serial: as `adb devices` lists it.
        adb: the client program.
        root: folder for edgepack's files there.

    Raises:
        UsageError: that is no serial number.
        StableDeviceError: there is no adb here.
    """

    def __init__(self, serial: str, *, adb: str = "adb", root: str = ROOT) -> None:
        if not re.fullmatch(r"[^\s-]\S{0,199}", serial):
            raise UsageError(f"not a serial number of adb: {serial!r}", hint="`adb devices` lists them")
        self.name = f"adb {serial}"
        self.root = root
        self._serial = serial
        self._adb = shutil.which(adb) or ""
        if not self._adb:
            raise StableDeviceError(f"no adb client here: {adb}", hint="install it, on Debian: apt-get install adb")
        self._over_network = re.search(r":\d+$", serial) is not None
        self._seen = False
        self._ready = False
        self._stuck = False

    def run(self, command: Sequence[str], *, stdin: bytes = b"", timeout_s: float, what: str) -> Finished:
        """See `Link.run`. What this end gives up is told to hang up there; what that started in turn may go on."""
        self._greet(what)
        mark = f"edgepack-{secrets.token_hex(8)}"
        script = _ON_DEVICE.format(command=shlex.join(command), mark=mark)
        # -T: no terminal, so bytes stay what they are. -n: nothing is read from ours.
        shell = ["shell", "-T", *([] if stdin else ["-n"]), script]
        finished = self._client(shell, stdin, timeout_s, what)
        stdout, found, code = finished.stdout.rpartition(f"\n{mark} ".encode())
        if not found or not re.fullmatch(rb"\d{1,3}\r?\n", code):
            self._ready = False
            raise self._refusal(what, finished.stderr.decode(errors="replace"))
        return Finished(int(code), stdout, finished.stderr)

    def upload(self, path: Path, there: str, start: int, *, what: str, sent: Sent) -> None:
        """See `Link.upload`. Slices are pushed by sync and put in their place there: a cut costs one of them."""
        with path.open("rb") as file, tempfile.TemporaryDirectory(prefix="edgepack-adb-") as folder:
            done = start // BLOCK_BYTES * BLOCK_BYTES
            file.seek(done)
            while (chunk := file.read(SLICE_BYTES)) or done == 0:
                part = Path(folder) / "slice"
                part.write_bytes(chunk)
                self._push(part, f"{there}.slice", what)
                self._append(f"{there}.slice", there, done // BLOCK_BYTES, what)
                done += len(chunk)
                sent(done)
                if not chunk:
                    return  # an empty file is one empty slice

    def close(self) -> None:
        """See `Link.close`: every command had a connection of its own, and the server stays for others."""

    def _push(self, part: Path, there: str, what: str) -> None:
        self._greet(what)
        patience_s = 60.0 + part.stat().st_size / SLOWEST_BYTES_PER_S
        finished = self._client(["push", str(part), there], b"", patience_s, what)
        if finished.returncode == 0:
            return
        text = (finished.stdout + b"\n" + finished.stderr).decode(errors="replace")
        reason = write_failure(text)
        if reason is not None:
            raise StableDeviceError(f"{what} on {self.name}: cannot write {there}: {reason}")
        self._ready = False
        raise self._refusal(what, text)

    def _append(self, piece: str, there: str, block: int, what: str) -> None:
        text = 'umask 077; dd if="$1" of="$2" bs="$3" seek="$4" conv=notrunc; code=$?; rm -f "$1"; exit $code'
        command = ["sh", "-c", text, "sh", piece, there, str(BLOCK_BYTES), str(block)]
        finished = self.run(command, timeout_s=60.0 + SLICE_BYTES / SLOWEST_BYTES_PER_S, what=what)
        if finished.returncode != 0:
            stderr = finished.stderr.decode(errors="replace")
            lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["no reason given"]
            reason = write_failure(stderr) or plain_text(lines[0], 300)
            raise StableDeviceError(f"{what} on {self.name}: cannot write {there}: {reason}")

    def _greet(self, what: str) -> None:
        """Sees to it that the device is there and can do what is needed, once per connection."""
        if self._ready:
            return
        started = self._ask("start-server")
        if started.returncode != 0:
            raise self._refusal(what, _text(started) or "failed to start daemon")
        state = self._connect()
        if state != "device":
            raise self._wrong_state(what, state)
        features = self._ask("-s", self._serial, "features")
        if features.returncode != 0:
            raise self._refusal(what, _text(features))
        if "shell_v2" not in features.stdout.decode(errors="replace").split():
            raise StableDeviceError(
                f"{what} on {self.name}: its adb is too old: no shell_v2 among its features, so it gives no exit codes",
                hint="Android 7 or newer is needed",
            )
        self._ready = self._seen = True

    def _connect(self) -> str:
        """The state of the device, after a try to mend it."""
        if self._stuck and not self._over_network:
            self._ask("-s", self._serial, "reconnect")
        state = self._state()
        if self._over_network and (self._stuck or re.search(r"not found|offline|no devices", state)):
            if "not found" not in state:
                self._ask("disconnect", self._serial)
            answer = _text(self._ask("connect", self._serial))
            state = self._state()
            if "not found" in state:
                state = answer or state
        self._stuck = False
        return state

    def _state(self) -> str:
        """`device` where it can be used, else another state or what adb says is wrong."""
        until = time.monotonic() + _AUTHORIZING_S
        while True:
            text = _text(self._ask("-s", self._serial, "get-state"))
            if not re.search(r"authorizing|connecting", text) or time.monotonic() > until:
                return text
            time.sleep(0.2)

    def _wrong_state(self, what: str, state: str) -> DeviceError:
        if re.fullmatch(r"bootloader|recovery|rescue|sideload|host", state):
            return StableDeviceError(
                f"{what} on {self.name}: it is in state {state}, expected device", hint="let it start: adb reboot"
            )
        return self._refusal(what, state)

    def _refusal(self, what: str, text: str) -> DeviceError:
        listed = [line.split() for line in _text(self._ask("devices")).splitlines()[1:] if line.strip()]
        shown = ", ".join(plain_text(" ".join(words[:2]), 100) for words in listed[:20]) or "none"
        return refusal(what, self.name, text, seen=self._seen, devices=f"`adb devices` shows {shown}")

    def _client(self, arguments: Sequence[str], stdin: bytes, timeout_s: float, what: str) -> Finished:
        finished = run_client([self._adb, "-s", self._serial, *arguments], stdin=stdin, timeout_s=timeout_s)
        if finished.overflow:
            raise StableDeviceError(f"{what} on {self.name}: the answer is larger than any that edgepack expects")
        if finished.returncode is None:
            self._ready, self._stuck = False, True
            raise LinkError(
                f"{what} on {self.name}: no answer within {timeout_s:.0f} s", hint="the link or the device is stuck"
            )
        return finished

    def _ask(self, *arguments: str) -> Finished:
        """A question to adb's server, which answers by itself."""
        finished = run_client([self._adb, *arguments], timeout_s=_ASK_TIMEOUT_S)
        if finished.returncode is None:
            raise LinkError(
                f"{self.name}: adb {arguments[-1]} gives no answer within {_ASK_TIMEOUT_S:.0f} s",
                hint="its server may hang: adb kill-server",
            )
        return finished


def _text(finished: Finished) -> str:
    return (finished.stdout + finished.stderr).decode(errors="replace").strip()


def refusal(what: str, name: str, text: str, *, seen: bool, devices: str = "") -> DeviceError:
    """The error for what adb printed before it failed.

    Args:
        what: was tried, for the message.
        name: of the device.
        text: of adb, from either stream: it tells of a failed push on its standard output.
        seen: the device has answered before: one that is gone now was unplugged or starts again.
        devices: what `adb devices` shows, for the message of a device that is not there.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("* ")]
    told = re.sub(
        r"^(adb: )?error: (failed to copy '.*' to '.*': )?", "", lines[0] if lines else "the connection ended"
    )
    first = plain_text(told, 300)
    where = f"{what} on {name}"
    if not seen and re.search(r"device '.*' not found|no devices(/emulators)? found", text):
        return StableDeviceError(
            f"{where}: no such device; {devices}",
            hint="give one of these serial numbers; a phone is listed when USB debugging is on (developer options)",
        )
    for pattern, message, hint, also_later in _STABLE:
        if re.search(pattern, text) and (also_later or not seen):
            return StableDeviceError(f"{where}: {message}: {first}", hint=hint)
    return LinkError(f"{where}: {first}", hint="check the device's cable or network, and that its screen is not asking")


def write_failure(text: str) -> str | None:
    """Why the device could not write what was pushed, None where adb failed for another reason."""
    found = re.search(rf"[^\n:]*(?:{_CANNOT_WRITE})[^\n]*", text)
    return plain_text(found[0].strip(), 300) if found else None


_STABLE = (
    (
        r"device unauthorized|failed to authenticate",
        "it does not accept this computer's key",
        "accept the key on the phone's screen (unlock it, then plug it in again if it does not ask)",
        True,
    ),
    (
        r"more than one (device|emulator)",
        "several devices have this serial number",
        "unplug the others, or give the address of one (`adb devices -l`)",
        True,
    ),
    (
        r"insufficient permissions|no permissions",
        "this user may not open the device",
        "add the udev rules (Debian: apt-get install android-sdk-platform-tools-common) and yourself to plugdev",
        True,
    ),
    (
        r"cannot connect to daemon|failed to start daemon|could not start server|daemon still not running",
        "adb's own server does not start",
        "try by hand: adb kill-server && adb start-server; ANDROID_ADB_SERVER_PORT names another port",
        False,
    ),
    (
        r"(failed|unable) to connect to|Connection refused|Name or service not known|No route to host",
        "nobody answers there",
        "is wireless debugging on, and is this its address and port? pair first where the phone asks for it",
        False,
    ),
)
