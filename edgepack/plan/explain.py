"""Why a layer became what it is: what else there was, and by how much it lost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgepack.model.scheme import INT8_BITS, precision_of
from edgepack.model.structure import Structure
from edgepack.model.types import Candidate

SAME = 1.02
"""Ratios below this are not worth a word."""


def kind(candidate: Candidate) -> str:
    """What people compare: `low rank`, `dense` with its precision, both, a structure that takes a kernel apart, or
    another method by its name."""
    if candidate.alternative is not None:
        return candidate.alternative.method
    if candidate.structure.is_correction:
        return "low-rank correction"
    if candidate.structure.is_shared:
        return "shared input factors"
    if candidate.structure.ranks:
        return "low rank" if candidate.structure.of_a_matrix else candidate.structure.name
    return f"dense {precision_of(candidate.scheme.bits)}"


def others(candidates: Sequence[Candidate], chosen: Candidate, slack: float) -> tuple[Candidate, ...]:
    """The best of each kind that was not chosen: the fastest that fits, else of the faster ones what loses least.

    Args:
        slack: loss that the whole plan had left.
    """
    kinds: dict[str, list[Candidate]] = {}
    for one in candidates:
        if kind(one) != kind(chosen):
            kinds.setdefault(kind(one), []).append(one)
    return tuple(_best(_like(group, chosen), chosen, slack) for _, group in sorted(kinds.items()))


def reason(candidates: Sequence[Candidate], chosen: Candidate, slack: float, why_dense: str | None = None) -> str:
    """One sentence about a layer.

    Args:
        candidates: all that the layer could become.
        chosen: one of them.
        slack: loss that the whole plan had left; infinite where nothing bounds it.
        why_dense: why no low-rank factors are among the candidates, where that is so.
    """
    rivals = others(candidates, chosen, slack)
    if chosen.structure.ranks or chosen.alternative is not None:
        dense = _fastest(one for one in candidates if kind(one).startswith("dense"))
        against = "" if dense is None else f": {_than(_compared(chosen, dense))} {name(dense)}"
        return f"{name(chosen)}{against}{_lower_rank(candidates, chosen)}"
    factored = [one for one in candidates if one.alternative is None and one.structure.in_place]
    parts = [_lost(_best(_like(factored, chosen), chosen, slack), chosen, slack)] if factored else []
    if not factored and why_dense:
        parts = [why_dense]
    if chosen.scheme.bits != INT8_BITS:
        parts += [_lost(one, chosen, slack) for one in rivals if kind(one) == "dense int8"]
    return f"{name(chosen)}: {'; '.join(parts)}" if parts else f"{name(chosen)}: nothing else was allowed"


def name(candidate: Candidate) -> str:
    """`dense int8-dynamic`, `rank 32 nbits8`, `tucker-2 16×24 fp32`, `dense nbits4 + rank 16 nbits8`, or
    `kmeans at 0.25 of the bytes`."""
    if candidate.alternative is not None:
        scheme = "" if candidate.scheme.is_constexpr else f" {candidate.scheme}"
        rank = "" if candidate.structure.rank is None else f" rank {candidate.structure.rank}"
        return f"{candidate.alternative.method} at {candidate.alternative.share:.3g} of the bytes{rank}{scheme}"
    if candidate.structure.is_correction:
        return f"dense {candidate.scheme} + rank {candidate.structure.rank} {candidate.scheme.correction}"
    return f"{arrangement(candidate.structure)} {candidate.scheme}"


def arrangement(structure: Structure) -> str:
    """`dense`, `rank 32`, or `tucker-2 16×24`."""
    shown = structure.shown or "dense"
    return f"rank {shown}" if structure.ranks and structure.of_a_matrix else shown


def _like(group: Sequence[Candidate], chosen: Candidate) -> Sequence[Candidate]:
    """Those in the chosen one's own scheme, where there are any: they differ in one thing only."""
    return [one for one in group if one.scheme == chosen.scheme] or group


def _best(group: Sequence[Candidate], chosen: Candidate, slack: float) -> Candidate:
    fitting = [one for one in group if one.loss <= chosen.loss + slack]
    if fitting:
        return min(fitting, key=lambda one: (one.latency_s, one.size_bytes, one.loss))
    faster = [one for one in group if one.latency_s < chosen.latency_s]
    return min(faster or group, key=lambda one: one.loss)


def _fastest(group: Iterable[Candidate]) -> Candidate | None:
    """Of the dense int8 layers, else of all."""
    found = list(group)
    int8 = [one for one in found if one.scheme.bits == INT8_BITS]
    return min(int8 or found, key=lambda one: one.latency_s, default=None)


def _compared(one: Candidate, other: Candidate) -> str:
    """`3.1× faster and 4.0× smaller`, from the first one's side; empty where they are alike."""
    # A layer that an inference does not reach takes no time in any scheme, and neither does a lookup.
    faster = other.latency_s / one.latency_s if one.latency_s and other.latency_s else 1.0
    smaller = other.size_bytes / one.size_bytes
    parts = [_ratio(faster, "faster", "slower"), _ratio(smaller, "smaller", "larger")]
    return " and ".join(part for part in parts if part)


def _than(compared: str) -> str:
    return f"{compared} than" if compared else "as fast and as small as"


def _ratio(ratio: float, more: str, less: str) -> str:
    if ratio >= SAME:
        return f"{ratio:.1f}× {more}" if ratio >= 1.1 else f"{ratio:.2f}× {more}"
    if ratio <= 1 / SAME:
        return f"{1 / ratio:.1f}× {less}" if ratio <= 1 / 1.1 else f"{1 / ratio:.2f}× {less}"
    return ""


def _lost(other: Candidate, chosen: Candidate, slack: float) -> str:
    """What speaks against another candidate: time or size where it fits, else what it loses."""
    added = other.loss - chosen.loss
    if added > slack and other.latency_s < chosen.latency_s:
        times = f"{added / slack:.1f} times" if 0 < added < 1000 * slack else "far more than"
        gained = _compared(other, chosen) or "no better"
        return f"{name(other)} would be {gained}, but would lose {times} what the budget leaves"
    return f"{name(other)} would be {_compared(other, chosen) or 'no better'} on this target"


def _lower_rank(candidates: Sequence[Candidate], chosen: Candidate) -> str:
    """What the next smaller rank in the same scheme would have lost."""
    alike = [one for one in candidates if one.scheme == chosen.scheme and kind(one) == kind(chosen)]
    lower = [one for one in alike if _is_below(one.structure.ranks, chosen.structure.ranks)]
    if not lower or chosen.loss <= 0:
        return ""
    below = max(lower, key=lambda one: one.structure.ranks)
    return f"; {arrangement(below.structure)} would lose {below.loss / chosen.loss:.1f} times as much"


def _is_below(ranks: Sequence[int], others: Sequence[int]) -> bool:
    """Whether no rank is higher and one is lower, of as many."""
    return len(ranks) == len(others) and ranks != others and all(a <= b for a, b in zip(ranks, others, strict=True))
