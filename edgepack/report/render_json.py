"""A comparison as JSON: the rows as they are, full precision, SI units in the names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from edgepack.report.compare import CompareRow

SCHEMA_VERSION = 1


def render_json(rows: Sequence[CompareRow]) -> str:
    """`{"schema_version": 1, "rows": [...]}`; a figure that is not known is null."""
    document = {"schema_version": SCHEMA_VERSION, "rows": [asdict(row) for row in rows]}
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
