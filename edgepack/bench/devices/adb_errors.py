"""Why adb gave up, in the words of edgepack: the texts are those of adb's client and server."""

from __future__ import annotations

import re

from edgepack.errors import DeviceError, LinkError, StableDeviceError

_CANNOT_WRITE = (
    r"No space left on device|Read-only file system|Permission denied|Is a directory|Not a directory|Quota exceeded"
    r"|File too large|Operation not permitted|couldn't create file|secure_mkdirs failed|remote write failed"
)


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
    first = "".join(c if c.isprintable() else "?" for c in told)[:300]
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
    return "".join(c if c.isprintable() else "?" for c in found[0].strip())[:300] if found else None


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
