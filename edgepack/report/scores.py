"""The column of scores: headed by its metric, with scores as people know them."""

from __future__ import annotations

from collections.abc import Iterable

from edgepack.metrics.metric import METRICS

SCORE = "score"
"""The header where the metric's name is none: rows have different ones, or it is too long; `score_notes` says which."""
LONGEST = 20
"""Letters of a name that is a header."""


def score_header(metrics: Iterable[str | None]) -> str:
    """The one metric of all rows; of one's own, which is file.py:function, the function."""
    names = {short_name(name) for name in metrics if name}
    return next(iter(names)) if len(names) == 1 and len(min(names)) <= LONGEST else SCORE


def score_notes(metrics: Iterable[tuple[str, str | None]]) -> tuple[str, ...]:
    """What the scores are where the header does not say it.

    Args:
        metrics: of each row, whose it is and its name.
    """
    owners: dict[str, dict[str, None]] = {}
    for owner, name in metrics:
        if name:
            owners.setdefault(name, {})[owner] = None
    if score_header(owners) != SCORE:
        return ()
    return tuple(f"{SCORE} of {', '.join(of)}: {short_name(name)}" for name, of in owners.items())


def shown_score(metric: str | None, score: float | None) -> float | None:
    """A score as people know the metric: errors are positive, and less is better."""
    known = None if metric is None else METRICS.get(metric)
    return score if score is None or known is None else known.shown(score)


def short_name(metric: str) -> str:
    """Without the file of one's own."""
    return metric.rpartition(":")[2]
