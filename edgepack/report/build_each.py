"""What `edgepack build` says for several targets: which file serves which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from edgepack.pipeline.build import BuildResult
from edgepack.report.build import packed_files
from edgepack.report.report import Column, Field, Report, make_table


@dataclass(frozen=True)
class ServingFile:
    """One model file, in the pack of every target that it serves.

    Attributes:
        file: its path in the first of these packs.
        sha256: of it; the files of the other packs are the same to the byte.
        targets: that it was built for, by name.
        drop, drop_bound: as the manifest states them; None without data.
    """

    file: str
    format: str
    scheme: str
    size_bytes: int
    sha256: str
    drop: float | None
    drop_bound: float | None
    targets: tuple[str, ...]


def packs_report(results: Sequence[BuildResult]) -> Report:
    """A row for every file that differs from all others, format by format; the packs below.

    The document is `{"packs": [{"target", "pack", "manifest"}], "files": [...]}`.
    """
    first = results[0].manifest
    files = list(_files(results))
    names = ", ".join(one.manifest.target.name for one in results)
    warnings = dict.fromkeys(warning for one in results for warning in one.manifest.warnings)
    packs = [
        {"target": one.manifest.target.name, "pack": str(one.out), "manifest": one.manifest.record()} for one in results
    ]
    notes = ("a file that serves several targets is the same to the byte in the pack of each", *_packs(results))
    return Report(
        title=(f"{first.model.name} for {names}, metric: {first.metric.name}",),
        blocks=(make_table(_SERVING, files, notes=notes, name="files"),),
        warnings=tuple(warnings),
        record={"packs": packs, "files": [asdict(one) for one in files]},
    )


def _packs(results: Sequence[BuildResult]) -> Iterator[str]:
    for one in results:
        unmet = "" if one.failure is None else ", the budget is not met"
        yield f"{one.manifest.target.name}: {one.out}{unmet}; edgepack inspect {one.out} shows its layers"


def _files(results: Sequence[BuildResult]) -> Iterator[ServingFile]:
    formats = dict.fromkeys(entry.format for one in results for entry in packed_files(one.manifest).values())
    for fmt in formats:
        own = [(one, name, entry) for one in results for name, entry in packed_files(one.manifest).items()]
        own = [each for each in own if each[2].format == fmt]
        for sha256 in dict.fromkeys(entry.sha256 for _, _, entry in own):
            alike = [each for each in own if each[2].sha256 == sha256]
            result, name, entry = alike[0]
            stated = entry.stated
            yield ServingFile(
                file=str(result.out / name),
                format=fmt,
                scheme=entry.scheme,
                size_bytes=entry.size_bytes,
                sha256=sha256,
                drop=None if stated is None else stated.drop,
                drop_bound=None if stated is None or not stated.samples else stated.bound,
                targets=tuple(one.manifest.target.name for one, _, _ in alike),
            )


_SERVING: tuple[Field[ServingFile], ...] = (
    Field(Column("targets", "serves", "text"), lambda one: ", ".join(one.targets)),
    Field(Column("file", "file")),
    Field(Column("scheme", "scheme")),
    Field(Column("size_bytes", "size", "bytes")),
    Field(Column("drop", "drop", "change", optional=True)),
    Field(Column("drop_bound", "at most", "change", optional=True)),
    Field(Column("sha256", "", "raw", only="data")),
)
