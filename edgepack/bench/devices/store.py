"""Files on a device by their content: sent once, checked by their SHA-256, gone on with where a push was cut."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgepack.bench.devices.link import Link
from edgepack.bench.devices.shell import DeviceShell, printable
from edgepack.errors import LinkError, StableDeviceError
from edgepack.workspace import Progress, file_digest, silent

SPARE_BYTES = 16 << 20
"""Left free on the device's disk, for the answers of its programs."""
_LISTED = 100


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
            if len(line) != 3 or line[0] != file.digest or line[1] not in ("whole", "part") or not line[2].isdecimal():
                raise StableDeviceError(f"look for files on {self._shell.name}: found {' '.join(line)[:100]!r}")
            if line[1] == "part" or int(line[2]) != file.size_bytes:
                parts[there] = min(int(line[2]), file.size_bytes) if line[1] == "part" else 0
        if len(found) != len(files) + 1:
            raise LinkError(f"look for files on {self._shell.name}: the answer is not whole")
        self._require_space(sum(files[there].size_bytes - part for there, part in parts.items()), found[-1])
        return parts

    def _require_space(self, needed_bytes: int, line: list[str]) -> None:
        if len(line) != 2 or not line[1].isdecimal():
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
