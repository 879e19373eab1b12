"""Results of expensive work on disk, by step and key: written whole, sealed, and made again where they are damaged."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import stat
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar

from edgepack.errors import OutputError
from edgepack.scratch import held_folder
from edgepack.sealed import NotWholeError, seal, unsealed

if TYPE_CHECKING:
    from edgepack.model.types import Array

R = TypeVar("R")

DAMAGED = (
    ValueError,
    TypeError,
    LookupError,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading an entry fails with that is cut short, or holds something else than expected."""


@dataclass(frozen=True)
class Store(Generic[R]):
    """How a result is kept as one file: `write(result, path)`, and `read(stream)`, which raises where it is damaged."""

    suffix: str
    write: Callable[[R, Path], None]
    read: Callable[[IO[bytes]], R]


def arrays_store(pack: Callable[[R], Mapping[str, Array]], unpack: Callable[[dict[str, Array]], R]) -> Store[R]:
    """Kept as named arrays in an `.npz`. `unpack` gives back, bit for bit, what `pack` was given."""

    def write(result: R, path: Path) -> None:
        import numpy as np

        with path.open("wb") as stream:
            np.savez(stream, **pack(result))  # type: ignore[arg-type]

    return Store(".npz", write, lambda stream: unpack(load_arrays(stream)))


def record_store(pack: Callable[[R], Any], unpack: Callable[[Any], R]) -> Store[R]:
    """Kept as JSON. `unpack` gives back what `pack` was given."""

    def write(result: R, path: Path) -> None:
        path.write_text(json.dumps(pack(result)))

    return Store(".json", write, lambda stream: unpack(json.load(stream)))


def load_arrays(stream: IO[bytes]) -> dict[str, Array]:
    """The named arrays of an entry."""
    import numpy as np

    with np.load(stream, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _same(result: R) -> R:
    return result


ARRAYS: Store[dict[str, Array]] = arrays_store(_same, _same)
RECORD: Store[Any] = record_store(_same, _same)


PARTS = "part"
"""The folder of entries that are being written, beside those of the steps."""
_ENTRY = re.compile(r"[0-9a-f]{64}\.[a-z0-9]{1,10}")


class Cache:
    """Entries on disk by step and key, each with its own SHA-256: one in which a bit has changed counts as absent.

    With `fresh`, nothing older is read, but results are stored for the next run, and this object reads what it stored.
    """

    def __init__(self, root: Path | None = None, *, fresh: bool = False) -> None:
        self.root = root or default_root()
        self.fresh = fresh
        self.hits: list[str] = []
        self._written: set[Path] = set()

    def path(self, step: str, key: str, suffix: str) -> Path:
        """Where the entry is, or would be."""
        return self.root / step / key[:2] / f"{key}{suffix}"

    def has(self, step: str, key: str, suffix: str) -> bool:
        """Whether there is an entry that may be read."""
        path = self.path(step, key, suffix)
        return path.is_file() and (not self.fresh or path in self._written)

    def read(self, step: str, key: str, store: Store[R]) -> R | None:
        """The result under the key; None where it is absent or damaged."""
        content = self._content(step, key, store.suffix)
        if content is None:
            return None
        try:
            found = store.read(io.BytesIO(content))
        except DAMAGED:
            self.path(step, key, store.suffix).unlink(missing_ok=True)
            return None
        self.hits.append(step)
        return found

    def write(self, step: str, key: str, store: Store[R], result: R) -> None:
        """Stores a result under the key.

        Raises:
            OutputError: the cache folder cannot be written.
        """
        with self._writing(self.path(step, key, store.suffix)) as temporary:
            store.write(result, temporary)

    def file(self, step: str, key: str, suffix: str, make: Callable[[Path], None], out: Path) -> Path:
        """A file under the key, written by `make(path)` when absent or damaged, then copied to `out`.

        Raises:
            OutputError: the cache folder cannot be written.
        """
        content = self._content(step, key, suffix)
        if content is not None:
            self.hits.append(step)
            out.write_bytes(content)
            return out
        with self._writing(self.path(step, key, suffix)) as temporary:
            make(temporary)
            content = temporary.read_bytes()
        out.write_bytes(content)
        return out

    def _content(self, step: str, key: str, suffix: str) -> bytes | None:
        """What an entry holds; None where there is none that may be read, and one that is damaged is removed."""
        if not self.has(step, key, suffix):
            return None
        path = self.path(step, key, suffix)
        try:
            content = unsealed(path)
        except (OSError, NotWholeError) as err:
            if not isinstance(err, FileNotFoundError):  # else another process has trimmed it
                path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # a cache that others own is read all the same
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # used now: what trimming spares
        return content

    @contextmanager
    def _writing(self, path: Path) -> Iterator[Path]:
        with atomic_path(path, self.root / PARTS) as temporary:
            yield temporary
            seal(temporary)
        self._written.add(path)


@dataclass(frozen=True)
class Entry:
    """A file of the cache.

    Attributes:
        used: when it was last read or written, seconds since 1970.
    """

    path: Path
    step: str
    size_bytes: int
    used: float


def entries(root: Path) -> list[Entry]:
    """The results in a cache folder, least lately used first; tables of costs, the emulator and the like are none."""
    found = []
    for path in root.glob("*/??/*"):
        try:
            facts = path.lstat()
        except FileNotFoundError:
            continue  # another process trims as well
        if _ENTRY.fullmatch(path.name) and path.name[:2] == path.parent.name and stat.S_ISREG(facts.st_mode):
            used = max(facts.st_atime, facts.st_mtime)
            found.append(Entry(path, path.relative_to(root).parts[0], facts.st_size, used))
    return sorted(found, key=lambda entry: (entry.used, entry.path))


def trim(found: Sequence[Entry], *, most_bytes: int | None = None, unused_s: float | None = None) -> list[Entry]:
    """Removes results, those first that were not used for the longest time; a build that wants one makes it again.

    Args:
        found: of `entries`.
        most_bytes: that the others may have together.
        unused_s: after which one goes in any case.

    Returns:
        What was removed.
    """
    total, now = sum(entry.size_bytes for entry in found), time.time()
    removed = []
    for entry in found:
        if (most_bytes is not None and total > most_bytes) or (unused_s is not None and now - entry.used > unused_s):
            entry.path.unlink(missing_ok=True)
            total -= entry.size_bytes
            removed.append(entry)
    return removed


def default_root() -> Path:
    """`$EDGEPACK_CACHE`, else the user's cache folder."""
    import platformdirs

    override = os.environ.get("EDGEPACK_CACHE")
    return Path(override) if override else platformdirs.user_cache_path("edgepack")


@contextmanager
def atomic_path(path: Path, beside: Path | None = None) -> Iterator[Path]:
    """A temporary path of the same name, moved onto `path` when the block succeeds and removed when it fails.

    Args:
        beside: the folder of its temporary folder, on the same file system; by default that of `path`.

    Raises:
        OutputError: nothing can be written there, or what is there is no file, such as `/dev/null`.
    """
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is no file that can be replaced", hint="give the name of a file")
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(held_folder(beside or path.parent, path.name))
            temporary = folder / path.name
            temporary.touch()
        except OSError as err:
            raise _unwritable(path, err) from err
        try:
            yield temporary
            os.replace(temporary, path)
        except OSError as err:
            if err.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _unwritable(path, err) from err


def _unwritable(path: Path, err: OSError) -> OutputError:
    return OutputError(
        f"cannot write to {path.parent}: {err.strerror}", hint="set EDGEPACK_CACHE to a folder that can be written"
    )
