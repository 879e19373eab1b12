"""Plans and candidates of linear layers, by what tests think in: sides and ranks."""

from __future__ import annotations

from typing import Any

from edgepack.model.kinds.matrix import linear_ops
from edgepack.model.point import Point, linear_point_in
from edgepack.model.scheme import Scheme
from edgepack.model.structure import DENSE, Structure, low_rank
from edgepack.model.types import Candidate, LayerPlan


def structure_at(rank: int | None) -> Structure:
    """Dense without a rank, else low-rank factors in the layer's place."""
    return DENSE if rank is None else low_rank(rank)


def linear_plan(
    name: str,
    out_features: int,
    in_features: int,
    way: int | Structure | None,
    break_even_rank: int = 0,
    lost_energy_share: float = 0.0,
    reason: str = "",
    **rest: Any,
) -> LayerPlan:
    """What becomes of a linear layer of these sides; `way` is a rank, None for dense, or any structure."""
    structure = way if isinstance(way, Structure) else structure_at(way)
    dense = linear_ops(out_features, in_features, DENSE, 1)
    ops = linear_ops(out_features, in_features, structure, 1)
    return LayerPlan(name, dense, structure, ops, break_even_rank, lost_energy_share, reason, **rest)


def linear_candidate(
    scheme: Scheme, way: int | Structure | None, loss: float, size: int, ram: int, latency_s: float, source: str = ""
) -> Candidate:
    """A way to write some linear layer; nobody looks at its products."""
    structure = way if isinstance(way, Structure) else structure_at(way)
    return Candidate(scheme, structure, linear_ops(64, 64, structure, 1), loss, size, ram, latency_s, source)


def point_like(point: Point, **changes: Any) -> Point:
    """The same linear layer but for `scheme`, `out_features`, `in_features`, `batch`, and `way` as in `linear_plan`."""
    way = changes.get("way", point.structure)
    structure = way if isinstance(way, Structure) else structure_at(way)
    rows, columns = (changes.get(side, getattr(point, side)) for side in ("out_features", "in_features"))
    return linear_point_in(
        changes.get("scheme", point.scheme), structure, (rows, columns), changes.get("batch", point.batch)
    )
