"""The pack folder, or a model file alone: written beside its place and moved there whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from edgepack.backends.registry import FORMATS
from edgepack.errors import OutputError
from edgepack.model.scheme import Format
from edgepack.scratch import alone_in, exchange, held_folder, sweep
from edgepack.workspace import RECORD, Cache, file_digest

MANIFEST = "manifest.json"
RESULTS = "results"
EXAMPLE = "example_inputs.npz"
"""The inputs of one call, by name."""
WRITTEN = "written-files"
"""Step of the cache that keeps, by the digest of a model file that was written alone, what it was built from."""


def example_of(pack: Path) -> Path | None:
    """The example inputs that a pack holds; None where it has none."""
    example = pack / EXAMPLE
    return example if example.is_file() else None


@contextmanager
def writing(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block succeeds; on any failure `out` stays as it was.

    An earlier pack at `out` is replaced. Its benchmark results are kept if the model files are the same to the byte.

    Raises:
        OutputError: `out` is something other than a pack, or cannot be written.
    """
    with _disk_errors(out):
        here = out.exists() and out.samefile(Path.cwd())
    if here:
        raise OutputError(f"{out} is the folder that this is run in", hint="give the name of a folder in it with --out")
    if out.exists() and not (out.is_dir() and (any(True for _ in out.glob(MANIFEST)) or not any(out.iterdir()))):
        raise OutputError(f"{out} exists and is not a pack", hint="give another folder with --out, or remove it")
    with _beside(out) as folder:
        yield folder
        folder.chmod(0o755)
        with alone_in(out.parent):
            _keep_results(out, folder)
            _replace(folder, out)


def file_format(out: Path | None) -> Format | None:
    """Of the model file that `out` names; None where it names a pack folder, or nothing."""
    return next((fmt for fmt in FORMATS if out is not None and out.suffix.lower() == f".{fmt}"), None)


@contextmanager
def writing_file(out: Path, fmt: Format, source: str, cache: Cache) -> Iterator[Path]:
    """A temporary folder for a pack, of which only the model file stays, as `out`, when the block succeeds; on any
    failure `out` stays as it was.

    Args:
        source: the model that it is built from, as on the command line. A file that an earlier build of it wrote is
            replaced, any other file never.
        cache: remembers what was written.

    Raises:
        OutputError: `out` is a folder or another file, or cannot be written.
    """
    name, known = Path(source).name, Cache(cache.root)
    _require_own(out, source, known)
    with _beside(out) as folder:
        yield folder
        model = folder / f"model.{fmt}"
        known.write(WRITTEN, file_digest(model), RECORD, name)
        os.replace(model, out)


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, from which things are moved there; it is gone after the block, and so is what
    processes left there that were killed."""
    with _disk_errors(out), ExitStack() as stack:
        sweep(out.parent)
        yield stack.enter_context(held_folder(out.parent, out.name))


def _require_own(out: Path, source: str, known: Cache) -> None:
    if out.is_dir():
        raise OutputError(f"{out} is a folder, expected the name of a file", hint="give another name with -o")
    if not out.exists():
        return
    if not out.is_file():
        raise OutputError(f"{out} is no file that can be replaced", hint="give another name with -o")
    if Path(source).exists() and out.samefile(source):
        raise OutputError(f"{out} is the model itself", hint="give another name with -o")
    if known.read(WRITTEN, file_digest(out), RECORD) != Path(source).name:
        raise OutputError(
            f"{out} exists, and no earlier build of {Path(source).name} wrote it",
            hint="give another name with -o, or remove it",
        )


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    reasons = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "permission denied",
        errno.EPERM: "permission denied",
        errno.ENOTDIR: "a part of the path is a file",
        errno.EEXIST: "a part of the path is a file",
        errno.ENOENT: "there is no such place",
        errno.ELOOP: "a link leads back to itself",
        errno.ENAMETOOLONG: "the name is too long",
        errno.EBUSY: "it is in use",
        errno.EINVAL: "the file system does not take such a name",
    }
    try:
        yield
    except OSError as err:
        if err.errno not in reasons or not _concerns(err, out):
            raise
        raise OutputError(f"cannot write {out}: {reasons[err.errno]}", hint="choose another place with --out") from err


def _concerns(err: OSError, out: Path) -> bool:
    """Whether the error may come from writing `out`: it names no file, or one on the way to it or beside it."""
    parent = Path(os.path.realpath(out.parent))
    named = [
        Path(os.path.realpath(os.fsdecode(n))) for n in (err.filename, err.filename2) if isinstance(n, str | bytes)
    ]
    return not named or any(name.is_relative_to(parent) or parent.is_relative_to(name) for name in named)


def _keep_results(old: Path, new: Path) -> None:
    if (old / RESULTS).is_dir() and _models(old) == _models(new):
        shutil.copytree(old / RESULTS, new / RESULTS, dirs_exist_ok=True)


def _models(folder: Path) -> dict[str, str]:
    """{name: digest} of the model files in a pack."""
    return {p.name: file_digest(p) for p in folder.glob("model.*") if p.is_file()}


def _replace(folder: Path, out: Path) -> None:
    """Puts the new pack in the place of the old one, in one step where the system can: a kill at any point leaves one
    of the two."""
    if not out.exists():
        try:
            os.replace(folder, out)
            return
        except OSError as err:
            if err.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another build has come before this one
                raise
    if exchange(folder, out):
        return
    with held_folder(out.parent, f"{out.name}.old") as aside:
        os.replace(out, aside / "pack")
        try:
            os.replace(folder, out)
        except OSError:
            os.replace(aside / "pack", out)
            raise
