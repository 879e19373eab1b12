"""What `edgepack join` says: the signatures of the file that it wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgepack.backends.tflite.join import Joined
from edgepack.report.report import Column, Field, Report, make_table
from edgepack.units import size
from edgepack.workspace import file_bytes


def joined_report(out: Path, signatures: Sequence[Joined]) -> Report:
    """One row per signature."""
    have, apart = file_bytes(out), sum(each.size_bytes for each in signatures)
    listed = [
        {
            "signature": each.name,
            "path": str(each.path),
            "size_bytes": each.size_bytes,
            "inputs": list(each.inputs),
            "outputs": list(each.outputs),
        }
        for each in signatures
    ]
    line = f"{out}: {size(have)}, {size(apart)} in {len(signatures)} files"
    record = {"file": str(out), "size_bytes": have, "signatures": listed}
    return Report(title=(line,), blocks=(make_table(_SIGNATURES, signatures),), record=record)


_SIGNATURES: tuple[Field[Joined], ...] = (
    Field(Column("signature", "signature"), lambda one: one.name),
    Field(Column("path", "file"), lambda one: str(one.path)),
    Field(Column("size_bytes", "size", "bytes")),
    Field(Column("inputs", "inputs"), lambda one: ", ".join(one.inputs)),
    Field(Column("outputs", "outputs"), lambda one: ", ".join(one.outputs)),
)
