"""What a build works with beside its model: cache, temporary folder, seed, workers, progress and warnings in one value.

Expensive work is cut into steps. A `Step` lives beside its algorithm: a pure function of one value, what it takes, and
how its result is stored. `Workspace.cached` and `Workspace.map` run one only where the cache has no result for the same
step, version and value. A cache entry is written atomically, and a damaged one counts as absent.
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from edgepack.cache import ARRAYS as ARRAYS
from edgepack.cache import DAMAGED as DAMAGED
from edgepack.cache import PARTS as PARTS
from edgepack.cache import RECORD as RECORD
from edgepack.cache import Cache as Cache
from edgepack.cache import Store as Store
from edgepack.cache import arrays_store as arrays_store
from edgepack.cache import atomic_path as atomic_path
from edgepack.cache import default_root as default_root
from edgepack.cache import load_arrays as load_arrays
from edgepack.cache import record_store as record_store
from edgepack.errors import EdgepackError, OutputError, StableDeviceError
from edgepack.scratch import held_folder, sweep, system_folder

if TYPE_CHECKING:
    from hashlib import _Hash

    from edgepack.workers import Workers

V = TypeVar("V")
R = TypeVar("R")

TOOLS = ("numpy", "onnx", "onnx-ir", "onnxruntime", "torch")
"""Tools whose versions shape every file that is written; `edgepack.backends.registry` adds those of each format."""

FITTERS = ("numpy", "scipy", "scikit-learn", "pillow")
"""What the fits of methods other than factorizers depend on."""


FULL_BYTES = 1 << 20
"""A disk with less than that free is taken for full."""


class Progress(Protocol):
    """Says where long work is, so that library code never prints: a stage's name and how much of it is done.

    A `total` of 0 means unknown.
    """

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Say where the work is."""


def silent(stage: str, done: int = 0, total: int = 0) -> None:
    """Ignore all progress."""


def _nothing(value: object) -> float:
    return 0.0


@dataclass(frozen=True)
class Step(Generic[V, R]):
    """One piece of expensive work on one value.

    Attributes:
        name: of the step; also of its folder in the cache, so unique.
        version: of what `run` gives for a value: one more whenever that changes.
        run: the work: a pure function at the top level of a module, so that workers can import it. What `map` sends to
            workers is a frozen dataclass or a tuple of arrays and plain data.
        store: how a result is kept; None for work that is only spread over the workers.
        cost: floating-point operations of one value, roughly; 2e10 are about a second.
        memory: bytes that one value needs while it runs.
        tools: whose versions are part of the key, beside that of edgepack; none for pure algebra.
    """

    name: str
    version: int
    run: Callable[[V], R]
    store: Store[R] | None = RECORD
    cost: Callable[[V], float] = _nothing
    memory: Callable[[V], float] = _nothing
    tools: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileStep(Generic[V]):
    """One piece of expensive work that makes a file: `run(value, path)`. Else as `Step`."""

    name: str
    version: int
    run: Callable[[V, Path], None]
    suffix: str
    tools: tuple[str, ...] = ()


def _no_value() -> Any:
    raise ValueError("there is only the key of this value")


@dataclass(frozen=True)
class Keyed(Generic[V]):
    """A value that goes by a key of its own, where its content would be slow to hash or is not there yet.

    Attributes:
        key: plain data that stand for all that the result depends on: digests of the model and the data, names,
            settings. Two values of one step with the same key must give the same result.
        make: gives the value; only called where the cache has no result. Without it, a result can only be looked up
            and kept: other work brings it along.
    """

    key: Any
    make: Callable[[], V] = _no_value


@dataclass(frozen=True)
class Workspace:
    """What a build works with beside its model.

    Attributes:
        cache: of results.
        folder: for temporary files.
        seed: of everything that is drawn.
        workers: who does heavy work; None for this process alone.
        progress: told of what is going on.
    """

    cache: Cache
    folder: Path
    seed: int = 0
    workers: Workers | None = None
    progress: Progress = silent
    _warnings: dict[str, None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should hear, in the order in which it came up."""
        return tuple(self._warnings)

    def branch(self, name: str) -> Workspace:
        """The same with temporary files and further warnings of its own; progress names it."""
        folder = self.folder / name
        folder.mkdir()

        def progress(stage: str, done: int = 0, total: int = 0) -> None:
            self.progress(f"{name}: {stage}", done, total)

        return replace(self, folder=folder, progress=progress, _warnings=dict(self._warnings))

    def warn(self, message: str) -> None:
        """Keeps a warning, once."""
        self._warnings.setdefault(message)

    def key(self, step: Step[V, R] | FileStep[V], value: V | Keyed[V]) -> str:
        """The digest under which the result of a step is kept: of its name and version, the tools, and the value."""
        tools = tool_versions(step.tools) if step.tools else {}
        return digest(step.name, step.version, tools, value.key if isinstance(value, Keyed) else value)

    def known(self, step: Step[V, R], value: V | Keyed[V]) -> R | None:
        """The result in the cache; None where there is none."""
        return self.cache.read(step.name, self.key(step, value), _stored(step))

    def keep(self, step: Step[V, R], value: V | Keyed[V], result: R) -> R:
        """Stores a result that other work brought along, and gives it back."""
        self.cache.write(step.name, self.key(step, value), _stored(step), result)
        return result

    def cached(self, step: Step[V, R], value: V | Keyed[V]) -> R:
        """The result of a step, from the cache or computed here and stored.

        Raises:
            OutputError: the cache folder cannot be written.
        """
        known = self.known(step, value)
        return self.keep(step, value, step.run(_made(value))) if known is None else known

    def map(self, step: Step[V, R], values: Sequence[V | Keyed[V]], label: str | None = None) -> list[R]:
        """Results of a step for many values, in their order: from the cache, the others by the workers.

        Every result is stored as soon as it is there: an interrupt loses only what runs. Where it is computed changes
        no bit of it: BLAS has one thread everywhere.

        Args:
            label: the stage that progress is told of; None for silence.

        Raises:
            DeviceError: the workers failed.
            OutputError: the cache folder cannot be written.
        """
        from edgepack.workers import map_tasks

        found: dict[int, R] = {}
        if step.store is not None:
            known = ((index, self.known(step, value)) for index, value in enumerate(values))
            found = {index: result for index, result in known if result is not None}
        missing = [index for index in range(len(values)) if index not in found]
        self._tell(label, len(found), len(values))
        made = [_made(values[index]) for index in missing]
        costs, memory = [step.cost(value) for value in made], [step.memory(value) for value in made]
        tasks = [(value,) for value in made]
        for position, result in map_tasks(self.workers, step.run, tasks, costs, memory=memory):
            index = missing[position]
            found[index] = result if step.store is None else self.keep(step, values[index], result)
            self._tell(label, len(found), len(values))
        return [found[index] for index in range(len(values))]

    def has_file(self, step: FileStep[V], value: V | Keyed[V]) -> bool:
        """Whether the file that a step makes is in the cache."""
        return self.cache.has(step.name, self.key(step, value), step.suffix)

    def file(self, step: FileStep[V], value: V | Keyed[V], out: Path) -> Path:
        """The file that a step makes, from the cache or made here and stored; copied to `out`.

        Raises:
            OutputError: the cache folder cannot be written.
        """

        def make(path: Path) -> None:
            step.run(_made(value), path)

        return self.cache.file(step.name, self.key(step, value), step.suffix, make, out)

    def _tell(self, label: str | None, done: int, total: int) -> None:
        if label is not None:
            self.progress(label, done, total)


@contextmanager
def open_workspace(
    cache: Cache, *, seed: int = 0, scheduler: str | None = None, progress: Progress = silent
) -> Iterator[Workspace]:
    """A workspace whose temporary files and processes end with the block.

    Args:
        scheduler: address of a Dask scheduler; local processes where None.

    Raises:
        DeviceError: the scheduler cannot be reached, or has no workers.
        OutputError: the disk that temporary files are on is full.
    """
    from edgepack.workers import workers

    with ExitStack() as stack, _temporary_disk():
        sweep(system_folder())
        sweep(cache.root / PARTS)
        folder = stack.enter_context(held_folder(Path(tempfile.gettempdir()), "build"))
        started = stack.enter_context(workers(scheduler))
        yield Workspace(cache, folder, seed, started, progress)


@contextmanager
def _temporary_disk() -> Iterator[None]:
    """Says so where the disk of the temporary files is full: libraries have many words for a write that failed."""
    try:
        yield
    except EdgepackError:
        raise
    except Exception as err:
        system = system_folder()
        if shutil.disk_usage(system).free >= FULL_BYTES:
            raise
        raise OutputError(
            f"the disk of the temporary files is full: {system}",
            hint="free some space there (edgepack clean), or set TMPDIR to a folder on another disk",
        ) from err


def _made(value: V | Keyed[V]) -> V:
    return value.make() if isinstance(value, Keyed) else value


def _stored(step: Step[V, R]) -> Store[R]:
    if step.store is None:
        raise ValueError(f"results of {step.name} are not kept")
    return step.store


def digest(*parts: Any) -> str:
    """SHA-256 over plain data, bytes, arrays and dataclasses, in lists and mappings of any depth.

    Every part counts with its type and length, so that no two lists of parts collide. A dataclass is its name and
    fields, or its `key` where it has one, as a scheme has. A mapping is the same in any order.

    Raises:
        TypeError: something that is no content, such as a path: `file_digest` is for what a file holds.
    """
    total = hashlib.sha256()
    for part in parts:
        _feed(total, part)
    return total.hexdigest()


def _feed(total: _Hash, part: Any) -> None:
    import numpy as np

    if part is None or isinstance(part, (bool, int, float, str)):
        _add(total, b"json", json.dumps(part).encode())
    elif isinstance(part, np.ndarray):
        _add(total, f"{part.dtype.str}{part.shape}".encode(), np.ascontiguousarray(part).tobytes())
    elif isinstance(part, np.generic):
        _feed(total, part.item())
    elif isinstance(part, bytes):
        _add(total, b"bytes", part)
    elif isinstance(part, Mapping):
        _add(total, b"mapping", str(len(part)).encode())
        for name, each in sorted(part.items(), key=lambda item: str(item[0])):
            _feed(total, name)
            _feed(total, each)
    elif isinstance(part, (list, tuple)):
        _add(total, b"list", str(len(part)).encode())
        for each in part:
            _feed(total, each)
    elif is_dataclass(part) and not isinstance(part, type):
        _add(total, b"dataclass", type(part).__name__.encode())
        _feed(total, _content(part))
    else:
        raise TypeError(f"there is no digest of a {type(part).__name__}: {part!r}")


def _content(value: Any) -> Any:
    if hasattr(value, "key"):
        return value.key
    return [getattr(value, each.name) for each in fields(value)]


def _add(total: _Hash, header: bytes, body: bytes) -> None:
    total.update(f"{len(header)}:{len(body)}:".encode() + header)
    total.update(body)


def file_bytes(path: Path) -> int:
    """Bytes of a model file, and of the one beside it that holds its weights where they are too many for one."""
    beside = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def uncollected() -> Iterator[None]:
    """Garbage in cycles waits until the block ends.

    Importing a large library makes some hundred thousand objects that stay: looking through them again and again takes
    a third as long as the import itself.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def tool_versions(tools: Sequence[str] = TOOLS) -> dict[str, str]:
    """Version of edgepack and of each installed tool, for cache keys and manifests; absent tools are left out."""
    from importlib.metadata import PackageNotFoundError, version

    import edgepack

    found = {"edgepack": edgepack.__version__}
    for tool in tools:
        try:
            found[tool] = version(tool)
        except PackageNotFoundError:
            continue
    return found


def shipped(name: str) -> Path:
    """Path of a file that ships beside the Python code, such as `"targets.yaml"` or `"runtimes/runner.py"`.

    In a wheel these lie inside the package; in a checkout they lie at its top. Both are plain folders.

    Raises:
        StableDeviceError: the file is missing from this installation.
    """
    from importlib.resources import as_file, files

    package = files("edgepack")
    installed = package.joinpath(*name.split("/"))
    if installed.is_file():
        with as_file(installed) as path:  # a folder install: the path stays valid after the block
            return path
    checkout = Path(__file__).resolve().parent.parent / name
    if checkout.is_file():
        return checkout
    raise StableDeviceError(
        f"edgepack's own file {name} is missing: found neither {installed} nor {checkout}",
        hint="reinstall edgepack: this installation is incomplete",
    )
