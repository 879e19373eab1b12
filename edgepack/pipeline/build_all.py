"""`edgepack build-all`: many models, each for its targets, here or on the workers of a Dask cluster.

Each model is built by an `edgepack build` in a process of its own, so that one that fails, or is killed, stops no
other. What is finished is known by a file beside its pack, which whoever built it has written: it is not built again.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import edgepack
from edgepack import errors
from edgepack.errors import (
    EdgepackError,
    InputError,
    ModelError,
    OutputError,
    ProofError,
    StableDeviceError,
    UsageError,
)
from edgepack.lifeline import TiedProcess
from edgepack.pack.folder import MANIFEST
from edgepack.pack.manifest import PackedFile, read_manifest
from edgepack.targets.target import HOST, Target
from edgepack.workers import Workers, workers
from edgepack.workspace import Progress, digest, file_bytes, file_digest, silent, tool_versions

BUILT = ".built.json"
"""What follows the name of a pack in the name of the file that says that it is finished."""
CHECK_S = 5.0
"""After this long without a result, ask whether there are any workers left."""
SAID = 300
"""Letters of what a process that died said last."""


@dataclass(frozen=True)
class ModelJob:
    """One model of a zoo and the targets that it is built for.

    Attributes:
        name: of the folder of its packs, and of its rows in the report.
        model: as on the command line of `edgepack build`.
        pack: what its packs are called, before the dot and the target's name.
        targets: that it is built for.
        arguments: further options of `edgepack build`, as words of its command line.
        reads: files, folders and other names that its samples and functions come from.
    """

    name: str
    model: str
    pack: str
    targets: tuple[Target, ...]
    arguments: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Why a model was not built, in the words of `edgepack build`.

    Attributes:
        kind: name of the error's class; "InternalError" for one that is none of `edgepack.errors`.
    """

    kind: str
    message: str
    hint: str | None
    exit_code: int


@dataclass(frozen=True)
class BuiltPack:
    """A pack that is finished.

    Attributes:
        model: name of the job.
        path: its folder.
        kept: whether an earlier run has built it.
        unmet: why the budget is not met; None where it is.
        where: name of the machine that built it.
        seconds: that the build took, of all targets of the model that were built together.
    """

    model: str
    target: str
    path: Path
    kept: bool
    unmet: str | None
    where: str
    seconds: float


@dataclass(frozen=True)
class FailedModel:
    """A model of which some targets were not built, by name."""

    model: str
    targets: tuple[str, ...]
    failure: Failure


@dataclass(frozen=True)
class ZooResult:
    """All that came of a zoo, in its order."""

    out: Path
    packs: tuple[BuiltPack, ...]
    failed: tuple[FailedModel, ...]

    @property
    def failure(self) -> EdgepackError | None:
        """One error for all that failed, of the class of the first; a budget that is not met where nothing did."""
        total = len({one.model for one in self.packs} | {one.model for one in self.failed})
        again = "the others are built; run the same command again: only what is not finished is built"
        if self.failed:
            said = "; ".join(f"{one.model}: {one.failure.message}" for one in self.failed)
            kind = getattr(errors, self.failed[0].failure.kind, ProofError)
            error: EdgepackError = kind(f"{len(self.failed)} of {total} models are not built: {said}", hint=again)
            return error
        unmet = [one for one in self.packs if one.unmet is not None]
        if not unmet:
            return None
        said = "; ".join(f"{one.model} for {one.target}" for one in unmet)
        hint = "the best attempts are written; allow more, or leave out what binds"
        return errors.BudgetError(
            f"the budget is not met by {len(unmet)} of {len(self.packs)} packs: {said}", hint=hint
        )


@dataclass(frozen=True)
class _Order:
    """What a worker is asked to do: plain data.

    Attributes:
        here: folder that the build runs in; relative names are read from there.
        token: a file in the folder of all packs, by which a worker sees that it is the same folder.
        packs: path and key of each pack, by the target's name.
        command: of `edgepack build`.
    """

    here: str
    token: str
    packs: Mapping[str, tuple[str, str]]
    command: tuple[str, ...]


@dataclass(frozen=True)
class _Answer:
    failure: Failure | None
    where: str


def build_all(
    jobs: Sequence[ModelJob],
    *,
    here: Path,
    out: Path,
    scheduler: str | None = None,
    progress: Progress = silent,
) -> ZooResult:
    """Build every model for its targets; what an earlier run has finished, of the same files with the same options,
    is left as it is.

    Args:
        jobs: at least one, each with a name of its own.
        here: folder that relative names of models and samples are read from.
        out: folder of all packs, `out/<name>/<pack>.<target>`. Workers of a cluster must see both folders under the
            same paths.
        scheduler: address of a Dask scheduler; None builds here, one model after another.
        progress: told how many models are done.

    Raises:
        UsageError: this machine as a target with a scheduler, or two jobs of one name.
        OutputError: `out` cannot be written.
        DeviceError: the cluster cannot be reached or is gone; what is finished stays so.
    """
    _check(jobs, scheduler)
    here, out = here.resolve(), out.resolve()
    packs = {job.name: _packs_of(job, here, out) for job in jobs}
    asked = {job.name: _unfinished(job, packs[job.name]) for job in jobs}
    kept = {(job.name, target.name) for job in jobs for target in job.targets if target not in asked[job.name].targets}
    todo = [one for one in asked.values() if one.targets]
    failures: dict[str, tuple[Failure, str]] = {}
    progress("build", len(jobs) - len(todo), len(jobs))
    if todo:
        with _token(out) as token:
            orders = [_order(one, packs[one.name], here, out, token) for one in todo]
            for done, (index, answer) in enumerate(_answers(orders, scheduler), 1):
                if answer.failure is not None:
                    failures[todo[index].name] = answer.failure, answer.where
                progress(f"build: {todo[index].name} is done", len(jobs) - len(todo) + done, len(jobs))
    built = tuple(
        _built(job.name, target.name, Path(packs[job.name][target.name][0]), kept=(job.name, target.name) in kept)
        for job in jobs
        for target in job.targets
        if _finished(*packs[job.name][target.name]) is not None
    )
    return ZooResult(out, built, tuple(_failed(jobs, asked, failures)))


def _check(jobs: Sequence[ModelJob], scheduler: str | None) -> None:
    names = [job.name for job in jobs]
    if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise UsageError(f"two models are called {twice}", hint="give each a `name:` of its own")
    own = [job.name for job in jobs if scheduler and any(target.name == HOST for target in job.targets)]
    if own:
        raise UsageError(
            f"{own[0]}: host is whatever machine a worker runs on", hint="name a target, or leave --scheduler out"
        )


def _packs_of(job: ModelJob, here: Path, out: Path) -> dict[str, tuple[str, str]]:
    """Path and key of the pack for each target; the key is of all that a pack depends on."""
    content = [_content(name, here) for name in (job.model, *job.reads)]
    versions = tool_versions()
    return {
        target.name: (
            str(out / job.name / f"{job.pack}.{target.name}"),
            digest(content, job.model, job.arguments, _facts(target), versions),
        )
        for target in job.targets
    }


def _content(name: str, here: Path) -> str:
    """A digest of what stands behind the name of a model or of samples; of a name of no file, that name."""
    path = here / Path(name).expanduser()
    if not path.exists():
        path = path.with_name(path.name.rpartition(":")[0] or path.name)
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.is_file())
        return digest([[str(each.relative_to(path)), file_digest(each)] for each in files])
    if not path.is_file():
        return name
    return digest([file_digest(each) for each in (path, *_external(path))])


def _external(path: Path) -> list[Path]:
    """The files beside an ONNX file that hold weights of it."""
    if path.suffix.lower() != ".onnx":
        return []
    from edgepack.backends.onnx.file import external_files

    try:
        return external_files(path)
    except ModelError:  # its build will say so
        return []


def _facts(target: Target) -> object:
    """What a pack depends on; what is seen of this machine differs from moment to moment."""
    return target.name if target.name == HOST else target


def _unfinished(job: ModelJob, packs: Mapping[str, tuple[str, str]]) -> ModelJob:
    """The same with the targets that are still to be built."""
    return replace(job, targets=tuple(target for target in job.targets if _finished(*packs[target.name]) is None))


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}{BUILT}")


def _finished(pack: str, key: str) -> dict[str, object] | None:
    """What the file beside a pack says, if it is whole and of this key."""
    path = Path(pack)
    try:
        record = json.loads(_record(path).read_bytes())
        if record["key"] != key or record["manifest"] != file_digest(path / MANIFEST):
            return None
        files = read_manifest(path).files
        whole = all(
            file_bytes(path / name) == entry.size_bytes
            for name, entry in files.items()
            if isinstance(entry, PackedFile)
        )
    except (OSError, ValueError, KeyError, TypeError, InputError):  # cut short, removed, or of another edgepack
        return None
    return dict(record) if whole else None


def _built(model: str, target: str, path: Path, *, kept: bool) -> BuiltPack:
    record = json.loads(_record(path).read_bytes())
    return BuiltPack(model, target, path, kept, record["unmet"], record["where"], record["seconds"])


def _failed(
    jobs: Sequence[ModelJob], asked: Mapping[str, ModelJob], failures: Mapping[str, tuple[Failure, str]]
) -> Iterator[FailedModel]:
    for job in jobs:
        if job.name in failures:
            targets = tuple(target.name for target in asked[job.name].targets)
            yield FailedModel(job.name, targets, failures[job.name][0])


@contextmanager
def _token(out: Path) -> Iterator[str]:
    """A file in the folder of all packs, while the block runs."""
    path = out / f".building-{os.getpid()}-{time.time_ns()}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as err:
        raise OutputError(f"{out}: {err.strerror}", hint="give another folder with --out") from err
    try:
        yield str(path)
    finally:
        path.unlink(missing_ok=True)


def _order(job: ModelJob, packs: Mapping[str, tuple[str, str]], here: Path, out: Path, token: str) -> _Order:
    names = [target.name for target in job.targets]
    folder = out / job.name if len(names) > 1 else Path(packs[names[0]][0])
    places = ["--target", ",".join(names), "--out", str(folder)]
    command = ("build", *places, *job.arguments, "--json", "--", job.model)
    return _Order(str(here), token, {name: packs[name] for name in names}, command)


def _answers(orders: Sequence[_Order], scheduler: str | None) -> Iterator[tuple[int, _Answer]]:
    """What became of each, as they end."""
    if scheduler is None:
        for index, order in enumerate(orders):
            yield index, carry_out(order)
        return
    with workers(scheduler) as executor:
        yield from _spread(executor, orders)


def _spread(executor: Workers, orders: Sequence[_Order]) -> Iterator[tuple[int, _Answer]]:
    with executor.explaining():
        running: dict[Future[_Answer], int] = {
            executor.begin(carry_out, (), (order,)): index for index, order in enumerate(orders)
        }
    while running:
        with executor.explaining():
            done = wait(running, timeout=CHECK_S, return_when=FIRST_COMPLETED).done
            if not done:
                executor.check()
        for future in done:
            index = running.pop(future)
            try:
                with executor.explaining():
                    answer = future.result()
            except StableDeviceError as err:  # of this task alone: it has brought down its workers, or one is outdated
                answer = _Answer(Failure(type(err).__name__, err.message, err.hint, err.exit_code), "")
            yield index, answer


def carry_out(order: _Order) -> _Answer:
    """Build one model, wherever this runs, and write beside each of its packs that it is finished.

    Raises:
        OSError: the folders of the packs cannot be written.
    """
    where = socket.gethostname()
    if not Path(order.token).is_file():
        return _Answer(
            Failure(
                StableDeviceError.__name__,
                f"{where}: a worker does not see {Path(order.token).parent}",
                "packs, models and samples must be in folders that all workers share under the same paths",
                StableDeviceError.exit_code,
            ),
            where,
        )
    begun = time.monotonic()
    for path, _ in order.packs.values():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        _record(Path(path)).unlink(missing_ok=True)
    failure = _run(order)
    seconds = time.monotonic() - begun
    if failure is not None and failure.exit_code != errors.BudgetError.exit_code:
        return _Answer(failure, where)
    for path, key in order.packs.values():
        unmet = failure.message if failure is not None and not read_manifest(Path(path)).budget_met else None
        record = {
            "key": key,
            "manifest": file_digest(Path(path) / MANIFEST),
            "unmet": unmet,
            "where": where,
            "seconds": round(seconds, 1),
        }
        part = Path(f"{_record(Path(path))}.{os.getpid()}")
        part.write_text(json.dumps(record, indent=1), encoding="utf-8")
        os.replace(part, _record(Path(path)))
    return _Answer(None, where)


def _run(order: _Order) -> Failure | None:
    """Run `edgepack build`, which is killed when this process ends."""
    command = [sys.executable, "-P", "-m", "edgepack", *order.command]
    paths = [str(Path(edgepack.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = TiedProcess(command, cwd=order.here, env=env, text=True, **streams)
    try:
        out, err = process.communicate()
    finally:
        process.let_go()
    if process.returncode == 0:
        return None
    try:
        return Failure(**json.loads(out)["error"])
    except (ValueError, KeyError, TypeError):
        last = (err or out).strip().splitlines()[-1:]
        ended = f"ended by signal {-process.returncode}" if process.returncode < 0 else f"exit {process.returncode}"
        said = f"{ended}: {last[0][:SAID]}" if last else ended
        return Failure("InternalError", f"edgepack build: {said}", "a common cause is too little memory", 1)
