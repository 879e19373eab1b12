"""The limits of a build on one file: what they leave for its layers, and which layers are to blame if none is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from edgepack.backends.backend import Writer
from edgepack.backends.registry import backend
from edgepack.backends.schemes import FP32
from edgepack.cost.sizes import dense_bytes, resident_bytes
from edgepack.errors import BudgetError
from edgepack.metrics.drop import Drop
from edgepack.model.kinds import kind_of
from edgepack.model.scheme import INT8_BITS, FileScheme, Format, Scheme
from edgepack.model.structure import DENSE
from edgepack.model.types import LayerPlan
from edgepack.pipeline.baselines import Baseline, is_automatic, peak_ram_bytes
from edgepack.pipeline.candidates import LayerCandidates
from edgepack.pipeline.evaluate import FileTrial
from edgepack.pipeline.evaluator import Evaluator
from edgepack.pipeline.latency_estimates import LatencyEstimates, scheme_held
from edgepack.pipeline.options import BuildOptions
from edgepack.plan.candidates import file_label
from edgepack.plan.explain import arrangement
from edgepack.plan.solve import Bounds, Infeasible, Quantity
from edgepack.units import seconds, size
from edgepack.workspace import file_bytes

OPTIONS: dict[Quantity, str] = {"size_bytes": "--max-size", "ram_bytes": "--max-memory", "latency_s": "--max-latency"}

MOST_LAYERS = 16
"""Layers that are measured, largest loss of energy first, then most weights."""
NAMED = 3
DIGITS = 9
"""Of a drop in points behind the comma that count."""


@dataclass(frozen=True)
class Rest:
    """What a file costs beside its linear layers: predicted sums need it on top."""

    size_bytes: int
    ram_bytes: int
    latency_s: float


def plain_scheme(options: BuildOptions, files: Writer) -> FileScheme:
    """The scheme of a file of which nothing is planned: int8, but fp32 where that was asked for."""
    return FileScheme.of(FP32[files.fmt]) if options.precision == "fp32" else files.trial_scheme


def measure_rest(
    evaluator: Evaluator, files: Writer, estimates: LatencyEstimates, all_candidates: Sequence[LayerCandidates] = ()
) -> Rest:
    """What is left of the dense file when its layers are taken off, and the tables that have candidates.

    RAM only where a limit asks for it. Latency is that of the whole file where the target is this machine, else that of
    a call of the runtime and of the convolutions that are no layers: what other operators take elsewhere is not known.
    """
    scheme = plain_scheme(evaluator.options, files)
    path = evaluator.workspace.folder / f"rest.{files.fmt}"
    files.write({}, scheme, path)
    plain = {layer.name: scheme_held(files, layer, scheme.layers) for layer in evaluator.layers}
    sizes = {
        layer.name: dense_bytes(plain[layer.name], layer, kind_of(layer).ops(layer, DENSE, 1))
        for layer in evaluator.layers
    }
    for table in (layer_candidates for layer_candidates in all_candidates if layer_candidates.layer.name not in plain):
        dense = next(one for one in table.candidates if one.structure.is_dense)
        plain[table.layer.name], sizes[table.layer.name] = dense.scheme, dense.size_bytes
    ram, latency_s = 0, estimates.call_s(files.fmt)
    if evaluator.options.max_memory_bytes is not None:
        held = sum(resident_bytes(plain[name], one) for name, one in sizes.items())
        ram = max(peak_ram_bytes(path, files.fmt, evaluator.workspace) - held, 0)
    if evaluator.measures_here:
        whole = evaluator.latencies({"dense": path}, files.fmt)["dense"]
        latency_s = max(whole - (estimates.dense_latency_s(scheme.layers, plain) or 0.0), 0.0)
    rest = max(file_bytes(path) - sum(sizes.values()), 0)
    if not evaluator.measures_here:
        files.write_dense(path)
        latency_s += estimates.convolutions_s(files.fmt, backend(files.fmt).convolutions(path))
    path.unlink()
    return Rest(rest, ram, latency_s)


def user_bounds(options: BuildOptions, rest: Rest) -> Bounds:
    """What the user's limits leave for the linear layers."""
    return Bounds(
        loss=None,
        size_bytes=None if options.max_size_bytes is None else max(options.max_size_bytes - rest.size_bytes, 0),
        ram_bytes=None if options.max_memory_bytes is None else max(options.max_memory_bytes - rest.ram_bytes, 0),
        latency_s=None if options.max_latency_s is None else max(options.max_latency_s - rest.latency_s, 0.0),
    )


def bounds_of_dense_int8(
    evaluator: Evaluator, all_candidates: Sequence[LayerCandidates], baseline: Baseline, bounds: Bounds, rest: Rest
) -> Bounds:
    """The bounds with the promise that the file is no larger and no slower than dense int8, and no larger than one that
    was given in integers; as they are where it does not apply.

    Dense int8 that misses the budget is no rival, yet a plan of its size that meets it is the better pack. A model
    whose layers compute in integers may hold them in fewer bytes than any plan does: dense 8 bits are within the bounds
    even so, for in their place it is kept as it was given.
    """
    if not is_automatic(evaluator.options):
        return bounds
    dense = [
        [
            c.size_bytes
            for c in layer_candidates.candidates
            if c.structure.is_dense and c.alternative is None and (c.scheme.bits == 8 or not baseline.is_source)
        ]
        for layer_candidates in all_candidates
    ]
    own = sum(min(sizes, default=0) for sizes in dense)
    int8_bounds = max(baseline.fallback_bytes - rest.size_bytes, own)
    fast = [_dense_int8_s(layer_candidates, baseline.scheme) for layer_candidates in all_candidates]
    known = [latency for latency in fast if latency is not None]
    latency_s = sum(known) if len(known) == len(fast) else None
    return replace(
        bounds, size_bytes=_least(int8_bounds, bounds.size_bytes), latency_s=_least(latency_s, bounds.latency_s)
    )


def _dense_int8_s(layer_candidates: LayerCandidates, scheme: Scheme) -> float | None:
    """Seconds of a dense layer in the scheme of the int8 file, or in the fastest of 8 bits where it has not that."""
    own = {
        c.scheme: c.latency_s
        for c in layer_candidates.candidates
        if c.structure.is_dense and c.alternative is None and c.scheme.bits == INT8_BITS
    }
    return own.get(scheme, min(own.values(), default=None))


def _least(one: float | None, other: float | None) -> float | None:
    return min((bound for bound in (one, other) if bound is not None), default=None)


def infeasible(fmt: Format, found: Infeasible, options: BuildOptions, rest: Rest) -> BudgetError:
    """The error that names the limit that no plan can meet, and what the best plan for it comes to."""
    said = []
    for quantity in found.alone or found.least:
        least = found.least[quantity]
        reached = "" if least is None else f" (the least within the other limits is {_shown(quantity, least, rest)})"
        said.append(f"{OPTIONS[quantity]} {_limit(quantity, options)}{reached}")
    return BudgetError(
        f"no {fmt} plan fits {' and '.join(said)}",
        hint="allow more with the named option, or leave it out",
    )


def excess(evaluator: Evaluator, trial: FileTrial) -> dict[Quantity, float]:
    """By how much the emitted file itself is over each limit; empty if it meets all."""
    options = evaluator.options
    found: dict[Quantity, float] = {}
    if options.max_size_bytes is not None:
        found["size_bytes"] = file_bytes(trial.path) - options.max_size_bytes
    if options.max_memory_bytes is not None:
        found["ram_bytes"] = peak_ram_bytes(trial.path, trial.fmt, evaluator.workspace) - options.max_memory_bytes
    if options.max_latency_s is not None and evaluator.measures_here:
        found["latency_s"] = evaluator.latencies({"model": trial.path}, trial.fmt)["model"] - options.max_latency_s
    return {quantity: over for quantity, over in found.items() if over > 0}


def over_limit(trial: FileTrial, over: Mapping[Quantity, float], options: BuildOptions) -> BudgetError:
    """The error for a file that is over its limits."""
    said = [
        f"{_value(name, by + _allowed(name, options))}, {OPTIONS[name]} allows {_limit(name, options)}"
        for name, by in over.items()
    ]
    heavy = sorted(trial.layers, key=lambda p: -p.weight_parameters)[:3]
    names = ", ".join(f"{p.layer} ({p.weight_parameters} weights)" for p in heavy)
    return BudgetError(
        f"the {trial.fmt} file needs {' and '.join(said)}; the largest layers are {names}",
        hint="allow a larger drop with --max-drop, or raise the limit",
    )


def _allowed(quantity: Quantity, options: BuildOptions) -> float:
    limits = {
        "size_bytes": options.max_size_bytes,
        "ram_bytes": options.max_memory_bytes,
        "latency_s": options.max_latency_s,
    }
    return limits[quantity] or 0


def _limit(quantity: Quantity, options: BuildOptions) -> str:
    return _value(quantity, _allowed(quantity, options))


def _shown(quantity: Quantity, least: float, rest: Rest) -> str:
    """The least sum over the layers with what stands beside them."""
    beside = {"size_bytes": rest.size_bytes, "ram_bytes": rest.ram_bytes, "latency_s": rest.latency_s}
    return _value(quantity, least + beside[quantity])


def _value(quantity: Quantity, value: float) -> str:
    return seconds(value) if quantity == "latency_s" else size(int(value))


def unmet_budget(
    evaluator: Evaluator, files: Mapping[Format, Writer], trials: Mapping[Format, FileTrial]
) -> BudgetError | None:
    """The error for a build that found nothing within the budget, None if it did.

    Args:
        files: writers of the formats of the trials, with which single layers are looked at.
        trials: the best file of each format.
    """
    limit = evaluator.options.drop_limit
    worst = max(trials.values(), key=lambda trial: trial.lost)
    if limit is None or worst.within(limit) or worst.stated is None:
        return None
    if worst.stated.value <= limit:
        evaluator.workspace.warn(undecided(worst, worst.stated, limit))
        return None
    costs = [(plan, drop) for plan, drop in _costs(evaluator, files[worst.fmt], worst) if drop > 0]
    names = ", ".join(f"{_what(plan)} (alone it drops {drop:.2f})" for plan, drop in costs[:NAMED])
    blamed = f"; most to blame: {names}" if names else ", which no layer does alone"
    metric = worst.stated.metric
    scheme = file_label(worst.layers, worst.scheme)
    return BudgetError(
        f"no plan keeps the drop within {limit:g}: the best {worst.fmt} file ({scheme}) drops {worst.stated.value:.2f}"
        f" in {metric}{blamed}",
        hint="allow more with --max-drop, a higher --rank, or --precision fp32",
    )


def over_on_test(scores: Mapping[str, float], limit: float | None) -> BudgetError | None:
    """The error for a build whose files drop more than was allowed on the untouched test.

    Args:
        scores: by name in the pack, higher is better.
        limit: largest drop, None for any.
    """
    if limit is None:
        return None
    for name, score in scores.items():
        dense = scores.get(f"baseline/fp32.{name.rpartition('.')[2]}")
        # Five of 5,000 samples are 0.1 points, also where floats make them a little more.
        drop = None if dense is None else round(dense - score, DIGITS)
        if name.startswith("model.") and drop is not None and drop > limit:
            return BudgetError(
                f"{name} drops {drop:.2f} on the test, {limit:g} was allowed",
                hint="the pack is written; give more --data like the test, or allow more with --max-drop",
            )
    return None


def undecided(trial: FileTrial, drop: Drop, limit: float) -> str:
    """What to say of a file whose drop seems to be within the limit on too few samples to be sure, and how many would
    do: a margin shrinks with their square root."""
    room = limit - drop.value
    enough = "" if room <= 0 else f"; about {_round_up(drop.samples * (drop.margin / room) ** 2)} like them would"
    return (
        f"{drop.samples} samples cannot tell a drop of {limit:g} from one of {drop.bound:.2f} in {drop.metric} "
        f"({drop.confidence:.0%}): the {trial.fmt} file seems to drop {drop.value:.2f}{enough} "
        f"(--data is split in three)"
    )


def _round_up(count: float) -> int:
    """To two digits."""
    digits: int = 10 ** max(len(str(int(count))) - 2, 0)
    return ceil(count / digits) * digits


def _costs(evaluator: Evaluator, files: Writer, trial: FileTrial) -> list[tuple[LayerPlan, float]]:
    """Drop of the dense fp32 model with only one layer changed, largest first."""
    plans = sorted(trial.layers, key=lambda p: (-_loss(p), -p.dense_parameters))[:MOST_LAYERS]
    factors = evaluator.replacements.factors(trial.layers, trial.scheme, trial.distillation)
    path = evaluator.workspace.folder / f"blame.{files.fmt}"
    costs = []
    for index, plan in enumerate(plans):
        evaluator.workspace.progress("find the layers to blame", index, len(plans))
        own = files.takes({plan.layer: factors[plan.layer]} if plan.layer in factors else {})
        scheme = _of_one_layer(plan.scheme_in(trial.scheme), files)
        files.write(own, FileScheme.of(FP32[files.fmt]), path, {plan.layer: scheme})
        costs.append((plan, evaluator.file_evaluator.drop_of(path, files.fmt).value))
    return sorted(costs, key=lambda cost: -cost[1])


def _loss(plan: LayerPlan) -> float:
    return plan.lost_energy_share if plan.predicted is None else plan.predicted.loss


def _of_one_layer(scheme: Scheme, files: Writer) -> Scheme:
    """The scheme, or in the place of one that only whole files have, one of as many bits."""
    if scheme not in files.file_schemes:
        return scheme
    return next(one for one in files.layer_schemes() if one.bits == scheme.bits)


def _what(plan: LayerPlan) -> str:
    if plan.alternative is not None:
        return f"{plan.layer} by {plan.alternative.method} at {plan.alternative.share:.3g} of its bytes"
    how = "dense" if plan.structure.shown is None else f"at {arrangement(plan.structure)}"
    return f"{plan.layer} {how} in {plan.scheme}"
