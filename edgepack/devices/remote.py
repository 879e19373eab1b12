"""A machine at the end of a wire: the shipped programs run there detached, so that a lost connection loses nothing."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import secrets
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.devices.device import EVERY_MODE, Job, read_reply
from edgepack.devices.local import PROBE_TIMEOUT_S
from edgepack.devices.shell import DeviceShell, ShellFacts, printable, whole_number
from edgepack.devices.ssh import Link
from edgepack.errors import DeviceError, LinkError, StableDeviceError, TransientDeviceError
from edgepack.workspace import Progress, file_digest, shipped, silent

PATIENCE_S = 60.0
WAIT_S = 20
"""The longest that one call waits for a job: then it asks again, and a dead connection is noticed."""
NEEDED = ("setsid", "timeout", "sha256sum", "dd")
_TIMED_OUT = (124, 128 + 9)
"""Exit codes of `timeout`: coreutils and BusyBox give the second where it killed."""
_OWNERS: set[str] = set()
"""Of this process's sessions that are open."""

SPARE_BYTES = 16 << 20
"""Left free on the device's disk, for the answers of its programs."""
_LISTED = 100


class RemoteDevice:
    """Runs jobs on a device behind a link. One session at a time: others are told who measures there.

    A job's name follows from its program, its arguments with the digests of its files, and the start of the device. So
    a session that was cut finds the jobs that have ended since, and takes them up in place of running them again.

    Args:
        link: to the device; `close` closes it.
        python: interpreter there; by default edgepack's own environment there, else `python3`.
        patience_s: how long a lost connection is tried again.
        fresh: forget what an earlier session left there.
        progress: told of files that are sent.

    Raises:
        DeviceError: the device cannot be reached, lacks something, or is measured by another session.
    """

    modes = EVERY_MODE

    def __init__(
        self,
        link: Link,
        *,
        python: str | None = None,
        patience_s: float = PATIENCE_S,
        fresh: bool = False,
        progress: Progress = silent,
    ) -> None:
        self._link = link
        self._done: Counter[str] = Counter()
        self._keys: list[str] = []
        self._fresh = fresh
        self.resumed = 0
        try:
            self.shell = DeviceShell(link, patience_s)
            _require_tools(self.facts, link.name)
            self._owner = _lock(self.shell)
        except BaseException:
            link.close()
            raise
        self._python = python
        self._store = Store(link, self.shell, progress)

    @property
    def name(self) -> str:
        """See `Device.name`."""
        return self._link.name

    @property
    def facts(self) -> ShellFacts:
        """What the device's shell says of it."""
        return self.shell.facts

    def probe(self) -> Mapping[str, Any]:
        """See `Device.probe`."""
        program = self.push(shipped("runtimes/runner.py"))
        command = [self.interpreter(), program, "probe"]
        return self.run_command(command, [program], f"probe of {self.name}", PROBE_TIMEOUT_S, once=True)

    def push(self, path: Path) -> str:
        """See `Device.push`: the file is sent when a job needs it, and only if the device lacks it."""
        return self._store.add(path)

    def run(self, job: Job) -> Mapping[str, Any]:
        """See `Device.run`; also LinkError where the connection stays lost, and the job goes on."""
        program = self.push(shipped(f"runtimes/{job.program}"))
        files = [program, *job.more_models, *(path for path in (job.model, job.inputs) if path is not None)]
        command = [self.interpreter(), program, *job.arguments()]
        what = f"{job.title} on {self.name}"
        return self.run_command(command, files, what, job.timeout_s, expect_s=job.warmup_s + job.seconds)

    def run_command(
        self,
        command: Sequence[str],
        files: Sequence[str],
        what: str,
        timeout_s: float,
        *,
        expect_s: float = 0.0,
        once: bool = False,
    ) -> dict[str, Any]:
        """Runs a program that prints a report as the runner does.

        Args:
            command: program and arguments on the device.
            files: of `push`, that it needs there.
            what: it is, for messages.
            timeout_s: after which it is killed there.
            expect_s: before which it cannot end.
            once: its report says how things are now, and is never taken up by a later session.
        """
        self._store.bring(files)
        call = what.removesuffix(f" on {self.name}")  # to which the link adds where
        digest = _digest(command, self.facts.boot)
        key = f"{digest}-{secrets.token_hex(4) if once else self._done[digest]}"
        if self._fresh and not once:
            self.shell.call("cancel", key, what=call)
        end = "cancel"
        try:
            ended = self._attend(key, command, what, timeout_s, expect_s)
            end = "forget"
            report = _report(ended, what, timeout_s)
        except LinkError:
            raise  # the job goes on, for the next session
        except BaseException:
            with suppress(DeviceError):  # what is being told is why, not that its remains are out of reach
                self.shell.call(end, key, what=call, patient=False)
            raise
        if once:
            self.shell.call("forget", key, what=call)
        else:
            self._done[digest] += 1
            self._keys.append(key)
            self.resumed += not ended.mine
        return report

    def settle(self) -> None:
        """The session ended well: what its jobs left there is removed."""
        for start in range(0, len(self._keys), 100):
            self.shell.call("forget", *self._keys[start : start + 100], what="clean up")
        self._keys.clear()

    def close(self) -> None:
        """Gives the device free and ends the connection. Without `settle`, ended jobs stay for the next session."""
        try:
            with suppress(DeviceError):  # out of reach: the lock grows stale by itself
                self.shell.call("unlock", self._owner, what="unlock", patient=False)
        finally:
            _OWNERS.discard(self._owner)
            self._link.close()

    def interpreter(self) -> str:
        """Path of the Python there that runs the programs.

        Raises:
            StableDeviceError: there is none, or it is too old.
        """
        found = self._python or self.facts.python
        if found is None:
            raise StableDeviceError(
                f"{self.name} has no Python 3: found neither {self.facts.root}/venv/bin/python nor python3",
                hint="install it there, on Debian: sudo apt-get install python3",
            )
        version = self.facts.python_version or ""
        if self._python is None and tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < (3, 9):
            raise StableDeviceError(
                f"{self.name} has Python {version}; expected 3.9 or newer", hint="install a newer one"
            )
        return found

    def _attend(self, key: str, command: Sequence[str], what: str, timeout_s: float, expect_s: float) -> _Ended:
        """Starts a job if it was not, and waits for its end."""
        started = time.monotonic()
        call = what.removesuffix(f" on {self.name}")
        while True:
            spent = time.monotonic() - started
            expect = int(max(0.0, min(expect_s - spent, WAIT_S)))
            limit = str(max(1, round(timeout_s)))
            answer = self.shell.call(
                "attend", key, str(WAIT_S), str(expect), limit, *command, what=call, timeout_s=3 * WAIT_S
            )
            status, _, rest = answer.partition(b"\n")
            words = printable(status[:1000]).split()
            numbers = [whole_number(word) for word in words[1:4]]
            if len(words) == 5 and words[0] == "done" and None not in numbers:
                code, seconds, size = (number or 0 for number in numbers)
                return _Ended(code, seconds, rest[:size], rest[size:], words[4] == "mine")
            if words == ["died"]:
                raise TransientDeviceError(
                    f"{what}: the process is gone and left no answer",
                    hint="the kernel may have ended it for want of memory; see `dmesg` on the device",
                )
            if words != ["running"]:
                raise StableDeviceError(f"{what}: found {printable(status)[:100]!r}, expected how the job is doing")
            if spent > timeout_s + self.shell.patience_s + WAIT_S:
                raise _too_long(what, timeout_s)


@dataclass(frozen=True)
class _Ended:
    """A job that has ended: its exit code as the shell gives it, and whether this session started it."""

    code: int
    seconds: int
    stdout: bytes
    stderr: bytes
    mine: bool


def _report(ended: _Ended, what: str, timeout_s: float) -> dict[str, Any]:
    if ended.code in _TIMED_OUT and ended.seconds >= int(timeout_s):
        raise _too_long(what, timeout_s)
    # A shell tells of a signal by a code above 128, a parent by one below 0.
    code = ended.code if ended.code < 128 else 128 - ended.code
    return read_reply(what, code, ended.stdout, ended.stderr)


def _too_long(what: str, timeout_s: float) -> TransientDeviceError:
    return TransientDeviceError(
        f"{what}: no answer within {timeout_s:.0f} s, killed", hint="the device may be busy; try again"
    )


def _digest(command: Sequence[str], boot: str) -> str:
    return hashlib.sha256(json.dumps([boot, *command]).encode()).hexdigest()[:32]


def _require_tools(facts: ShellFacts, device: str) -> None:
    lacking = [tool for tool in NEEDED if tool in facts.lacks]
    if lacking:
        raise StableDeviceError(
            f"{device} lacks {', '.join(lacking)}", hint="install coreutils and util-linux there (or BusyBox or toybox)"
        )


def _lock(shell: DeviceShell) -> str:
    """Takes the device for this session; its name as the lock's owner."""
    here = f"{getpass.getuser()}@{socket.gethostname()}"
    owner = f"{here} {os.getpid()} {secrets.token_hex(4)}"
    other = _ask_lock(shell, owner)
    if other is not None and _is_gone(other, here):
        other = _ask_lock(shell, owner, other)
    if other is not None:
        raise TransientDeviceError(
            f"{shell.name} is being measured by {other.split()[0]}: two measurements at once would disturb each other",
            hint="wait for it to end; a session that was cut gives the device free after two minutes",
        )
    _OWNERS.add(owner)
    return owner


def _ask_lock(shell: DeviceShell, owner: str, gone: str = "") -> str | None:
    """None where the lock is ours now, else its owner."""
    answer = printable(shell.call("lock", owner, gone, what="lock")).strip()
    return None if answer == "mine" else answer.removeprefix("owner").strip()[:200] or "an unknown session"


def _is_gone(owner: str, here: str) -> bool:
    """Whether an owner was a session of this machine and user that is no more."""
    words = owner.split()
    if len(words) != 3 or words[0] != here or not words[1].isdecimal():
        return False
    ours = int(words[1]) == os.getpid()
    return owner not in _OWNERS if ours else not Path("/proc", words[1]).exists()


@dataclass(frozen=True)
class _File:
    path: Path
    digest: str
    name: str
    size_bytes: int

    @property
    def key(self) -> tuple[str, str]:
        return self.digest, self.name


class Store:
    """What this session has on the device.

    Args:
        link, shell: to the device.
        progress: told of every chunk sent.
    """

    def __init__(self, link: Link, shell: DeviceShell, progress: Progress = silent) -> None:
        self._link = link
        self._shell = shell
        self._progress = progress
        self._files: dict[str, _File] = {}
        self._known: dict[tuple[Path, int, int], str] = {}
        self._there: set[str] = set()

    def add(self, path: Path) -> str:
        """A file's path on the device; it is sent when `bring` asks for it.

        Raises:
            OSError: the file cannot be read.
        """
        state = path.stat()
        key = (path.resolve(), state.st_mtime_ns, state.st_size)
        if key not in self._known:
            self._known[key] = file_digest(path)
        digest = self._known[key]
        name = re.sub(r"[^A-Za-z0-9._+-]", "_", path.name).lstrip("-.")[:100] or "file"
        there = f"{self._shell.facts.root}/store/{digest}/{name}"
        self._files[there] = _File(path, digest, name, state.st_size)
        return there

    def bring(self, wanted: Iterable[str]) -> None:
        """Sends what of these paths (of `add`; others are left alone) is not on the device.

        Raises:
            LinkError: the connection was lost for too long; what arrived stays there.
            StableDeviceError: its disk is full, or a file arrives damaged twice.
        """
        missing = {there: self._files[there] for there in wanted if there in self._files and there not in self._there}
        names = list(missing)
        for start in range(0, len(names), _LISTED):
            self._bring({there: missing[there] for there in names[start : start + _LISTED]})

    def _bring(self, files: dict[str, _File]) -> None:
        parts = self._parts(files)
        for there, part_bytes in parts.items():
            self._send(there, files[there], part_bytes)
        self._there.update(files)

    def _parts(self, files: dict[str, _File]) -> dict[str, int]:
        """Bytes that are there already of every file that is not whole."""
        arguments = [part for file in files.values() for part in file.key]
        answer = printable(self._shell.call("have", *arguments, what="look for files")).split("\n")
        found = [line.split() for line in answer if line.strip()]
        parts = {}
        for there, line in zip(files, found, strict=False):
            file = files[there]
            size = whole_number(line[2]) if len(line) == 3 else None
            if size is None or line[0] != file.digest or line[1] not in ("whole", "part"):
                raise StableDeviceError(f"look for files on {self._shell.name}: found {' '.join(line)[:100]!r}")
            if line[1] == "part" or size != file.size_bytes:
                parts[there] = min(size, file.size_bytes) if line[1] == "part" else 0
        if len(found) != len(files) + 1:
            raise LinkError(f"look for files on {self._shell.name}: the answer is not whole")
        self._require_space(sum(files[there].size_bytes - part for there, part in parts.items()), found[-1])
        return parts

    def _require_space(self, needed_bytes: int, line: list[str]) -> None:
        if len(line) != 2 or whole_number(line[1]) is None:
            return  # the device does not say
        free_bytes = int(line[1]) * 1024
        if needed_bytes and needed_bytes + SPARE_BYTES > free_bytes:
            raise _disk_full(self._shell, f"{needed_bytes} bytes and some room are needed, {free_bytes} are free")

    def _send(self, there: str, file: _File, part_bytes: int) -> None:
        what = f"push {file.path.name}"
        for start in (part_bytes, 0):
            try:
                self._upload(there, file, start, what)
            except StableDeviceError as err:
                self._shell.call("drop", *file.key, what=what)
                if "No space left" in err.message:
                    raise _disk_full(self._shell, f"{file.path.name} has {file.size_bytes} bytes") from err
                raise
            answer = printable(self._shell.call("keep", *file.key, what=what)).strip()
            if answer == "whole":
                return
        raise StableDeviceError(
            f"{what} on {self._shell.name}: it arrives damaged: SHA-256 {answer[:80]!r}, expected {file.digest}",
            hint="check the device's disk and memory",
        )

    def _upload(self, there: str, file: _File, start: int, what: str) -> None:
        """Sends from `start` on; after a lost connection, from what had arrived."""
        sent = start

        def tell(done: int) -> None:
            nonlocal sent
            sent = done
            self._progress(what, done >> 10, file.size_bytes >> 10)

        self._shell.patiently(lambda: self._link.upload(file.path, f"{there}.part", sent, what=what, sent=tell))


def _disk_full(shell: DeviceShell, why: str) -> StableDeviceError:
    return StableDeviceError(
        f"{shell.name}: its disk is full: {why} in {shell.facts.root}",
        hint="free some space there; edgepack's own files are in that folder and may be removed",
    )
