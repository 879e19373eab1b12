"""What `edgepack run` says: each file, and each answer beside the original's."""

from __future__ import annotations

from dataclasses import asdict

from edgepack.pipeline.run import Ran, RunAnswer, RunFile
from edgepack.report.report import Column, Field, Report, hidden, make_table


def run_report(ran: Ran) -> Report:
    """The files, and below them a row per answer; the document is that of `Ran`."""
    notes = (
        "time: a glance at this machine, one thread; `edgepack bench` measures",
        "SQNR: of all values of an output against those of the dense fp32 file of the same format",
    )
    return Report(
        title=(f"{ran.pack}: {ran.files[0].samples} samples",),
        blocks=(
            make_table(_FILES, ran.files, notes=notes, name="files"),
            make_table(_ANSWERS, ran.answers, title="answers", name="answers"),
        ),
        record=asdict(ran),
    )


def _said(answer: int | tuple[float, ...] | None) -> str | None:
    if isinstance(answer, tuple):
        return ", ".join(f"{value:.4g}" for value in answer)
    return None if answer is None else f"class {answer}"


_FILES: tuple[Field[RunFile], ...] = (
    Field(Column("file", "file")),
    Field(Column("latency_s", "time", "seconds")),
    Field(Column("original_s", "original", "seconds")),
    Field(hidden("samples")),
    Field(Column("differ", "differ", "of", optional=True, parts=("differ", "of")),
          lambda one: None if one.differ is None else (one.differ, one.samples)),
    Field(Column("least_sqnr_db", "least SQNR", "decibels")),
)  # fmt: skip

_ANSWERS: tuple[Field[RunAnswer], ...] = (
    Field(Column("sample", "sample", "integer")),
    Field(Column("file", "file")),
    Field(Column("output", "output", "integer")),
    Field(Column("label", "label", "integer", optional=True), lambda one: _whole(one.label)),
    Field(Column("answer", "answer"), lambda one: _said(one.answer)),
    Field(Column("original", "original"), lambda one: _said(one.original)),
    Field(Column("same", "same", "yes", optional=True)),
    Field(Column("sqnr_db", "SQNR", "decibels")),
    Field(Column("largest_difference", "largest difference", "loss")),
)


def _whole(label: float | None) -> float | int | None:
    return int(label) if label is not None and label == int(label) else label
