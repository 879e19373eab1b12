"""What `edgepack unpack` says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.report.cells import size
from edgepack.report.tables import plain_table

if TYPE_CHECKING:
    from rich.table import Table

HEADERS = ("file", "size", "sha256", "")


def render_unpacked(files: Sequence[tuple[Path, int, str, bool]]) -> Table:
    """One row per file.

    Args:
        files: (path, bytes, SHA-256 that was checked, whether it was written or there already).
    """
    rows = [
        (str(path), size(size_bytes), f"{sha256[:16]}… ok", "" if written else "was there already")
        for path, size_bytes, sha256, written in files
    ]
    return plain_table(HEADERS, rows, right=("size",))
