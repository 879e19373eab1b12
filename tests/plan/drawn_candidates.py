"""Candidates that hypothesis draws for plans, and bounds as exact numbers to hold plans against."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import strategies as st

from edgepack.backends.onnx.schemes import FP32
from edgepack.model.types import Candidate
from edgepack.plan.solve import QUANTITIES, ROUNDING, Bounds, Quantity
from tests.linear_plans import linear_candidate

Sums = dict[Quantity, Fraction]


def candidate(loss: float, size: int, ram: int, latency: float) -> Candidate:
    return linear_candidate(FP32, None, loss, size, ram, latency)


def limits(bounds: Bounds) -> Sums:
    """The bounds as exact numbers, with what sums of floats may differ by."""
    given_ = {q: getattr(bounds, q) for q in QUANTITIES if getattr(bounds, q) is not None}
    return {q: Fraction(v) * (1 if q.endswith("bytes") else 1 + Fraction(ROUNDING)) for q, v in given_.items()}


coarse = st.builds(
    candidate,
    st.integers(0, 6).map(lambda n: n / 64e3),
    st.integers(0, 5).map(lambda n: n * 1000),
    st.integers(0, 5).map(lambda n: n * 1000),
    st.integers(0, 6).map(lambda n: n / 64e4),
)
"""Few values: many ties."""

fine = st.builds(
    candidate,
    st.floats(-9, 0).map(lambda e: 10**e),
    st.integers(1, 10**7),
    st.integers(1, 10**7),
    st.floats(-7, -3).map(lambda e: 10**e),
)
"""Orders of magnitude apart, as losses are."""
