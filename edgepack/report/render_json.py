"""A comparison as JSON: the rows as they are, full precision, SI units in the names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from edgepack.report.compare import CompareRow
from edgepack.report.devices import side_by_side
from edgepack.report.emulated import EmulatedRow

SCHEMA_VERSION = 1


def render_json(rows: Sequence[CompareRow], emulated: Sequence[EmulatedRow] = ()) -> str:
    """`{"schema_version": 1, "rows": [...], "devices": {...}, "emulated": [...]}`; a figure that is not known is null.

    `devices` is `{"tables": [...], "apart": [...]}`: models that were measured on several devices side by side, and why
    runs do not stand there.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "rows": [asdict(row) for row in rows],
        "devices": asdict(side_by_side(rows)),
        "emulated": [asdict(row) for row in emulated],
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
