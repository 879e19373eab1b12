"""Bytes and time of layers stored in code."""

from __future__ import annotations

from edgepack.backends.registry import FACTS
from edgepack.coded import is_decoded, stored_bytes
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Format

OPERATORS_OF = {"bucket": 20}
"""Operators of one instruction where they are more than one: those of a hash."""


def coded_size_bytes(fmt: Format, part: Replacement, *, bias: bool) -> int:
    """Bytes of the constants, the operators that read them, and the bias."""
    operators = sum(OPERATORS_OF.get(step.op, 1) for step in part.program)
    return (
        stored_bytes(part)
        + FACTS[fmt].constexpr.bytes_per_instruction * operators
        + (4 * len(part.weight) if bias else 0)
    )


def time_over_dense(fmt: Format, part: Replacement) -> float:
    """Time of an inference of the layer over that of the dense layer in fp32.: one number for each kind.

    What is built for this machine is measured as a whole in the end.
    """
    facts = FACTS[fmt].constexpr
    if is_decoded(part):
        return facts.decoded
    return facts.convolved if any(step.op == "conv1d" for step in part.program) else facts.direct
