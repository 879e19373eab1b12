"""The dense baselines, and the promise: a pack is never larger, nor measurably slower, than the dense int8 build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgepack.errors import ModelError
from edgepack.metrics import Drop
from edgepack.pipeline.attempt import Attempt
from edgepack.pipeline.files import ModelFiles
from edgepack.pipeline.search import Search
from edgepack.plan import candidates, cost
from edgepack.types import Format


@dataclass(frozen=True)
class Baseline:
    """The dense model in one format: fp32, and int8 in the form that is fastest on the target."""

    fp32: Path
    int8: Path
    form: str
    quantizer: str
    cost_source: str
    fp32_drop: Drop | None
    int8_drop: Drop | None


def make_baselines(search: Search) -> dict[Format, Baseline]:
    """Dense fp32 and dense int8 files of every format."""
    return {fmt: _baseline(search, fmt, files) for fmt, files in search.files.items()}


def _baseline(search: Search, fmt: Format, files: ModelFiles) -> Baseline:
    work, prover = search.work, search.prover
    search.progress(f"baseline {fmt}")
    fp32 = work / f"baseline.fp32.{fmt}"
    files.write_dense(fp32)
    forms, chosen_by = search.order(fmt, candidates.all_dense(search.layers, "dense"))
    paths = {form: work / f"baseline.{form}.{fmt}" for form in forms}
    here = search.measures_here
    quantizers: dict[str, str] = {}
    drops: dict[str, Drop | None] = {}
    for form in forms:
        quantizer = files.write_baseline(form, paths[form])
        try:
            drops[form] = prover.drop(prover.guard.answers(paths[form], fmt))
        except ModelError as err:
            search.warnings.append(f"the dense {form} baseline does not run: {err.message}")
            continue
        quantizers[form] = quantizer
        if not here and _within(drops[form], search.options.drop_limit):
            break
    if not quantizers:
        raise ModelError(f"no dense int8 {fmt} baseline runs", hint="leave this format out with --formats")
    # An int8 build that misses the budget is no rival, however fast, as long as another meets it.
    good = [form for form in quantizers if _within(drops[form], search.options.drop_limit)] or list(quantizers)
    measured = search.latencies({form: paths[form] for form in good}, fmt) if here and len(good) > 1 else {}
    form = cost.fastest(good, measured)
    return Baseline(
        fp32,
        paths[form],
        form,
        quantizers[form],
        cost.MEASURED if measured else chosen_by,
        prover.drop(prover.guard.answers(fp32, fmt)),
        drops[form],
    )


def keep_promise(search: Search, attempt: Attempt, baseline: Baseline) -> Attempt:
    """The attempt, or the dense int8 baseline in its place where the attempt is larger, or slower: as measured on this
    machine, or by the cost table of a target that is not at hand.

    A rank or precision that was asked for by the user stands as it is.
    """
    options = search.options
    if options.rank != "auto" or options.precision == "fp32" or not _within(baseline.int8_drop, options.drop_limit):
        return attempt
    sizes = attempt.path.stat().st_size, baseline.int8.stat().st_size
    if sizes[0] > sizes[1]:
        return _dense(search, attempt, baseline, f"the pair file has {sizes[0]} bytes, dense int8 {sizes[1]}")
    if search.measures_here:
        measured = search.latencies({"pack": attempt.path, "dense int8": baseline.int8}, attempt.fmt)
        ratio = measured["pack"] / measured["dense int8"]
        if ratio > 1 / cost.CLEARLY:
            return _dense(search, attempt, baseline, f"measured {ratio:.2f} times slower than dense int8 here")
    elif search.prices is not None:
        dense = candidates.all_dense(search.layers, "dense")
        pack = search.prices.plan(attempt.fmt, attempt.layers, attempt.form)
        rival = search.prices.plan(attempt.fmt, dense, baseline.form)
        if pack is not None and rival is not None and cost.clearly_dearer(pack, rival):
            ratio = pack.rank_by / rival.rank_by
            reason = f"{ratio:.2f} times the cost of dense int8 by the {search.prices.named(pack, rival)}"
            return _dense(search, attempt, baseline, reason)
    return attempt


def _within(drop: Drop | None, limit: float | None) -> bool:
    return limit is None or drop is None or drop.value <= limit


def _dense(search: Search, attempt: Attempt, baseline: Baseline, reason: str) -> Attempt:
    """The baseline's own file as the pack's model, proved like any other."""
    layers = tuple(candidates.dense(layer, reason) for layer in search.layers)
    return search.prover.measure(search.files[attempt.fmt], layers, {}, baseline.form, baseline.int8)
