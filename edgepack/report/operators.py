"""What `edgepack inspect FILE --target` says: the operators of a model file, and which of them are slow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from edgepack.pipeline.operators import OperatorReport, OperatorsReport
from edgepack.report.report import Column, Field, Figure, Line, Report, hidden, make_table

SHOWN = 20
"""Operators in the table for people, those that take most; data have all."""
LONGEST = 40
"""Of a name there."""


def operators_report(found: OperatorsReport) -> Report:
    """The operators that take most, and a note for each reason why some are slow."""
    known = [one for one in found.operators if one.latency_s is not None]
    head = (
        f"{found.model} on {found.target}: {len(found.operators)} operators, ",
        Figure(found.latency_s, "seconds"),
        "" if len(known) == len(found.operators) else f" in the {len(known)} of which the time is known",
    )
    telling = [one for one in found.operators if one.latency_s is not None or one.slow is not None]
    shown = sorted(telling, key=_weight, reverse=True)[:SHOWN]
    tables = (
        make_table(_FIELDS, shown, notes=tuple(_notes(found, len(shown))), only="people"),
        make_table(_FIELDS, found.operators, only="data"),
    )
    return Report(title=(head,), blocks=tables, warnings=found.warnings, record=asdict(found))


def _weight(one: OperatorReport) -> tuple[float, bool, int]:
    return one.latency_s or 0.0, one.slow is not None, one.macs


def _notes(found: OperatorsReport, shown: int) -> Iterator[Line]:
    if shown < len(found.operators):
        yield f"{shown} that take most; --json and --csv have all {len(found.operators)}, in order of execution"
    yield f"time: of one inference, {found.timed_by}"
    if any(one.faster_in for one in found.operators):
        yield (
            f"faster in: the scheme in which its dense matrix would take least ({found.compared_by}); build weighs "
            "that with bytes, accuracy and lower ranks"
        )
    reasons = dict.fromkeys((one.slow, one.build) for one in found.operators if one.slow is not None)
    for why, build in reasons:
        own = [one for one in found.operators if (one.slow, one.build) == (why, build)]
        kinds = ", ".join(dict.fromkeys(one.op for one in own))
        yield f"slow: {len(own)} {kinds}: {why}; {build}"
    if found.stays is not None:
        yield f"what build keeps: {found.stays}"


_FIELDS: tuple[Field[OperatorReport], ...] = (
    Field(Column("shown", "operator", only="people"), lambda one: _short(one.name)),
    Field(hidden("name")),
    Field(Column("op", "op")),
    Field(Column("scheme", "scheme", missing="")),
    Field(Column("shape", "out×in", "shape", missing="", parts=("out_features", "in_features"))),
    Field(Column("vectors", "rows", "integer", missing="")),
    Field(Column("macs", "MACs", "count", only="people"), lambda one: one.macs or None),
    Field(hidden("macs", "integer")),
    Field(Column("latency_s", "time", "seconds")),
    Field(Column("share", "share", "share")),
    Field(Column("faster", "faster in", "figures", missing="", only="people"), lambda one: _faster(one)),
    Field(hidden("faster_in")),
    Field(hidden("faster_by", "times")),
    Field(Column("is_slow", "slow", "mark", only="people"), lambda one: one.slow is not None),
    Field(hidden("slow")),
    Field(hidden("build")),
)


def _short(name: str) -> str:
    """The first of the names that a converter strung together; of a path, its end."""
    first = name.partition(";")[0]
    return first if len(first) <= LONGEST else f"…{first[1 - LONGEST :]}"


def _faster(one: OperatorReport) -> Line | None:
    return None if one.faster_in is None else (f"{one.faster_in} ", Figure(one.faster_by, "times"))
