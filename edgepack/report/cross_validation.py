"""How the rank was chosen by cross-validation, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgepack.report.tables import plain_table

if TYPE_CHECKING:
    from rich.table import Table

HEADERS = ("weights kept", "accuracy", "± error", "")


def cross_validation_table(record: Mapping[str, Any]) -> Table:
    """A row per share; those that were given up before all folds were looked at have no mean."""
    return plain_table(HEADERS, [_row(row, record) for row in record["table"]], right=HEADERS[:3])


def _row(row: Mapping[str, Any], record: Mapping[str, Any]) -> tuple[str, ...]:
    notes = [name for name, key in (("chosen", "percent"), ("best", "best")) if row["percent"] == record[key]]
    known = row["mean"] is not None
    if not known:
        notes.append(f"given up after {len(row['scores'])} of {record['folds']} folds")
    mean, error = (f"{row['mean']:.2f}", f"{row['standard_error']:.2f}") if known else ("–", "–")
    return f"{row['percent']}%", mean, error, ", ".join(notes)
