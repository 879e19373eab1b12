"""What `edgepack doctor`, `edgepack emulator install` and `edgepack extract` say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from edgepack.archive.archive import Extracted
from edgepack.devices.doctor import Check, Finding
from edgepack.emulator.install import Installed
from edgepack.errors import SOURCE
from edgepack.report.report import Block, Column, Field, Paragraph, Report, facts, hidden, make_table


def doctor_report(tools: Sequence[Finding]) -> Report:
    """One row per tool: what it is for, and its version or the command that installs it."""
    extras = any(tool.found is None and "'.[" in tool.install for tool in tools)
    notes = (f"pip install '.[…]' {SOURCE}",) if extras else ()
    return Report(blocks=(make_table(_TOOLS, tools, notes=notes),), record=[asdict(tool) for tool in tools])


def _here(tool: Finding) -> str:
    if tool.found is not None:
        return tool.found if tool.tested is None else f"{tool.found}, newer than the tested {tool.tested}"
    return f"missing {tool.lacks}: {tool.install}" if tool.lacks else f"missing: {tool.install}"


_TOOLS: tuple[Field[Finding], ...] = (
    Field(Column("name", "tool")),
    Field(Column("purpose", "purpose")),
    Field(Column("here", "here", only="people"), _here),
    *(Field[Finding](hidden(key)) for key in ("found", "tested", "lacks", "install")),
)


def preflight_report(found: Mapping[str, Sequence[Check]]) -> Report:
    """For every device a line per thing: whether it is well, what was found, what to do.

    Args:
        found: by the device's name.
    """
    blocks: list[Block] = []
    for title, checks in found.items():
        blocks += [Paragraph(title), make_table((_device(title), *_CHECKS), checks)]
    record = {title: [asdict(check) for check in checks] for title, checks in found.items()}
    return Report(blocks=tuple(blocks), record=record)


def _device(title: str) -> Field[Check]:
    return Field(hidden("device"), lambda _: title)


_CHECKS: tuple[Field[Check], ...] = (
    Field(Column("state"), lambda check: "!" if check.advice else "ok"),
    Field(Column("name", "device")),
    Field(Column("found", "found")),
    Field(Column("advice", "what to do", missing="", optional=True)),
)


def installed_report(installed: Installed) -> Report:
    """Where each part of the emulator is."""
    rows = [("QEMU", installed.qemu), ("cache model", installed.plugin)]
    if installed.root is not None:
        rows.append(("root folder", installed.root))
    rows.append(("onnxruntime there", installed.onnxruntime))
    return Report(blocks=(facts(f"emulator {installed.arch}", rows),), record=asdict(installed))


def extracted_report(file: Path, files: Sequence[Extracted]) -> Report:
    """One row per file that came out of an archive."""
    listed = [{**asdict(one), "path": str(one.path)} for one in files]
    record = {"file": str(file), "archive_bytes": file.stat().st_size, "files": listed}
    return Report(blocks=(make_table(_EXTRACTED, files),), record=record)


_EXTRACTED: tuple[Field[Extracted], ...] = (
    Field(Column("path", "file"), lambda one: str(one.path)),
    Field(Column("size_bytes", "size", "bytes")),
    Field(Column("sha256", "sha256", "digest")),
    Field(hidden("written")),
    Field(Column("note", only="people"), lambda one: "" if one.written else "was there already"),
)
