"""The tables of `edgepack doctor` and `edgepack emulator install`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgepack.doctor import Finding
from edgepack.emulator.install import Installed
from edgepack.report.tables import plain_table

if TYPE_CHECKING:
    from rich.table import Table


def render_doctor(tools: Sequence[Finding]) -> Table:
    """One row per tool: what it is for, and its version or the command that installs it."""
    return plain_table(("tool", "for", "here"), [(tool.name, tool.purpose, _here(tool)) for tool in tools])


def _here(tool: Finding) -> str:
    if tool.found is not None:
        return tool.found if tool.tested is None else f"{tool.found}, newer than the tested {tool.tested}"
    return f"missing {tool.lacks}: {tool.install}" if tool.lacks else f"missing: {tool.install}"


def render_installed(installed: Installed) -> Table:
    """Where each part is."""
    rows = [("QEMU", installed.qemu), ("cache model", installed.plugin)]
    if installed.root is not None:
        rows.append(("root folder", installed.root))
    rows.append(("onnxruntime there", installed.onnxruntime))
    return plain_table((f"emulator {installed.arch}", ""), rows)
