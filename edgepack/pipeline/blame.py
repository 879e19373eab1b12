"""When no plan meets the budget: which layers are to blame, measured one at a time."""

from __future__ import annotations

from edgepack.errors import BudgetError
from edgepack.pipeline.attempt import Attempt
from edgepack.pipeline.onnx_files import OnnxFiles
from edgepack.pipeline.search import Found, Search
from edgepack.types import LayerPlan

MOST_LAYERS = 16
"""Layers that are measured, largest loss of energy first, then most weights."""
NAMED = 3


def unmet_budget(search: Search, onnx: OnnxFiles, found: Found) -> BudgetError | None:
    """The error for a search that found nothing within the budget, None if it did."""
    limit = search.options.drop_limit
    worst = max(found.attempts.values(), key=lambda attempt: attempt.lost)
    if limit is None or worst.within(limit):
        return None
    costs = _costs(search, onnx, worst)
    names = ", ".join(f"{_what(plan)} (alone it drops {drop:.2f})" for plan, drop in costs[:NAMED])
    metric = worst.drop.metric if worst.drop else "the metric"
    return BudgetError(
        f"no plan keeps the drop within {limit:g}: the best {worst.fmt} file ({worst.form}) drops {worst.lost:.2f}"
        f" in {metric}; most to blame: {names}",
        hint="the best attempt is written; allow more with --max-drop, a higher --rank, or --precision fp32",
    )


def _costs(search: Search, onnx: OnnxFiles, attempt: Attempt) -> list[tuple[LayerPlan, float]]:
    """Drop of the dense fp32 model with only one layer changed, largest first."""
    plans = sorted(attempt.layers, key=lambda p: (-p.lost_energy_share, -p.out_features * p.in_features))
    factors = search.factors(attempt.layers)
    path = search.work / "blame.onnx"
    costs = []
    for index, plan in enumerate(plans[:MOST_LAYERS]):
        search.progress("find the layers to blame", index, min(len(plans), MOST_LAYERS))
        if plan.rank is None:
            onnx.write_one_layer(plan.layer, path)
        else:
            onnx.write({plan.layer: factors[plan.layer]}, "fp32", path)
        costs.append((plan, search.prover.drop_of(path, "onnx").value))
    return sorted(costs, key=lambda cost: -cost[1])


def _what(plan: LayerPlan) -> str:
    return f"{plan.layer} in int8" if plan.rank is None else f"{plan.layer} at rank {plan.rank}"
