"""SSH as a wire: the system's OpenSSH client, so ssh_config, agents, jump hosts and known_hosts work as ever."""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgepack.devices.local import Finished, run_client
from edgepack.errors import DeviceError, LinkError, StableDeviceError, UsageError
from edgepack.validation import plain_text

CONNECT_TIMEOUT_S = 15
ALIVE_INTERVAL_S, ALIVE_COUNT = 5, 3
BLOCK_BYTES = 1 << 16
CHUNK_BYTES = 64 * BLOCK_BYTES
"""Sent at a time: what a cut link costs at most, and how often progress is told."""
SLOWEST_BYTES_PER_S = 8 << 10
_ADDRESS = re.compile(
    r"(?:(?P<user>[^@\s:]+)@)?(?:\[(?P<six>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^@\s:\[\]]+))(?::(?P<port>\d+))?"
)

Sent = Callable[[int], None]
"""Told how many bytes of a file are there."""


@dataclass(frozen=True)
class Address:
    """Where a device is: `user@host:port`, parsed. `host` may be an alias of ssh_config."""

    host: str
    user: str | None = None
    port: int | None = None

    @property
    def destination(self) -> str:
        """As ssh takes it."""
        return self.host if self.user is None else f"{self.user}@{self.host}"


def parse_address(text: str) -> Address:
    """An address of `[user@]host[:port]`; an IPv6 host stands in brackets where a port follows.

    Raises:
        UsageError: it is none.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None and text.count(":") > 1 and re.fullmatch(r"(?:[^@\s]+@)?[0-9A-Fa-f:.]+(%\w+)?", text):
        user, _, host = text.rpartition("@")
        return Address(host, user or None)
    host = (found["six"] or found["host"]) if found else ""
    port = int(found["port"]) if found and found["port"] else None
    # A leading dash would be an option of ssh.
    if not found or host.startswith("-") or text.startswith("-") or (port is not None and not 1 <= port <= 65535):
        raise UsageError(
            f"not a host: {text!r}; expected user@host or user@host:port", hint="as in --host pi@raspberrypi.local"
        )
    return Address(host, found["user"], port)


class SshLink:
    """One device over one connection, which all commands share.

    Host keys are checked as ever, and nothing is asked: what needs a password or an answer is an error.

    Args:
        address: `user@host[:port]`, or an alias of ssh_config.
        config: an ssh_config file in place of the user's.

    Raises:
        UsageError: the address is none, or the file no regular one: ssh would wait for ever at a pipe.
        StableDeviceError: there is no ssh here.
    """

    root = ""

    def __init__(self, address: str, *, config: Path | None = None) -> None:
        self._address = parse_address(address)
        self.name = address
        self._seen = False
        if shutil.which("ssh") is None:
            raise StableDeviceError(
                "no ssh client here", hint="install OpenSSH's, on Debian: apt-get install openssh-client"
            )
        if config is not None and not config.is_file():
            found = "not a regular file" if config.exists() else "no such file"
            raise UsageError(f"--ssh-config {config}: {found}", hint="name a file as of ssh_config(5)")
        self._folder = tempfile.TemporaryDirectory(prefix="edgepack-ssh-", dir=_short_folder())
        own = ["-F", str(config)] if config is not None else []
        own += ["-p", str(self._address.port)] if self._address.port else []
        self._by_hand = shlex.join(["ssh", *own, self._address.destination])
        self._options = [*own, *_options(Path(self._folder.name) / "mux")]

    def run(self, command: Sequence[str], *, stdin: bytes = b"", timeout_s: float, what: str) -> Finished:
        """See `Link.run`."""
        whole = ["ssh", *self._options, "-T", "--", self._address.destination, shlex.join(command)]
        finished = run_client(whole, stdin=stdin, timeout_s=timeout_s)
        if finished.overflow:
            raise StableDeviceError(f"{what} on {self.name}: the answer is larger than any that edgepack expects")
        if finished.returncode is None:
            self._hang_up()
            raise LinkError(
                f"{what} on {self.name}: no answer within {timeout_s:.0f} s", hint="the link or the device is stuck"
            )
        if finished.returncode == 255:
            self._hang_up()
            stderr = finished.stderr.decode(errors="replace")
            if not self._seen and "kex_exchange_identification" in stderr:
                stderr = self._why() or stderr
            raise refusal(what, self._address, self._by_hand, stderr, seen=self._seen)
        self._seen = True
        return finished

    def upload(self, path: Path, there: str, start: int, *, what: str, sent: Sent) -> None:
        """See `Link.upload`. Every block has its place: one that a broken connection still delivers does no harm."""
        with path.open("rb") as file:
            done = start // BLOCK_BYTES * BLOCK_BYTES
            file.seek(done)
            while (chunk := file.read(CHUNK_BYTES)) or done == 0:
                command = ["sh", "-c", 'umask 077; exec dd "$@"', "sh", f"of={there}", f"ibs={BLOCK_BYTES}"]
                command += [f"obs={BLOCK_BYTES}", f"seek={done // BLOCK_BYTES}", "conv=notrunc"]
                patience = 60.0 + len(chunk) / SLOWEST_BYTES_PER_S
                finished = self.run(command, stdin=chunk, timeout_s=patience, what=what)
                if finished.returncode != 0:
                    reason = finished.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
                    raise StableDeviceError(f"{what} on {self.name}: cannot write {there}: {_plain(reason[0])}")
                done += len(chunk)
                sent(done)
                if not chunk:
                    return  # an empty file is one empty write

    def close(self) -> None:
        """Ends the shared connection."""
        self._hang_up()
        self._folder.cleanup()

    def _why(self) -> str:
        """What ssh says without a shared connection: with one it keeps to itself what a jump host's ssh says."""
        # An option's first value counts, so these go before all others.
        alone = ["-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "ControlPersist=no"]
        command = ["ssh", *alone, *self._options, "-T", "--", self._address.destination, "true"]
        return run_client(command, timeout_s=4.0 * CONNECT_TIMEOUT_S).stderr.decode(errors="replace")

    def _hang_up(self) -> None:
        if (Path(self._folder.name) / "mux").exists():
            end = ["ssh", *self._options, "-O", "exit", "--", self._address.destination]
            run_client(end, timeout_s=30.0)


def _options(socket: Path) -> list[str]:
    settings = {
        "BatchMode": "yes",
        "ConnectTimeout": CONNECT_TIMEOUT_S,
        "ServerAliveInterval": ALIVE_INTERVAL_S,
        "ServerAliveCountMax": ALIVE_COUNT,
        "ControlMaster": "auto",
        "ControlPath": socket,
        "ControlPersist": 300,
        # What a user may have set for sessions of their own.
        "RemoteCommand": "none",
        "RequestTTY": "no",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        "LogLevel": "ERROR",
    }
    return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]


def _short_folder() -> str | None:
    """A socket's path may have some hundred characters; a longer temporary folder than that is not used."""
    return None if len(tempfile.gettempdir()) < 50 else "/tmp"


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
    return plain_text(line, 300)


def _fingerprint(stderr: str) -> str:
    found = re.search(r"\b(SHA256:[A-Za-z0-9+/=]{20,60})", stderr)
    return f"it offers {found[1]}" if found else "someone may be listening in"


def _forget(stderr: str, address: Address) -> str:
    """The command that forgets a key. A server's banner stands in `stderr` too: of it only a file that is here and a
    name that is one go into a command that somebody pastes."""
    file = re.search(r'Offending \S+ key in ([^"$`\\\n]+?):\d+', stderr)
    name = re.search(r"Host key for ([\w.:%\[\]-]+) has changed", stderr)
    host = name[1] if name else (f"[{address.host}]:{address.port}" if address.port else address.host)
    known = file is not None and file[1].isprintable() and Path(file[1]).is_file()
    return " ".join(["ssh-keygen", *(["-f", f'"{file[1]}"'] if file and known else []), "-R", f'"{host}"'])


class Link(Protocol):
    """A wire: SSH, or adb. Whoever made it closes it."""

    @property
    def name(self) -> str:
        """For messages: `pi@raspberrypi.local`, `adb 0123456789ABCDEF`."""

    @property
    def root(self) -> str:
        """The folder for edgepack's files there; empty for the cache folder of the user there."""

    def run(self, command: Sequence[str], *, stdin: bytes = b"", timeout_s: float, what: str) -> Finished:
        """Runs a command on the device.

        Args:
            command: program and arguments, each one element; whatever they hold reaches the program as it is.
            stdin: of the command.
            timeout_s: after which this end gives up.
            what: is done, for messages: `start latency of model.onnx`.

        Returns:
            What the command printed and its exit code, whatever that is.

        Raises:
            LinkError: the wire broke, or the time was up; the command may have run or not.
            StableDeviceError: the device refuses: unknown, closed, another host key, a wrong user.
        """

    def upload(self, path: Path, there: str, start: int, *, what: str, sent: Sent) -> None:
        """Brings a file's bytes to the file `there`, whose first `start` bytes are there already.

        Raises:
            LinkError: the wire broke; what arrived stays there.
            StableDeviceError: the device cannot write it: its disk is full, or the folder is not writable.
        """

    def close(self) -> None:
        """Ends what the link keeps open."""
