"""What `edgepack build-all` says: a row for each file of every pack, and what was not built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from edgepack.pack.manifest import read_manifest
from edgepack.pipeline.build_all import BuiltPack, FailedModel, ZooResult
from edgepack.report.build import packed_files
from edgepack.report.report import Column, Field, Report, hidden, make_table

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ZooFile:
    """A model file of one pack.

    Attributes:
        state: "built", "kept" (by an earlier run) or "over budget".
        pack, file: the folder, and the file's path in it.
        size_bytes, int8_bytes: of the file, and of the dense int8 baseline of its format; None without one.
        drop, drop_bound: as the manifest states them; None without data.
        seconds: that the build of all targets of the model took.
    """

    model: str
    target: str
    state: str
    pack: str
    file: str
    format: str
    scheme: str
    size_bytes: int
    int8_bytes: int | None
    drop: float | None
    drop_bound: float | None
    sha256: str
    seconds: float
    where: str


def zoo_report(result: ZooResult) -> Report:
    """Files of all packs, and the models that failed.

    The document is `{"kind": "edgepack-build-all", "out", "packs": [...], "files": [...], "failed": [...]}`, and has
    `error` where anything failed.
    """
    files = [file for pack in result.packs for file in _files(pack)]
    kept = sum(one.kept for one in result.packs)
    models = {one.model for one in result.packs} | {one.model for one in result.failed}
    title = f"{result.out}: {len(result.packs)} packs of {len(models)} models, {kept} of them built before"
    record = {
        "schema_version": SCHEMA_VERSION,
        "kind": "edgepack-build-all",
        "out": str(result.out),
        "packs": [asdict(one) | {"path": str(one.path)} for one in result.packs],
        "files": [asdict(one) for one in files],
        "failed": [asdict(one) for one in result.failed],
    }
    if (failure := result.failure) is not None:
        error = {"message": failure.message, "hint": failure.hint, "exit_code": failure.exit_code}
        record["error"] = {"kind": type(failure).__name__, **error}
    blocks = [make_table(_FILES, files, name="files")] if files else []
    if result.failed:
        blocks.append(make_table(_FAILED, result.failed, title="not built", name="failed"))
    return Report(title=(title,), blocks=tuple(blocks), record=record)


def _files(pack: BuiltPack) -> Iterator[ZooFile]:
    manifest = read_manifest(pack.path)
    state = "over budget" if pack.unmet is not None else "kept" if pack.kept else "built"
    for name, entry in packed_files(manifest).items():
        stated, dense = entry.stated, manifest.baseline("int8", entry.format)
        yield ZooFile(
            model=pack.model,
            target=pack.target,
            state=state,
            pack=str(pack.path),
            file=name,
            format=entry.format,
            scheme=entry.scheme,
            size_bytes=entry.size_bytes,
            int8_bytes=None if dense is None else dense.size_bytes,
            drop=None if stated is None else stated.drop,
            drop_bound=None if stated is None or not stated.samples else stated.bound,
            sha256=entry.sha256,
            seconds=pack.seconds,
            where=pack.where,
        )


def _smaller(one: ZooFile) -> float | None:
    return None if one.int8_bytes is None else one.int8_bytes / one.size_bytes


_FILES: tuple[Field[ZooFile], ...] = (
    Field(Column("model", "model")),
    Field(Column("target", "target")),
    Field(Column("state", "state")),
    Field(Column("file", "file")),
    Field(Column("scheme", "scheme")),
    Field(Column("size_bytes", "size", "bytes")),
    Field(Column("smaller_than_int8", "vs int8", "times", optional=True), _smaller),
    Field(Column("drop", "drop", "change", optional=True)),
    Field(Column("drop_bound", "at most", "change", optional=True)),
    Field(hidden("pack")),
    Field(hidden("sha256")),
    Field(hidden("seconds")),
    Field(hidden("where")),
)
_FAILED: tuple[Field[FailedModel], ...] = (
    Field(Column("model", "model")),
    Field(Column("targets", "targets"), lambda one: ", ".join(one.targets)),
    Field(Column("message", "why"), lambda one: one.failure.message),
    Field(Column("hint", "what to do", optional=True), lambda one: one.failure.hint),
)
