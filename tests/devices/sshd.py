"""Throw-away devices behind Debian's sshd, each with keys, home, mounts, processes and a network of its own."""

from __future__ import annotations

import getpass
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from edgepack.devices.remote import RemoteDevice
from edgepack.devices.ssh import SshLink
from tests.devices import netns
from tests.devices.relay import Relay
from tests.devices.sshd_setup import CONFIG, SETUP, accounts, require

PROJECT_PATH = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""`python3` there is the one that runs the tests, with all runtimes."""
ANSWER = '{"schema_version": 1, "mode": "latency", "answer": 42}'
WAIT = "while [ ! -e go ]; do sleep 0.05; done"
"""For a stand-in: until the test says `go`."""
_Found = TypeVar("_Found")


def until(what: str, look: Callable[[], _Found], seconds: float = 60.0) -> _Found:
    """What `look` finds, when that is something true."""
    give_up = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < give_up, f"waited in vain for {what}"
        time.sleep(0.02)
    return found


class Machine:
    """A device: sshd on port 22 of a network of its own, with the tests' files, and processes that all end with it.

    Args:
        folder: of its own.
        path: PATH there.
        mounts: files and folders of the device that others stand in for.
        disk: options of the tmpfs that its cache folder is on: `size=8m`.
        config: more lines of sshd_config.
    """

    def __init__(
        self,
        folder: Path,
        *,
        path: str = PROJECT_PATH,
        mounts: Mapping[str, Path] | None = None,
        disk: str = "",
        config: str = "",
    ) -> None:
        require()
        self.folder = folder
        self.home, self.cache, self._log = folder / "home", folder / "cache", folder / "log"
        for made in (self.home, self.cache):
            made.mkdir(parents=True)
        for name in ("host_key", "user_key"):
            new_key(folder / name)
        self.boot_id = folder / "boot_id"
        self.boot_id.write_text("first\n")
        (folder / "sshd_config").write_text(CONFIG.format(folder=folder, path=path, more=config))
        places = {"/proc/sys/kernel/random/boot_id": self.boot_id, **accounts(folder, self.home), **(mounts or {})}
        (folder / "mounts").write_text("".join(f"{source} {place}\n" for place, source in places.items()))
        (folder / "disk").write_text(disk)
        self.start()

    def start(self) -> None:
        """Switches it on. It goes off with the process of the tests, however that ends."""
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "-m", "-n", "-p", "-f", "--kill-child", "--mount-proc"]
        with self._log.open("ab") as log:
            before = log.tell()
            self._holder = subprocess.Popen(
                [*command, "sh", "-c", SETUP, "sh", str(self.folder)], stdin=subprocess.DEVNULL, stderr=log
            )
        until("sshd", lambda: "Server listening on" in self._log.read_text()[before:] or self._ended())
        held = self._holder.pid
        self.pid = int(Path(f"/proc/{held}/task/{held}/children").read_text().split()[0])

    def stop(self) -> None:
        """Switches it off: no process is left."""
        os.kill(self.pid, signal.SIGKILL)  # the first process of its own: all others end with it
        self._holder.wait(60)

    def reboot(self) -> None:
        """Off and on again; what is on its disk stays."""
        self.stop()
        self.boot_id.write_text(f"{self.boot_id.read_text().strip()} again\n")
        self.start()

    def inside(self, path: Path) -> Path:
        """A file of the device with its mounts, seen from here."""
        return Path(f"/proc/{self.pid}/root{path}")

    @property
    def root(self) -> Path:
        """The folder of edgepack's files there."""
        return self.inside(self.cache / "edgepack-device")

    @property
    def log(self) -> str:
        """What sshd has said."""
        return self._log.read_text()

    def processes(self) -> dict[int, str]:
        """Command lines of what runs there, sshd and its sessions apart."""
        mine = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = {}
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdecimal() and os.readlink(folder / "ns/pid") == mine:
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except OSError:
                continue  # it has ended
        return {pid: line for pid, line in found.items() if line and not line.startswith(("sshd", "/usr/sbin/sshd"))}

    @staticmethod
    def kill(pids: Iterable[int]) -> None:
        """Kill them one after another, where the end of one may have ended the next."""
        for pid in sorted(pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def jobs(self) -> list[Path]:
        """Folders of jobs that are there."""
        return sorted((self.root / "jobs").glob("*"))

    def assert_clean(self) -> None:
        """No process, no part of a file, no lock, no governor to put back."""
        until(f"the end of {self.processes()}", lambda: not self.processes())
        assert list(self.root.glob("store/*/*.part")) == []
        assert not (self.root / "lock").exists()
        assert not (self.root / "governors").exists()

    def _ended(self) -> bool:
        assert self._holder.poll() is None, f"sshd did not start: {self.log[-2000:]}"
        return False


@dataclass(frozen=True)
class Rig:
    """A device, the wire to it and how a client finds it as host `device`."""

    machine: Machine
    relay: Relay
    config: Path
    links: list[SshLink] = field(default_factory=list)

    def link(self, address: str = "device") -> SshLink:
        """A wire that is closed with the rig at the latest."""
        self.links.append(SshLink(address, config=self.config))
        return self.links[-1]

    def hang_up(self) -> None:
        """Closes all wires: those of tests that fail as well."""
        self.relay.resume()
        for link in self.links:
            link.close()

    def stand_in(self, before: str = "", after: str = "") -> str:
        """A Python there that counts its runs in `runs`, does `before`, and reports `ANSWER` whatever it is asked."""
        lines = [f"cd {self.machine.folder}", "echo $$ >> runs", before, f"echo '{ANSWER}'", after]
        return str(program(self.machine.folder, "python", "\n".join(lines) + "\n"))

    def runs(self) -> list[int]:
        """Process numbers, as the device counts them, of the stand-in's runs."""
        file = self.machine.folder / "runs"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def go(self) -> None:
        """What a stand-in with `WAIT` waits for."""
        (self.machine.folder / "go").touch()

    def device(self, *, patience_s: float = 30.0, python: str | None = None, fresh: bool = False) -> RemoteDevice:
        return RemoteDevice(self.link(), patience_s=patience_s, python=python, fresh=fresh)


@contextmanager
def rig(
    folder: Path,
    *,
    path: str = PROJECT_PATH,
    mounts: Mapping[str, Path] | None = None,
    disk: str = "",
    config: str = "",
) -> Iterator[Rig]:
    """A device that runs, reached over a relay on a loopback port."""
    machine = Machine(folder / "machine", path=path, mounts=mounts, disk=disk, config=config)
    try:
        relay = Relay(lambda: netns.connect(machine.pid, "127.0.0.1", 22))
        try:
            client = write_client(folder / "client", machine, [host("device", relay.port)])
            know(folder / "client", "127.0.0.1", relay.port, machine)
            made = Rig(machine, relay, client)
            try:
                yield made
            finally:
                made.hang_up()
        finally:
            relay.close()
    finally:
        machine.stop()


@contextmanager
def gated_rig(folder: Path) -> Iterator[tuple[Machine, Rig]]:
    """A device whose network is a single cable to another host, which comes first; the relay goes from there."""
    gate = Machine(folder / "gate")
    try:
        machine = Machine(folder / "machine")
        try:
            _, address = netns.join(gate.pid, machine.pid)
            relay = Relay(lambda: netns.connect(gate.pid, address, 22))
            try:
                client = write_client(folder / "client", machine, [host("device", relay.port)])
                know(folder / "client", "127.0.0.1", relay.port, machine)
                made = Rig(machine, relay, client)
                try:
                    yield gate, made
                finally:
                    made.hang_up()
            finally:
                relay.close()
        finally:
            machine.stop()
    finally:
        gate.stop()


def host(alias: str, port: int, *, name: str = "127.0.0.1", more: str = "") -> str:
    """An entry of ssh_config."""
    return f"Host {alias}\n  HostName {name}\n  Port {port}\n  {more}\n"


def write_client(folder: Path, machine: Machine, hosts: Sequence[str]) -> Path:
    """An ssh_config with these hosts, the key that `machine` lets in, and a file of known hosts beside it."""
    folder.mkdir(exist_ok=True)
    config = folder / "ssh_config"
    common = (
        f"Host *\n  User {getpass.getuser()}\n  IdentityFile {machine.folder}/user_key\n  IdentitiesOnly yes\n"
        f"  IdentityAgent none\n  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
    )
    config.write_text("".join(hosts) + common)
    return config


def know(folder: Path, name: str, port: int, machine: Machine) -> None:
    """Adds a machine's host key to the known hosts in `folder`."""
    key = " ".join((machine.folder / "host_key.pub").read_text().split()[:2])
    with (folder / "known_hosts").open("a") as file:
        file.write(f"{name if port == 22 else f'[{name}]:{port}'} {key}\n")


def new_key(path: Path) -> None:
    """A key pair in `path` and `path.pub`."""
    for old in (path, path.with_name(f"{path.name}.pub")):
        old.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True, timeout=60)


def program(folder: Path, name: str, text: str) -> Path:
    """An executable script for sh."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)
    return path


def without_python(folder: Path) -> str:
    """A PATH with the system's programs but for Python."""
    folder.mkdir()
    for place in ("/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        for file in Path(place).iterdir():
            if not re.match(r"py|idle|2to3", file.name) and not (folder / file.name).is_symlink():
                (folder / file.name).symlink_to(file)
    return str(folder)


def bare_python(folder: Path) -> str:
    """A PATH whose Python has the standard library and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    return f"{folder}/bin:{PROJECT_PATH.partition(':')[2]}"
