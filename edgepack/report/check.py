"""What `edgepack check` says: each file's figures beside the base's, and the layers that have changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from edgepack.check.changes import Change, What
from edgepack.check.check import Checked
from edgepack.check.figures import KIND, FileFigures
from edgepack.report.report import Case, Column, Field, Figure, Line, Report, Table, Unit, hidden, make_table

SCHEMA_VERSION = 1
_UNITS: Mapping[What, Unit] = {
    "size": "bytes",
    "instructions": "count",
    "misses": "misses",
    "drop": "change",
    "latency": "seconds",
}


def check_report(checked: Checked) -> Report:
    """For people the figures of whole files and of the parts that have changed, for machines every one.

    The document is `{"kind": "edgepack-check", "figures": {...}, "base": {...}, "changes": [...], "passed": true}`: a
    base of later checks. Where a figure is over its threshold it has `error` as well.
    """
    failure = checked.failure
    record = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "pack": str(checked.pack),
        "against": checked.against,
        "figures": asdict(checked.figures),
        "base": None if checked.base is None else asdict(checked.base),
        "thresholds": asdict(checked.thresholds),
        "changes": [asdict(one) for one in checked.changes],
        "notes": list(checked.notes),
        "passed": failure is None,
    }
    if failure is not None:
        error = {"message": failure.message, "hint": failure.hint, "exit_code": failure.exit_code}
        record["error"] = {"kind": type(failure).__name__, **error}
    if checked.base is None:
        return Report(title=(f"{checked.pack} on {checked.figures.target}",), blocks=(_taken(checked),), record=record)
    return Report(
        title=(_title(checked),),
        blocks=(_shown(checked), make_table(_EVERY, checked.changes, only="data", name="changes")),
        record=record,
        cases=tuple(
            Case(f"{checked.pack.resolve().name}.{one.file}", _case(one), _failure(one)) for one in checked.changes
        ),
    )


def _title(checked: Checked) -> str:
    count = len(checked.over)
    verdict = (
        f"{count} of {len(checked.changes)} figures over" if count else f"all {len(checked.changes)} figures within"
    )
    return f"{checked.pack} against {checked.against} on {checked.figures.target}: {verdict} what is allowed"


def _taken(checked: Checked) -> Table:
    note = "figures alone, held against nothing: with --json they are a base, and --against names one"
    return make_table(_FILES, checked.figures.files, notes=(note,), name="figures")


def _shown(checked: Checked) -> Table:
    notes: list[Line] = list(checked.notes)
    parts = sum(1 for one in checked.changes if one.part is not None)
    shown = [one for one in checked.changes if one.part is None or one.over or one.better]
    quiet = parts - sum(1 for one in shown if one.part is not None)
    if quiet:
        notes.append(
            f"{quiet} figures of layers and of the parts between them are within what is allowed (--json has all)"
        )
    emulation = checked.figures.emulation
    if emulation is not None:
        runtimes = ", ".join(f"{name} {version}" for name, version in sorted(emulation.runtimes.items()))
        notes.append(f"counts of one inference by {runtimes} under {emulation.qemu.partition(' (')[0]}; no times")
    return make_table(_CHANGED, shown, notes=tuple(notes), lead=1, only="people")


def _value(one: Change, value: float | None) -> Line | None:
    return None if value is None else (Figure(value, _UNITS[one.what]),)


def _growth(one: Change, value: float | None, of_shares: Unit) -> Line | None:
    unit: Unit = of_shares if one.what != "drop" else ("change" if of_shares == "growth" else "score")
    return None if value is None else (Figure(value, unit),)


def _figure(one: Change) -> str:
    """`L1d misses`."""
    return one.figure.removesuffix("_bytes").removesuffix("_s").replace("_", " ")


def _verdict(one: Change) -> str:
    return (one.why or "OVER") if one.over else "better" if one.better else ""


def _case(one: Change) -> str:
    return f"{one.part or 'whole file'}: {_figure(one)}"


def _failure(one: Change) -> Line:
    if not one.over:
        return ""
    if one.growth is None:
        return f"{_case(one)}: {one.why}"
    base, own = Figure(one.base, _UNITS[one.what]), Figure(one.own, _UNITS[one.what])
    growth, allowed = _growth(one, one.growth, "growth"), _growth(one, one.allowed, "share")
    return (f"{_case(one)}: ", base, " → ", own, ", ", *(growth or ()), " where ", *(allowed or ()), " is allowed")


_CHANGED: tuple[Field[Change], ...] = (
    Field(Column("file", "file")),
    Field(Column("part", "layer", missing="whole file")),
    Field(Column("figure", "figure"), _figure),
    Field(Column("base", "base", "figures"), lambda one: _value(one, one.base)),
    Field(Column("own", "now", "figures"), lambda one: _value(one, one.own)),
    Field(Column("growth", "change", "figures"), lambda one: _growth(one, one.growth, "growth")),
    Field(Column("allowed", "allowed", "figures"), lambda one: _growth(one, one.allowed, "share")),
    Field(Column("verdict", "", missing=""), _verdict),
)

_EVERY: tuple[Field[Change], ...] = (
    *(Field[Change](hidden(key)) for key in ("file", "part", "what", "figure", "base", "own", "growth", "allowed")),
    Field(hidden("over")),
    Field(hidden("why")),
)


def _counted(key: str, header: str, unit: Unit, misses: bool = False) -> Field[FileFigures]:
    def get(one: FileFigures) -> float | None:
        if one.counts is None:
            return None
        return one.counts.misses.get(key) if misses else one.counts.instructions

    return Field(Column(f"{key.lower()}_misses" if misses else key, header, unit), get)


_FILES: tuple[Field[FileFigures], ...] = (
    Field(Column("name", "file")),
    Field(Column("size_bytes", "size", "bytes")),
    Field(Column("drop", "drop", "change")),
    _counted("instructions", "instr.", "count"),
    _counted("L1d", "L1d misses", "misses", misses=True),
    Field(
        Column("last_level_misses", "last-level misses", "misses"),
        lambda one: None if one.counts is None else one.counts.misses[one.counts.last_level],
    ),
)
