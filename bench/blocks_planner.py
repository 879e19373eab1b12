"""Blocks of what the planner chooses, and of its exact plans against other rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from block_speed import p50, speedup
from block_tables import TITLES, markdown_table

from edgepack.units import ratio, seconds, size

Row = Mapping[str, Any]
UNITS = {"accuracy": "points of accuracy", "agreement": "points of agreement", "cosine": "hundredths of cosine"}
BY = {"output gradients": "by output gradients", "output energy": "by output energy"}


def render_planner(figures: Row) -> str:
    """Packs against dense int8, how each came about, the solver's time, and how well predicted losses order plans."""
    return "\n\n".join(
        [
            _packs(figures),
            _budgets(figures["models"]),
            _searches(figures),
            _solver(figures["solver"]),
            _order(figures["loss_order"]),
            _protocol(figures),
        ]
    )


def _packs(figures: Row) -> str:
    lines = []
    for row in figures["rows"]:
        pack, int8, fp32 = (row["files"][name] for name in ("edgepack", "dense-int8", "dense-fp32"))
        lines.append(
            (
                row["model"],
                TITLES[row["format"]],
                f"{row['factored']} of {row['layers']}",
                ", ".join(f"{count} {scheme}" for scheme, count in row["forms"].items()),
                size(pack["size_bytes"]),
                size(int8["size_bytes"]),
                smaller(pack["size_bytes"], int8["size_bytes"]),
                seconds(p50(pack)),
                seconds(p50(int8)),
                ratio(speedup(pack, int8)),
                ratio(speedup(pack, fp32)),
                _drop(row["validation_drop"]),
                _drop(row.get("int8_drop")),
                _drop(row["test_drop"]),
            )
        )
    headers = (
        *("model", "runtime", "factored", "layers by scheme", "pack", "dense int8", "size vs int8"),
        *("p50", "int8 p50", "vs int8", "vs fp32", "drop", "int8 drop", "drop on test"),
    )
    return markdown_table(headers, lines, right=(*headers[4:6], *headers[7:9], *headers[11:]))


def _drop(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 2) + 0.0:+.2f}"


def smaller(own: int, other: int) -> str:
    """`7.0× smaller`, or that there is no difference that two decimals show."""
    times = other / own
    if f"{times:.2f}" == "1.00":
        return "the same"
    return f"{times:.2f}× smaller" if times > 1 else f"{1 / times:.2f}× larger"


def _budgets(models: Sequence[Row]) -> str:
    said = [
        f"{model['name']} {model['max_drop']:.2f} {UNITS[model['metric']]} on"
        f" {model['validation_samples']} validation samples"
        for model in models
    ]
    lost = [f"{model['name']}: {warning}" for model in models for warning in model["lost_formats"]]
    allowed = f"Allowed drops: {', '.join(said)}; the test samples were never looked at before."
    rival = "A dense int8 file that drops more than that is no rival: a pack may be larger or slower than it."
    return " ".join([allowed, rival, *lost])


def _searches(figures: Row) -> str:
    models = {model["name"]: model for model in figures["models"]}
    lines = []
    for row in figures["rows"]:
        model, why = models[row["model"]], row["dense_reason"]
        lines.append(
            (
                row["model"],
                TITLES[row["format"]],
                f"{model['build_s']:.0f} s",
                str(row["trials"]),
                row["cost_source"],
                BY[model["loss_weighted_by"]],
                "–" if why is None else f"{why['reason']} ({why['layers']} of {row['layers'] - row['factored']})",
            )
        )
    headers = ("model", "runtime", "build", "plans tried", "costs", "losses weighed", "commonest reason to stay dense")
    table = markdown_table(headers, lines, right=("build", "plans tried"))
    return f"How they came about (a build makes both formats and begins with an empty cache):\n\n{table}"


def _solver(solver: Row) -> str:
    said = [f"{row['instance']} {row['seconds']:.1f} s" for row in solver["rows"]]
    return (
        f"An exact plan of {solver['layers']} layers with {solver['candidates']} candidates each, median of"
        f" {solver['instances']}: {', '.join(said)}."
    )


def _order(order: Row) -> str:
    lines = [
        (
            row["model"],
            f"{row['change']}, {row['least_change']:.2g} … {row['largest_change']:.2g}",
            f"{row['factored']:g} of {row['layers']}",
            f"{row['curvature']:.3f}",
            f"{row['energy']:.3f}",
        )
        for row in order["rows"]
    ]
    headers = ("model", "real change", "factored on average", "by output gradients", "by output energy")
    table = markdown_table(headers, lines, right=headers[2:])
    said = f"Spearman's correlation of the predicted loss with the real change over {order['plans']} random fp32 plans"
    return f"{said}, whose losses are weighed by one or the other:\n\n{table}"


def _protocol(figures: Row) -> str:
    return (
        f"Batch 1, one thread, {figures['schedule']['processes']} fresh processes per file, all files of a model in"
        " turns. p50 is the median of the processes' medians; a ratio of latencies stands only where a Mann–Whitney"
        " test over the processes sees a difference."
    )


def render_allocation(figures: Row) -> str:
    """Losses of all rules relative to the exact plan, then the worst and the mean of each."""
    rules = [rule for rule in figures["rules"] if rule != "exact"]
    lines = [
        (
            *(row["model"], TITLES[row["format"]], f"{row['layers']} × {row['candidates'] / row['layers']:.0f}"),
            *(f"{row['share']:.0%}", seconds(row["latency_s"])),
            *("0" if row["loss"][rule] == 0 else _times(relative(row["loss"], rule)) for rule in ("exact", *rules)),
        )
        for row in figures["rows"]
    ]
    headers = ("model", "runtime", "layers × candidates", "bound", "seconds", "exact", *rules)
    table = markdown_table(headers, lines, right=headers[2:])
    return "\n\n".join([table, _summary(figures["rows"], rules), _terms(figures)])


def relative(losses: Mapping[str, float | None], rule: str) -> float | None:
    """A rule's loss over the exact plan's; None without a plan, infinity where the exact one loses nothing."""
    own, exact = losses[rule], losses["exact"]
    if own is None or exact is None:
        return None
    if own == exact:
        return 1.0
    return own / exact if exact > 0 else math.inf


def _times(value: float | None) -> str:
    if value is None:
        return "–"
    return "∞" if math.isinf(value) else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def _summary(rows: Sequence[Row], rules: Sequence[str]) -> str:
    said = []
    for rule in rules:
        found = [value for row in rows if (value := relative(row["loss"], rule)) is not None]
        finite = [value for value in found if math.isfinite(value)]
        if not finite:
            said.append(f"{rule}: no plan")
            continue
        mean = math.exp(sum(map(math.log, finite)) / len(finite))
        none = f", none in {len(rows) - len(found)} of {len(rows)}" if len(found) < len(rows) else ""
        said.append(f"{rule} {_times(max(found))} at worst, {_times(mean)} in the geometric mean{none}")
    return f"Loss over that of the exact plan: {'; '.join(said)}."


def _terms(figures: Row) -> str:
    sources = ", ".join(dict.fromkeys(row["cost_source"] for row in figures["rows"]))
    return (
        f"Target {figures['target']}, costs from the {sources}. A bound lies that share of the way from the fastest"
        " plan to the fastest dense int8 plan; a dash stands where a rule finds no plan within it, 0 where a plan in"
        " fp32 within it loses nothing. All rules choose from the same candidates, uniform and energy from those in"
        " int8: uniform takes one share of rank for all layers, energy one threshold of loss, greedy the step that"
        " saves most time per loss, lagrangian one price of time."
    )
