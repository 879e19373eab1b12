"""The table of what became of wrong inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from hardening.case import Outcome
from hardening.forked import LIMIT_BYTES

CODES = (0, 2, 3, 4, 5, 141)
"""What is documented, beside 1 for defects of edgepack and 130 for interrupts; 141 where the reader left."""


def rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One for each family: inputs, exits by code, exits 1, other ends, hangs, over memory."""
    families = dict.fromkeys(outcome.case.family for outcome in outcomes)
    return [{"family": name, **_row([o for o in outcomes if o.case.family == name])} for name in families]


def failed(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Those that did not end as documented, in time and within memory."""
    return [one for one in outcomes if one.code not in CODES or one.peak_bytes > LIMIT_BYTES]


def _row(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    codes = Counter(outcome.code for outcome in outcomes)
    return {
        "inputs": len(outcomes),
        "exits": {str(code): codes[code] for code in CODES},
        "exits_1": codes[1],
        "others": sum(count for code, count in codes.items() if code is not None and code not in (*CODES, 1)),
        "hangs": codes[None],
        "over_memory": sum(outcome.peak_bytes > LIMIT_BYTES for outcome in outcomes),
        "seconds": round(max(outcome.seconds for outcome in outcomes), 1),
        "peak_bytes": max(outcome.peak_bytes for outcome in outcomes),
    }
