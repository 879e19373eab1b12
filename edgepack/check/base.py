"""What a pack is held against: another pack, the same one of a git revision, or figures that were written down."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgepack.backends.registry import FORMATS
from edgepack.check.figures import PackFigures, read_figures
from edgepack.errors import PackError
from edgepack.pack.folder import EXAMPLE, MANIFEST

_WANTED = (MANIFEST, EXAMPLE, *(f"model.{fmt}" for fmt in FORMATS))
"""Files of a pack that a check reads."""
_POINTER = b"version https://git-lfs"
_FILE_MODES = ("100644", "100755")
_OF_A_HOOK = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
"""Where git runs a check as a hook, these say that the work tree is the current folder."""
GIT_TIMEOUT_S = 300.0


@contextmanager
def opened_base(against: str, pack: Path) -> Iterator[Path | PackFigures]:
    """The base as a pack folder, or as figures.

    Args:
        against: a pack, a folder with a pack of the same name, a JSON of `edgepack check --json`, or a git revision, of
            which the pack in the same place is taken; `REVISION:FOLDER` names another place. What is there as a file or
            folder is no revision.
        pack: that is checked.

    Raises:
        PackError: there is no such base.
    """
    path = Path(against).expanduser()
    if path.is_file():
        yield read_figures(path)
    elif path.is_dir():
        yield _in_folder(path, pack)
    else:
        with tempfile.TemporaryDirectory(prefix="edgepack-base-") as folder:
            _check_out(against, pack, Path(folder))
            yield Path(folder)


def _in_folder(folder: Path, pack: Path) -> Path:
    """The folder itself where it is a pack, else the pack of the same name in it."""
    if (folder / MANIFEST).is_file():
        return folder
    inside = folder / pack.resolve().name
    if not (inside / MANIFEST).is_file():
        raise PackError(
            f"{folder}: found neither {MANIFEST} nor a pack {inside.name}",
            hint="give a pack, a folder of packs, a git revision, or a JSON of `edgepack check --json`",
        )
    return inside


def _check_out(against: str, pack: Path, out: Path) -> None:
    """Write the files of the pack as they are in a revision."""
    revision, named, place = against.partition(":")
    try:
        top = Path(_git(pack, "rev-parse", "--show-toplevel").decode().rstrip("\n"))
        commit = _git(top, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}").decode().strip()
        folder = Path(place.strip("/")) if named else pack.resolve().relative_to(top.resolve())
        blobs = dict(_blobs(top, commit, folder))
    except _RefusedError as err:
        raise PackError(
            f"{against}: no such file or folder, and not in git: {err}",
            hint="a shallow checkout has one revision, and `git fetch` gets others; or give a pack's folder",
        ) from err
    if MANIFEST not in blobs:
        raise PackError(
            f"{against}: found no {(folder / MANIFEST).as_posix()} in that revision",
            hint=f"name where the pack was, {revision}:FOLDER, or give a JSON of `edgepack check --json`",
        )
    for name, blob in blobs.items():
        content = _git(top, "cat-file", "blob", blob)
        if content.startswith(_POINTER):
            raise PackError(
                f"{against}: {(folder / name).as_posix()} is a pointer of Git LFS, expected the file itself",
                hint="check the revision out, and give its folder",
            )
        (out / name).write_bytes(content)


def _blobs(top: Path, commit: str, folder: Path) -> Iterator[tuple[str, str]]:
    """(name, blob) of the files of a pack that are needed."""
    paths = [(folder / name).as_posix() for name in _WANTED]
    for line in _git(top, "ls-tree", "-z", commit, "--", *paths).decode(errors="replace").split("\0"):
        facts, _, path = line.partition("\t")
        mode, _, blob = facts.partition(" blob ")
        if mode in _FILE_MODES:
            yield path.rpartition("/")[2], blob


class _RefusedError(Exception):
    """git said no; the message is its last line."""


def _git(folder: Path, *arguments: str) -> bytes:
    """What git prints."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            env={name: value for name, value in os.environ.items() if name not in _OF_A_HOOK},
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise PackError(f"git does not run: {err}", hint="install git, or give a folder") from err
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise _RefusedError(said[0].removeprefix("fatal: ")[:300] if said else f"git ended with {done.returncode}")
    return done.stdout
