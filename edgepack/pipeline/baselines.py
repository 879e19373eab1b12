"""The dense baselines, and the promise: a pack is never larger, slower or less accurate than the int8 one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.backends.backend import Writer
from edgepack.backends.registry import TOOLS
from edgepack.cost import model
from edgepack.devices.device import Job
from edgepack.devices.local import LocalDevice
from edgepack.errors import ModelError, StableDeviceError
from edgepack.metrics.drop import Drop
from edgepack.model.kinds import kind_of, sides
from edgepack.model.layer import Layer
from edgepack.model.scheme import FileScheme, Format, Scheme
from edgepack.model.structure import DENSE
from edgepack.model.types import LayerPlan
from edgepack.pipeline.evaluate import FileTrial
from edgepack.pipeline.evaluator import Evaluator
from edgepack.pipeline.latency_estimates import LatencyEstimates
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.speed import speed_against
from edgepack.plan.candidates import break_even_rank
from edgepack.units import seconds, size
from edgepack.workspace import Keyed, Step, Workspace, file_bytes, file_digest


@dataclass(frozen=True)
class Baseline:
    """The dense model in one format.

    Attributes:
        chosen_by: what the scheme of the int8 file was chosen by.
        fp32_drop, int8_drop: on the validation samples, None without data.
        fp32_stated, int8_stated: on the confirmation samples, None where there are none.
        limit: drop that the build allows, None for any.
        in_integers: whether the model as it was given, which `fp32` is, has weights in integers.
        is_source: whether the int8 file is that as well: its layers compute in integers.
    """

    fp32: Path
    int8: Path
    scheme: Scheme
    quantizer: str
    chosen_by: str
    fp32_drop: Drop | None
    int8_drop: Drop | None
    limit: float | None
    int8_stated: Drop | None = None
    fp32_stated: Drop | None = None
    in_integers: bool = False
    is_source: bool = False

    @property
    def fallback_bytes(self) -> int:
        """What a pack is never larger than: dense int8, and a file that was given in integers."""
        size = file_bytes(self.int8)
        return min(size, file_bytes(self.fp32)) if self.in_integers else size

    @property
    def is_rival(self) -> bool:
        """Whether the int8 file seems to meet the budget: one that does not is no rival, however fast."""
        drops = [drop for drop in (self.int8_drop, self.int8_stated) if drop is not None]
        return self.limit is None or all(drop.value <= self.limit for drop in drops)


def make_baseline(evaluator: Evaluator, files: Writer, estimates: LatencyEstimates) -> Baseline:
    """Dense fp32 and dense int8 files of one format.

    Raises:
        ModelError: no int8 baseline runs, or the last one cannot be written.
    """
    fmt, work, file_evaluator, limit = (
        files.fmt,
        evaluator.workspace.folder,
        evaluator.file_evaluator,
        evaluator.options.drop_limit,
    )
    evaluator.workspace.progress(f"baseline {fmt}")
    fp32 = work / f"baseline.fp32.{fmt}"
    files.write_dense(fp32)
    schemes, chosen_by = _order(evaluator, files, estimates)
    paths = {scheme: work / f"baseline.{scheme}.{fmt}" for scheme in schemes}
    quantizers: dict[Scheme, str] = {}
    drops: dict[Scheme, Drop | None] = {}
    failed: ModelError | None = None
    for scheme in schemes:
        try:
            quantizer = files.write_baseline(scheme, paths[scheme])
        except ModelError as err:
            failed = err
            evaluator.workspace.warn(f"there is no dense {scheme} baseline: {err.message}")
            continue
        try:
            drops[scheme] = file_evaluator.validation.drop_of(paths[scheme], fmt)
        except ModelError as err:
            failed = err
            evaluator.workspace.warn(f"the dense {scheme} baseline does not run: {err.message}")
            continue
        quantizers[scheme] = quantizer
        if not evaluator.measures_here and _within(drops[scheme], limit) and _is_smaller(paths[scheme], fp32):
            break
    if not quantizers:
        why, hint = ("", None) if failed is None else (f": {failed.message}", failed.hint)
        raise ModelError(f"no dense int8 {fmt} baseline runs{why}", hint=hint or "leave this format out with --formats")
    able = [scheme for scheme in quantizers if _is_smaller(paths[scheme], fp32)] or list(quantizers)
    good = [scheme for scheme in able if _within(drops[scheme], limit)]
    if not good:  # none is a rival: the one that loses least is shown
        good = [min(able, key=lambda scheme: _lost(drops[scheme]))]
    measures = evaluator.measures_here and len(good) > 1
    measured = evaluator.latencies({scheme.name: paths[scheme] for scheme in good}, fmt) if measures else {}
    scheme = model.fastest(good, {scheme: measured[scheme.name] for scheme in good} if measured else {})
    fp32_drop = file_evaluator.validation.drop_of(fp32, fmt)
    chosen_by = model.MEASURED if measured else chosen_by
    return Baseline(
        fp32,
        paths[scheme],
        scheme,
        quantizers[scheme],
        chosen_by,
        fp32_drop,
        drops[scheme],
        limit,
        _stated(evaluator, paths[scheme], fmt),
        _stated(evaluator, fp32, fmt),
        in_integers=not files.given_scheme.is_float,
        is_source=files.given_scheme.is_static,
    )


def _is_smaller(path: Path, other: Path) -> bool:
    """Of a dense file, whether a quantizer found anything to store in fewer bits: it may pass over all that stands in
    branches."""
    return file_bytes(path) < file_bytes(other)


def _stated(evaluator: Evaluator, path: Path, fmt: Format) -> Drop | None:
    confirmation = evaluator.confirmation
    return None if confirmation is None else confirmation.drop(confirmation.answers(path, fmt))


def _order(evaluator: Evaluator, files: Writer, estimates: LatencyEstimates) -> tuple[tuple[Scheme, ...], str]:
    """Int8 schemes of the dense model, fastest first by the best source before a file is measured, and its name."""
    if files.given_scheme.is_static:  # its own file, with the grids that it came with
        return (files.given_scheme,), model.STATED
    stated = model.preferred(files.fmt, calibrated=files.calibrated)
    costs = {scheme: estimates.dense_latency_s(scheme) for scheme in stated}
    known = {scheme: latency for scheme, latency in costs.items() if latency is not None}
    if len(known) < len(stated):
        return stated, model.STATED
    return model.ordered(known), estimates.source_name(files.fmt)


def _lost(drop: Drop | None) -> float:
    return 0.0 if drop is None else drop.bound


def _within(drop: Drop | None, limit: float | None) -> bool:
    return limit is None or drop is None or drop.bound <= limit


def is_automatic(options: BuildOptions) -> bool:
    """Whether edgepack chooses. What was asked for by the user stands as it is."""
    asked = options.pick or options.keep is not None or options.only is not None
    return options.rank == "auto" and options.precision in ("auto", "int8") and not asked


def fall_back_to_int8(
    evaluator: Evaluator, files: Writer, trial: FileTrial, baseline: Baseline, estimates: LatencyEstimates
) -> FileTrial:
    """The trial, or the dense int8 baseline in its place where it is larger, slower, or loses too much. What was asked
    for by the user stands, with a line that says what dense int8 has over it."""
    if not _is_rival(evaluator, trial, baseline) or not _fits(evaluator, baseline.int8, trial.fmt):
        return trial
    reason = _lossier(evaluator, trial, baseline) or _larger(trial, baseline)
    stands = not is_automatic(evaluator.options)
    if reason is None:
        reason = _slower(evaluator, files, trial, baseline, estimates)
        stands = stands or (evaluator.aim == "size" and _is_smaller(trial.path, baseline.int8))
    if reason is None:
        return trial
    if not stands:
        dense = _dense(evaluator, files, baseline.scheme, baseline.int8, reason)
        if dense.sound:
            return dense
        evaluator.workspace.warn(f"{trial.fmt}: {reason}; it is kept, for dense int8 is not proved: {dense.failure}")
        return trial
    evaluator.workspace.warn(f"{trial.fmt}: {reason}; it is kept, since its options ask for it")
    return trial


def no_worse_than_source(evaluator: Evaluator, files: Writer, trial: FileTrial, baseline: Baseline) -> FileTrial:
    """The trial, or the model as it was given where that is the smaller file, or where nothing else keeps the drop, and
    meets the user's own limits. What was asked for by the user stands; of a larger file a line says so."""
    planned, given = file_bytes(trial.path), file_bytes(baseline.fp32)
    limit, stated = evaluator.options.drop_limit, trial.stated
    over = limit is not None and stated is not None and stated.value > limit
    if planned <= given and not over:
        return trial
    reason = f"the planned file has {planned} bytes, the model as it was given {given}"
    if over and stated is not None:
        reason = f"the best plan drops {stated.value:.2f} in {stated.metric}, {limit:g} is allowed"
    automatic = is_automatic(evaluator.options) and evaluator.options.precision == "auto"
    if automatic and _fits(evaluator, baseline.fp32, trial.fmt):
        dense = _dense(evaluator, files, files.given_scheme, baseline.fp32, reason)
        if dense.sound and not (over and dense.stated is not None and dense.stated.value > (limit or 0.0)):
            evaluator.workspace.warn(f"{trial.fmt}: {reason}; the pack keeps the model as it was given")
            return dense
    if planned > given:
        evaluator.workspace.warn(f"{trial.fmt}: {reason}; it is kept, since its options ask for it")
    return trial


def warn_of_clash(
    evaluator: Evaluator, files: Writer, trial: FileTrial, baseline: Baseline, estimates: LatencyEstimates
) -> None:
    """Say where the halves of the promise exclude each other: of a model that was given in fewer bytes than dense int8
    has, no file was found that is no larger than that and no slower than dense int8."""
    given, rival, planned = (file_bytes(path) for path in (baseline.fp32, baseline.int8, trial.path))
    kept = is_automatic(evaluator.options) and baseline.is_rival and planned <= given
    if not (kept and given < rival):
        return
    speed = speed_against(evaluator, files, trial, baseline.int8, baseline.scheme, estimates)
    if speed is not None and not speed.keeps_pace(is_smaller=True):
        evaluator.workspace.warn(
            f"{trial.fmt}: no file was found that is no larger than the model as it was given ({size(given)}) and no "
            f"slower than dense int8 ({seconds(speed.other_s)}, {size(rival)}): size wins, the pack has "
            f"{size(planned)} and takes {seconds(speed.latency_s)} ({speed.by})"
        )


def _is_rival(evaluator: Evaluator, trial: FileTrial, baseline: Baseline) -> bool:
    """Whether the int8 file seems to keep the allowed drop, or the planned one does not either."""
    limit, stated = evaluator.options.drop_limit, trial.stated
    return baseline.is_rival or (limit is not None and stated is not None and stated.value > limit)


def _lossier(evaluator: Evaluator, trial: FileTrial, baseline: Baseline) -> str | None:
    """Why the planned file loses too much; None where it does not, or dense int8 loses even more."""
    dense = baseline.int8_drop if baseline.int8_stated is None else baseline.int8_stated
    if trial.within(evaluator.options.drop_limit) or _lost(dense) > trial.lost:
        return None
    return f"the best plan may drop {trial.lost:.2f}, dense int8 {_lost(dense):.2f}"


def _larger(trial: FileTrial, baseline: Baseline) -> str | None:
    planned, rival = file_bytes(trial.path), file_bytes(baseline.int8)
    return f"the planned file has {planned} bytes, dense int8 {rival}" if planned > rival else None


def _slower(
    evaluator: Evaluator, files: Writer, trial: FileTrial, baseline: Baseline, estimates: LatencyEstimates
) -> str | None:
    speed = speed_against(evaluator, files, trial, baseline.int8, baseline.scheme, estimates)
    if speed is None or speed.keeps_pace(is_smaller=_is_smaller(trial.path, baseline.int8)):
        return None
    return f"the plan takes {speed.ratio:.2f} times as long as dense int8 ({speed.by})"


def dense_instead(evaluator: Evaluator, files: Writer, baseline: Baseline, reason: str) -> FileTrial:
    """The dense int8 file where no plan could be written and proved; the dense fp32 file where that one fails as well.

    Raises:
        ModelError: neither can be proved.
    """
    failures = []
    for scheme, path in ((baseline.scheme, baseline.int8), (files.given_scheme, baseline.fp32)):
        trial = _dense(evaluator, files, scheme, path, reason)
        if trial.sound and (trial.within(evaluator.options.drop_limit) or path == baseline.fp32):
            return trial
        failures.append(f"dense {scheme}: {trial.failure or f'it drops {trial.lost:.2f}'}")
    raise ModelError(f"no {files.fmt} file could be proved: {'; '.join(failures)}")


def _fits(evaluator: Evaluator, path: Path, fmt: Format) -> bool:
    """Whether a dense file meets the user's own limits; whether it is fast enough is only known here."""
    options = evaluator.options
    if options.max_size_bytes is not None and file_bytes(path) > options.max_size_bytes:
        return False
    if options.max_latency_s is not None and not evaluator.measures_here:
        return False
    if options.max_latency_s is not None and evaluator.latencies({"model": path}, fmt)["model"] > options.max_latency_s:
        return False
    return (
        options.max_memory_bytes is None or peak_ram_bytes(path, fmt, evaluator.workspace) <= options.max_memory_bytes
    )


def _dense(evaluator: Evaluator, files: Writer, scheme: Scheme, path: Path, reason: str) -> FileTrial:
    """A baseline's own file as the pack's model, proved like any other."""
    layers = tuple(_dense_plan(layer, scheme, reason) for layer in evaluator.layers)
    return evaluator.confirmed(evaluator.file_evaluator.measure(files, layers, {}, FileScheme.of(scheme), path))


def _dense_plan(layer: Layer, scheme: Scheme, reason: str) -> LayerPlan:
    ops = kind_of(layer).ops(layer, DENSE, 1)
    break_even = break_even_rank(*sides(layer))
    return LayerPlan(layer.name, ops, DENSE, ops, break_even, 0.0, reason, scheme=scheme)


def peak_ram_bytes(path: Path, fmt: Format, workspace: Workspace) -> int:
    """Peak memory of a fresh process after three inferences, without that of one that only imports the runtime.

    Raises:
        DeviceError: the process failed, or the kernel does not say what it held.
    """
    return workspace.cached(PEAK, Keyed([file_digest(path), fmt], lambda: _File(path, fmt)))


@dataclass(frozen=True)
class _File:
    path: Path
    fmt: Format


def _measured(file: _File) -> int:
    device = LocalDevice()
    alone, loaded = (_peak(device.run(Job("memory", file.fmt, model))) for model in (None, device.push(file.path)))
    return max(loaded - alone, 0)


def _peak(report: Mapping[str, Any]) -> int:
    peak = report["ran" if not report["import_only"] else "imported"]["peak_bytes"]
    if peak is None:
        raise StableDeviceError(
            "this machine does not say how much memory a process held", hint="leave --max-memory out"
        )
    return int(peak)


PEAK: Step[_File, int] = Step("memory", 2, _measured, tools=TOOLS)
