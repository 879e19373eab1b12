"""A content-addressed cache of expensive intermediate results; every entry is written atomically under its key."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.errors import OutputError
from edgepack.types import Array


def default_root() -> Path:
    """`$EDGEPACK_CACHE`, else the user's cache folder."""
    import platformdirs

    override = os.environ.get("EDGEPACK_CACHE")
    return Path(override) if override else platformdirs.user_cache_path("edgepack")


def digest(*parts: Any) -> str:
    """SHA-256 over JSON-able parts, bytes and arrays, each with its length so that no two lists of parts collide."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            header, body = f"{part.dtype.str}{part.shape}".encode(), np.ascontiguousarray(part).tobytes()
        elif isinstance(part, bytes):
            header, body = b"bytes", part
        else:
            header, body = b"json", json.dumps(part, sort_keys=True).encode()
        total.update(f"{len(header)}:{len(body)}:".encode() + header)
        total.update(body)
    return total.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it when the block succeeds and removed when it fails.

    Raises:
        OutputError: nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as err:
        raise _unwritable(path, err) from err
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _unwritable(path, err) from err
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(path: Path, err: OSError) -> OutputError:
    return OutputError(
        f"cannot write to {path.parent}: {err.strerror}", hint="set EDGEPACK_CACHE to a folder that can be written"
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class Cache:
    """Entries by (kind, key). With `fresh`, nothing is read but results are still stored for the next run."""

    def __init__(self, root: Path | None = None, *, fresh: bool = False) -> None:
        self.root = root or default_root()
        self.fresh = fresh
        self.hits: list[str] = []

    def path(self, kind: str, key: str, suffix: str) -> Path:
        """Where the entry is, or would be."""
        return self.root / kind / key[:2] / f"{key}{suffix}"

    def arrays(self, kind: str, key: str, make: Callable[[], Mapping[str, Array]]) -> dict[str, Array]:
        """Named arrays under the key, made and stored when absent. A damaged entry counts as absent."""
        found = self.known_arrays(kind, key)
        return self.keep_arrays(kind, key, make()) if found is None else found

    def known_arrays(self, kind: str, key: str) -> dict[str, Array] | None:
        """The named arrays under the key, None where they are absent or damaged."""
        path = self.path(kind, key, ".npz")
        if self.fresh or not path.is_file():
            return None
        try:
            # Opened here: numpy leaves a damaged file open.
            with path.open("rb") as source, np.load(source, allow_pickle=False) as archive:
                found = {name: archive[name] for name in archive.files}
        except (ValueError, OSError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile):
            path.unlink(missing_ok=True)
            return None
        self.hits.append(kind)
        return found

    def keep_arrays(self, kind: str, key: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Stores named arrays under the key, and gives them back."""
        made = dict(arrays)
        with atomic_path(self.path(kind, key, ".npz")) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **made)  # type: ignore[arg-type]
        return made

    def record(self, kind: str, key: str, make: Callable[[], Any]) -> Any:
        """A JSON value under the key, made and stored when absent. A damaged entry counts as absent."""
        found = self.known(kind, key)
        return self.keep(kind, key, make()) if found is None else found

    def known(self, kind: str, key: str) -> Any | None:
        """The JSON value under the key, None where it is absent or damaged."""
        path = self.path(kind, key, ".json")
        if self.fresh or not path.is_file():
            return None
        try:
            found = json.loads(path.read_text())
        except ValueError:
            path.unlink(missing_ok=True)
            return None
        self.hits.append(kind)
        return found

    def keep(self, kind: str, key: str, value: Any) -> Any:
        """Stores a JSON value other than null under the key, and gives it back."""
        with atomic_path(self.path(kind, key, ".json")) as temporary:
            temporary.write_text(json.dumps(value))
        return value

    def file(self, kind: str, key: str, suffix: str, make: Callable[[Path], None], out: Path) -> Path:
        """A file under the key, written by `make(path)` when absent, then copied to `out`."""
        path = self.path(kind, key, suffix)
        if path.is_file() and not self.fresh:
            self.hits.append(kind)
        else:
            with atomic_path(path) as temporary:
                make(temporary)
        shutil.copyfile(path, out)
        return out
