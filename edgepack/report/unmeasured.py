"""The rows of packs that were never measured: what their folders and manifests say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepack.backends.registry import FORMATS
from edgepack.model.scheme import Format
from edgepack.pack.facts import PackFacts
from edgepack.pack.manifest import file_path
from edgepack.report.report import Column, Field, Table, hidden, make_table
from edgepack.report.scores import score_header, score_notes, shown_score
from edgepack.units import NONE

VARIANTS = ("edgepack", "dense-fp32", "dense-int8")


@dataclass(frozen=True)
class UnmeasuredRow:
    """One model file; None: not known. `metric` and `drop` as of `CompareRow`."""

    pack: str
    model: str
    target: str
    format: Format
    variant: str
    scheme: str | None
    size_bytes: int
    metric_name: str | None
    metric: float | None
    drop: float | None


def unmeasured_rows(pack: Path, facts: PackFacts) -> Iterator[UnmeasuredRow]:
    """A row per model file that is in the folder."""
    for fmt in FORMATS:
        for variant in VARIANTS:
            path = pack / file_path(variant, fmt)
            if path.is_file():
                file = facts.file(variant, fmt)
                yield UnmeasuredRow(
                    pack=str(pack),
                    model=facts.model or pack.name,
                    target=facts.target or NONE,
                    format=fmt,
                    variant=variant,
                    scheme=file.scheme,
                    size_bytes=path.stat().st_size,
                    metric_name=facts.metric,
                    metric=file.metric,
                    drop=file.drop,
                )


def unmeasured_table(rows: Sequence[UnmeasuredRow]) -> Table:
    """The rows, and how to measure them."""
    packs = dict.fromkeys(row.pack for row in rows)
    notes = score_notes((row.model, row.metric_name) for row in rows)
    return make_table(
        _fields(score_header(row.metric_name for row in rows)),
        rows,
        title="not measured yet",
        notes=(*notes, *(f"measure it: edgepack bench {pack}" for pack in packs)),
        lead=3,
        name="unmeasured",
    )


def _fields(metric: str) -> tuple[Field[UnmeasuredRow], ...]:
    return (
        Field(Column("model", "model")),
        Field(Column("target", "target")),
        Field(hidden("pack")),
        Field(Column("format", "format")),
        Field(Column("variant", "variant")),
        Field(Column("scheme", "scheme")),
        Field(Column("size_bytes", "size", "bytes")),
        Field(hidden("metric_name")),
        Field(Column("metric", metric, "score"), lambda row: shown_score(row.metric_name, row.metric)),
        Field(Column("drop", "drop", "score")),
    )
