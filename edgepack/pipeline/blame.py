"""When no plan meets the budget: which layers are to blame, measured one at a time."""

from __future__ import annotations

from collections.abc import Mapping

from edgepack.backends.backend import Writer
from edgepack.backends.schemes import CONSTEXPR, FP32, SCHEMES
from edgepack.errors import BudgetError
from edgepack.model.scheme import FileScheme, Format, Scheme
from edgepack.pipeline.attempt import Attempt
from edgepack.pipeline.evaluator import Evaluator
from edgepack.plan.file_scheme import file_label
from edgepack.types import LayerPlan

MOST_LAYERS = 16
"""Layers that are measured, largest loss of energy first, then most weights."""
NAMED = 3


def unmet_budget(evaluator: Evaluator, native: Writer, attempts: Mapping[Format, Attempt]) -> BudgetError | None:
    """The error for a build that found nothing within the budget, None if it did."""
    limit = evaluator.options.drop_limit
    worst = max(attempts.values(), key=lambda attempt: attempt.lost)
    if limit is None or worst.within(limit):
        return None
    costs = _costs(evaluator, native, worst)
    names = ", ".join(f"{_what(plan)} (alone it drops {drop:.2f})" for plan, drop in costs[:NAMED])
    metric = worst.drop.metric if worst.drop else "the metric"
    scheme = file_label(worst.layers, worst.scheme)
    return BudgetError(
        f"no plan keeps the drop within {limit:g}: the best {worst.fmt} file ({scheme}) drops {worst.lost:.2f}"
        f" in {metric}; most to blame: {names}",
        hint="the best attempt is written; allow more with --max-drop, a higher --rank, or --precision fp32",
    )


def _costs(evaluator: Evaluator, native: Writer, attempt: Attempt) -> list[tuple[LayerPlan, float]]:
    """Drop of the dense fp32 model with only one layer changed, largest first."""
    plans = sorted(attempt.layers, key=lambda p: (-_loss(p), -p.dense_parameters))[:MOST_LAYERS]
    factors = evaluator.replacements.factors(attempt.layers, attempt.scheme)
    path = evaluator.workspace.folder / f"blame.{native.fmt}"
    costs = []
    for index, plan in enumerate(plans):
        evaluator.workspace.progress("find the layers to blame", index, len(plans))
        own = {plan.layer: factors[plan.layer]} if plan.layer in factors else {}
        scheme = _alike(plan.scheme_in(attempt.scheme), native.fmt)
        native.write(own, FileScheme.of(FP32[native.fmt]), path, {plan.layer: scheme})
        costs.append((plan, evaluator.prover.drop_of(path, native.fmt).value))
    return sorted(costs, key=lambda cost: -cost[1])


def _loss(plan: LayerPlan) -> float:
    return plan.lost_energy_share if plan.predicted is None else plan.predicted.loss


def _alike(scheme: Scheme, fmt: Format) -> Scheme:
    """A scheme of the same arithmetic in the format in which single layers are measured."""
    if scheme.backend == fmt:
        return scheme
    if scheme.is_constexpr:
        return CONSTEXPR[fmt]
    alike = [one for one in SCHEMES[fmt] if one.bits == scheme.bits and one.is_static == scheme.is_static]
    return alike[0]


def _what(plan: LayerPlan) -> str:
    if plan.alternative is not None:
        return f"{plan.layer} by {plan.alternative.method} at {plan.alternative.share:.3g} of its bytes"
    rank = "dense" if plan.rank is None else f"at rank {plan.rank}"
    return f"{plan.layer} {rank} in {plan.scheme}"
