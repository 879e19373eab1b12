"""A report as JSON: its record, full precision, SI units in the names."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from edgepack.report.report import Report


def render(report: Report) -> str:
    """One document; a figure that is not known, or not a number, is null."""
    return json.dumps(_finite(report.record), indent=2, sort_keys=True, allow_nan=False, default=str) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(own) for key, own in value.items()}
    return [_finite(own) for own in value] if isinstance(value, list | tuple) else value
