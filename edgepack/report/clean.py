"""What `edgepack clean` says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepack.cache import Entry
from edgepack.report.report import Column, Field, Paragraph, Report, make_table
from edgepack.units import size


@dataclass(frozen=True)
class _Step:
    """Results of one step of builds."""

    step: str
    entries: int
    size_bytes: int
    removed: int
    removed_bytes: int


def clean_report(root: Path, left: Sequence[Path], found: Sequence[Entry], removed: Sequence[Entry]) -> Report:
    """Folders that were removed, and by step what the cache holds and what was removed of it.

    Args:
        root: the cache folder.
        left: what dead processes had left.
        found: results before anything was removed.
        removed: of these.
    """
    gone = {entry.path for entry in removed}
    steps = []
    for step in sorted({entry.step for entry in found}):
        own = [entry for entry in found if entry.step == step]
        out = [entry for entry in own if entry.path in gone]
        kept_bytes = sum(entry.size_bytes for entry in own) - sum(entry.size_bytes for entry in out)
        steps.append(_Step(step, len(own) - len(out), kept_bytes, len(out), sum(entry.size_bytes for entry in out)))
    kept = sum(step.size_bytes for step in steps)
    freed = sum(step.removed_bytes for step in steps)
    lines = [
        f"removed {len(left)} folder{'s' * (len(left) != 1)} that dead processes had left",
        f"cache {root}: {sum(step.entries for step in steps)} results, {size(kept)}"
        + (f"; {len(removed)} removed, {size(freed)}" if removed else ""),
    ]
    record = {
        "left": [str(path) for path in left],
        "cache": {
            "folder": str(root),
            "entries": sum(step.entries for step in steps),
            "size_bytes": kept,
            "removed": len(removed),
            "removed_bytes": freed,
        },
    }
    blocks = (*(Paragraph(str(path)) for path in left), *((make_table(_STEPS, steps),) if steps else ()))
    return Report(title=tuple(lines), blocks=blocks, record=record)


_STEPS: tuple[Field[_Step], ...] = (
    Field(Column("step")),
    Field(Column("entries", "results", "integer")),
    Field(Column("size_bytes", "size", "bytes")),
    Field(Column("removed", "removed", "integer")),
    Field(Column("removed_bytes", "freed", "bytes")),
)
