"""The table of what became of wrong inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from block_tables import markdown_table

from edgepack.units import size
from hardening.case import Outcome
from hardening.forked import LIMIT_BYTES, LIMIT_S

CODES = (0, 2, 3, 4, 5, 141)
"""What is documented, beside 1 for defects of edgepack and 130 for interrupts; 141 where the reader left."""


def rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One for each family: inputs, exits by code, exits 1, other ends, hangs, over memory."""
    families = dict.fromkeys(outcome.case.family for outcome in outcomes)
    return [{"family": name, **_row([o for o in outcomes if o.case.family == name])} for name in families]


def failed(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Those that did not end as documented, in time and within memory."""
    return [one for one in outcomes if one.code not in CODES or one.peak_bytes > LIMIT_BYTES]


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """The section of bench/RESULTS.md."""
    head = (
        "wrong",
        "inputs",
        *(f"exit {code}" for code in CODES),
        "exit 1",
        "other",
        "hangs",
        "over 2 GB",
        "longest",
        "most memory",
    )
    lines = [
        (
            row["family"],
            str(row["inputs"]),
            *(str(row["exits"][str(code)]) for code in CODES),
            *(str(row[name]) for name in ("exits_1", "others", "hangs", "over_memory")),
            f"{row['seconds']:.1f} s",
            size(row["peak_bytes"]),
        )
        for row in rows
    ]
    sums = [sum(row["exits"][str(code)] for row in rows) for code in CODES]
    sums += [sum(row[name] for row in rows) for name in ("exits_1", "others", "hangs", "over_memory")]
    most = (f"{max(row['seconds'] for row in rows):.1f} s", size(max(row["peak_bytes"] for row in rows)))
    lines.append(("**all**", str(sum(row["inputs"] for row in rows)), *map(str, sums), *most))
    about = (
        f"Each input is a command of its own, in a process that may take {LIMIT_S:.0f} s and 2 GB: beyond that it is a "
        "hang. Exit 0 is what turned out to be no mistake, such as a changed byte of a weight; 1 an internal error, a "
        "defect; 141 that nobody read the output any more; other ends are those by a signal. Mutations are seeded."
    )
    return f"{about}\n\n{markdown_table(head, lines, right=head[1:])}"


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
