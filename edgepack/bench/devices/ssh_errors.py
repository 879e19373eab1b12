"""Why ssh gave up, in the words of edgepack: the texts are those of OpenSSH, which has one exit code for all of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edgepack.errors import DeviceError, LinkError, StableDeviceError

if TYPE_CHECKING:
    from edgepack.bench.devices.ssh import Address


def refusal(what: str, address: Address, by_hand: str, stderr: str, *, seen: bool) -> DeviceError:
    """The error for what ssh wrote before it ended with 255.

    Args:
        what: was tried, for the message.
        address: of the device.
        by_hand: the command by which a person would connect.
        stderr: of ssh.
        seen: the device has answered before: a closed port means that it is starting again.
    """
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = _plain(lines[-1]) if lines else "the connection ended"
    where = f"{what} on {address.destination}"
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in stderr:
        return StableDeviceError(
            f"{where}: its host key is another than the one that is known: {_fingerprint(stderr)}",
            hint=f"if the device was set up anew, forget the old key with: {_forget(stderr, address)}; "
            f"then connect once by hand: {by_hand}",
        )
    if "Host key verification failed" in stderr:
        return StableDeviceError(
            f"{where}: its host key is not known here",
            hint=f"connect once by hand, compare the fingerprint and accept it: {by_hand}",
        )
    for pattern, message, hint in _STABLE:
        if re.search(pattern, stderr) and not (seen and "Connection refused" in stderr):
            told = next((line for line in lines if re.search(pattern, line)), last)
            return StableDeviceError(
                f"{where}: {message}: {_plain(told)}", hint=hint.format(ssh=by_hand, to=address.destination)
            )
    return LinkError(f"{where}: {last}", hint="check that the device is on and in reach of the network")


_STABLE = (
    (
        r"Permission denied|Too many authentication failures|no mutual signature",
        "it does not let this user in",
        "check the user's name, and bring your key there: ssh-copy-id {to}",
    ),
    (r"Could not resolve hostname|Name or service not known", "no such host", "check the name, or give the address"),
    (r"Connection refused", "nothing listens on that port", "is sshd running there, and is this its port? try: {ssh}"),
    (
        r"Bad configuration option|Bad owner or permissions|[Cc]an't open user config file|terminating, \d+ bad config",
        "ssh refuses its own configuration",
        "try by hand: {ssh}",
    ),
    (r"no matching (host key|cipher|MAC|key exchange)", "no common algorithm", "see what is offered with: {ssh} -v"),
    (r"expired and must be changed|[Aa]ccount (is )?locked", "the account is not usable", "try by hand: {ssh}"),
)


def _plain(line: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in line)[:300]


def _fingerprint(stderr: str) -> str:
    found = re.search(r"\b(SHA256:[A-Za-z0-9+/=]{20,60})", stderr)
    return f"it offers {found[1]}" if found else "someone may be listening in"


def _forget(stderr: str, address: Address) -> str:
    file = re.search(r"Offending \S+ key in (.+?):\d+", stderr)
    name = re.search(r"Host key for (\S+) has changed", stderr)
    host = name[1] if name else (f"[{address.host}]:{address.port}" if address.port else address.host)
    return " ".join(["ssh-keygen", *(["-f", f'"{file[1]}"'] if file else []), "-R", f'"{host}"'])
