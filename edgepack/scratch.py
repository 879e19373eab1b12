"""Temporary folders that their process holds by a lock: the kernel drops it with the process, however that ends.

So what a dead process left is told from what a living one is at work on, and removed by the next build. Age says
nothing: a build may take a day. Where the file system has no locks on folders, as NFS, nothing is removed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".edgepack"
"""Ends the name of every folder of this kind, which begins with a dot."""
_AT_FDCWD, _EXCHANGE = -100, 2
_NAME = 40
"""Characters of a name that stand in that of its folder: a file system takes 255 bytes."""

if sys.platform == "win32":

    def _lock(folder: Path, *, wait: bool) -> int | None:
        return None

else:
    import fcntl

    def _lock(folder: Path, *, wait: bool) -> int | None:
        """A descriptor that holds the lock; None where there is no such folder, or no lock to be had."""
        try:
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            os.close(held)
            return None
        return held


@contextmanager
def held_folder(parent: Path, name: str = "") -> Iterator[Path]:
    """A folder in `parent` that is gone after the block, or with the next `sweep` where this process is killed in it.
    It may be moved away meanwhile.

    Args:
        parent: is made where it is missing.
        name: for people who come across it.

    Raises:
        OSError: it cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=f".{name[:_NAME]}.", suffix=SUFFIX))
        held = _lock(folder, wait=True)
        if folder.exists():
            break
        if held is not None:  # a sweep came between the two, and took it for dead
            os.close(held)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def sweep(parent: Path) -> list[Path]:
    """Removes the folders in `parent` that nobody holds any more, and names them. Only this user's own."""
    removed = []
    for folder in sorted(parent.glob(f".*{SUFFIX}")):
        if _mine(folder) and (held := _lock(folder, wait=False)) is not None:
            try:
                shutil.rmtree(folder, ignore_errors=True)
                if not folder.exists():
                    removed.append(folder)
            finally:
                os.close(held)
    return removed


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Waits until no other process is in such a block for the same folder; where there are no locks, it does not."""
    held = _lock(folder, wait=True)
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def exchange(one: Path, other: Path) -> bool:
    """Two folders or files change places in one step; False where the system or the file system cannot.

    Raises:
        OSError: one of them is not there, or may not be moved.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _mine(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and (sys.platform == "win32" or found.st_uid == os.geteuid())


_system: list[Path] = []
"""The folders for temporary files that those of this process replaced, the system's first."""


def system_folder() -> Path:
    """Where the system keeps temporary files, though this process keeps its own elsewhere."""
    return _system[0] if _system else Path(tempfile.gettempdir())


@contextmanager
def own_temporary_folder() -> Iterator[None]:
    """All temporary files of this process and those that it starts, of any library, in one folder that it holds."""
    before = tempfile.tempdir, os.environ.get("TMPDIR")
    system = Path(tempfile.gettempdir())
    with held_folder(system, "run") as folder:
        _system.append(system)
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
        try:
            yield
        finally:
            _system.pop()
            tempfile.tempdir = before[0]
            os.environ.pop("TMPDIR")
            if before[1] is not None:
                os.environ["TMPDIR"] = before[1]
