"""`edgepack build`: model in, pack out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.backends.registry import backend
from edgepack.data import example, turned
from edgepack.errors import BudgetError, ModelError, PackError, UsageError
from edgepack.model.scheme import Format
from edgepack.model.types import Array, TensorSpec
from edgepack.pack.card import write_card
from edgepack.pack.folder import EXAMPLE, writing, writing_file
from edgepack.pack.manifest import ArchiveEntry, File, Manifest, PackedFile, read_manifest, write_manifest
from edgepack.pipeline.baselines import (
    Baseline,
    dense_instead,
    fall_back_to_int8,
    make_baseline,
    no_worse_than_source,
    warn_of_clash,
)
from edgepack.pipeline.error_breakdown import layer_splits
from edgepack.pipeline.evaluate import FileTrial, final_scores, known_by_heart
from edgepack.pipeline.explore import picked
from edgepack.pipeline.limits import over_on_test, unmet_budget
from edgepack.pipeline.manifest import Results, baseline_files, chosen_by, corner_entries, make_manifest, pack_file
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.prepare import Prepared, leaving_out, prepared_each, warn_of_refused
from edgepack.pipeline.search import Found, Planned, plan
from edgepack.sources import model_name
from edgepack.targets.target import Target
from edgepack.workspace import Cache, Progress, file_bytes, silent

if TYPE_CHECKING:
    from edgepack.archive.images import JpegImage


@dataclass(frozen=True)
class BuildResult:
    """Where the pack is, or the model file alone, and what its manifest says.

    Attributes:
        failure: why the budget is not met; None where it is.
    """

    out: Path
    manifest: Manifest
    failure: BudgetError | None = None


@dataclass(frozen=True)
class Chosen:
    """The files that go into the pack, by format.

    Attributes:
        images: JPEG files that weights come from, for the archives.
    """

    planned: Mapping[Format, Planned]
    trials: Mapping[Format, FileTrial]
    baselines: Mapping[Format, Baseline]
    images: Mapping[Format, Sequence[JpegImage]] = field(default_factory=dict)

    def paths(self, *, baseline: bool) -> dict[str, tuple[Path, Format]]:
        """Name in the pack → (file, format)."""
        files: dict[str, tuple[Path, Format]] = {f"model.{fmt}": (a.path, fmt) for fmt, a in self.trials.items()}
        if baseline:
            for fmt, dense in self.baselines.items():
                files |= {f"baseline/fp32.{fmt}": (dense.fp32, fmt), f"baseline/int8.{fmt}": (dense.int8, fmt)}
        return files


def build(options: BuildOptions, *, cache: Cache | None = None, progress: Progress = silent) -> BuildResult:
    """As `best_attempt`.

    Raises:
        UsageError, InputError, DeviceError: nothing is written.
        BudgetError: no plan meets the budget; the best attempt is written.
    """
    result = best_attempt(options, cache=cache, progress=progress)
    if result.failure is not None:
        raise result.failure
    return result


def best_attempt(options: BuildOptions, *, cache: Cache | None = None, progress: Progress = silent) -> BuildResult:
    """Build a pack, or a model file alone. What is expensive is kept in the cache, so an interrupted build goes on
    where it was.

    Raises:
        UsageError, InputError: bad arguments, model or data, or another model's pack or file lies in the way; nothing
            is written.
        DeviceError: a measurement failed; nothing is written.
    """
    return best_attempts([options], cache=cache, progress=progress)[0]


def best_attempts(
    targets: Sequence[BuildOptions], *, cache: Cache | None = None, progress: Progress = silent
) -> list[BuildResult]:
    """Build a pack for each of several targets. Those with the same arithmetic share all that comes before the plans:
    opening the model, calibration, decompositions and predicted losses.

    Args:
        targets: at least one; options that differ in `target` and `out` alone.
        cache: of results.
        progress: told of what is going on.

    Returns:
        In the order of the targets.

    Raises:
        UsageError, InputError, DeviceError: see `best_attempt`; no pack is written then.
    """
    cache = cache or Cache(fresh=targets[0].fresh)
    outs = [out_folder(options) for options in targets]
    groups: dict[object, list[int]] = {}
    for index, options in enumerate(targets):
        groups.setdefault(options.analysis_key, []).append(index)
        if options.out is None:
            check_own(outs[index], options.model)
    filled: dict[int, tuple[Manifest, BudgetError | None]] = {}
    with ExitStack() as stack:
        writing_each = [_writing(out, options, cache) for out, options in zip(outs, targets, strict=True)]
        folders = [stack.enter_context(one) for one in writing_each]
        for indices in groups.values():
            with prepared_each([targets[index] for index in indices], cache, progress) as each:
                filled |= {index: _fill(folders[index], ready) for index, ready in zip(indices, each, strict=True)}
    return [_result(out, *filled[index]) for index, out in enumerate(outs)]


def for_targets(options: BuildOptions, targets: Sequence[Target]) -> list[BuildOptions]:
    """The options of one build for each of several targets, each with a folder of its own.

    Args:
        options: `out`, where it is given, is the folder that the packs go into.
        targets: at least one.

    Raises:
        UsageError: `out` is a model file, or a target has no runtime for a format.
    """
    if options.file_format is not None:
        raise UsageError(
            f"--out {options.out} is one file, and {len(targets)} targets are asked for",
            hint="give the folder that the packs are to go into",
        )
    each = [replace(options, target=target, out=None) for target in targets]
    return each if options.out is None else [replace(one, out=options.out / out_folder(one).name) for one in each]


def failure_of_some(results: Sequence[BuildResult]) -> BudgetError | None:
    """One error that tells of every target whose budget is not met; None where all are."""
    failed = [one for one in results if one.failure is not None]
    if not failed:
        return None
    lines = [f"{one.manifest.target.name}: {one.failure.message}" for one in failed if one.failure is not None]
    hints = dict.fromkeys(one.failure.hint for one in failed if one.failure is not None and one.failure.hint)
    return BudgetError(
        f"the budget is not met on {len(failed)} of {len(results)} targets: {'; '.join(lines)}",
        hint="; ".join(str(hint) for hint in hints) or None,
    )


def _result(out: Path, record: Manifest, failure: BudgetError | None) -> BuildResult:
    if failure is not None:
        written = f"the best attempt is written to {out}"
        failure = BudgetError(failure.message, hint=written if failure.hint is None else f"{written}; {failure.hint}")
    return BuildResult(out, record, failure)


def _writing(out: Path, options: BuildOptions, cache: Cache) -> AbstractContextManager[Path]:
    fmt = options.file_format
    return writing(out) if fmt is None else writing_file(out, fmt, options.model, cache)


def out_folder(options: BuildOptions) -> Path:
    """Where it goes: what was asked for, else `dist/<model>.<target>`."""
    return options.out or Path("dist") / f"{model_name(options.model)}.{options.target.name}"


def check_own(out: Path, model: str) -> None:
    """Refuse a folder that holds the pack of another model; one that cannot be read is anybody's.

    Args:
        out: where a pack goes if nobody says where.
        model: as on the command line.

    Raises:
        UsageError: it would be replaced.
    """
    with suppress(PackError):
        there = read_manifest(out).model.source
        if there != Path(model).name:
            raise UsageError(
                f"{out} is the pack of {there}, which this one of {Path(model).name} would replace",
                hint=f"give another folder with --out, or --out {out} to replace it",
            )


def _fill(folder: Path, ready: Prepared) -> tuple[Manifest, BudgetError | None]:
    """Write a whole pack into the folder; returns its manifest and the budget error to raise, if any."""
    evaluator, workspace = ready.evaluator, ready.evaluator.workspace
    chosen = _choose(ready)
    failures = [planned.failure for planned in chosen.planned.values() if planned.failure is not None]
    failure = next(iter(failures), None) or unmet_budget(evaluator, ready.files, chosen.trials)
    evaluator.workspace.progress("final test")
    scores = final_scores(chosen.paths(baseline=True), ready.opened, ready.test, ready.validation)
    failure = failure or over_on_test(scores, evaluator.options.drop_limit)
    if ready.test is not None and scores:
        dense = next(score for name, score in scores.items() if name.startswith("baseline/fp32"))
        if (line := known_by_heart(ready.validation, dense)) is not None:
            workspace.warn(line)
    last = _channels_last(chosen, ready)
    _place(folder, chosen, ready)
    entries = _entries(ready, chosen, scores, _archived(folder, chosen, ready))
    results = Results(
        files={name: replace(entry, channels_last=last.get(name) or None) for name, entry in entries.items()},
        latency_s={
            f"{fmt}/{name}": value for fmt, one in chosen.planned.items() for name, value in one.found.latency_s.items()
        },
        budget_met=failure is None,
        warnings=tuple(workspace.warnings),
    )
    record = make_manifest(
        ready, [plan_trial for one in chosen.planned.values() for plan_trial in one.found.plan_trials], results
    )
    write_manifest(folder, record)
    write_card(folder, record)
    return record, failure


def _channels_last(chosen: Chosen, ready: Prepared) -> dict[str, tuple[str, ...]]:
    """Names of the inputs that take images with their channels last from here on, by file in the pack.

    Raises:
        ModelError: a file answers in another way then.
    """
    options = ready.evaluator.options
    if not options.channels_last:
        return {}
    feed = example(ready.data.validation, ready.opened.inputs, options.seed)
    found: dict[Path, tuple[str, ...]] = {}
    paths = {name: path for name, (path, fmt) in chosen.paths(baseline=True).items() if fmt == "tflite"}
    for path in dict.fromkeys(paths.values()):
        before = backend("tflite").load(path).run(feed)
        found[path] = backend("tflite").take_channels_last(path)
        after = backend("tflite").load(path).run(feed)
        if not all(np.array_equal(*pair, equal_nan=True) for pair in zip(before, after, strict=True)):
            raise ModelError(
                f"{path.name} answers in another way with its channels last", hint="leave --channels-last out"
            )
    if not any(found.values()):
        ready.evaluator.workspace.warn(
            "--channels-last changes nothing: no TFLite file transposes an image at its start"
        )
    return {name: found[path] for name, path in paths.items()}


def _archived(folder: Path, chosen: Chosen, ready: Prepared) -> Mapping[str, tuple[int, ArchiveEntry]]:
    """Writes an archive of each model file, where that was asked for. Their bytes and entries by its name."""
    if not ready.evaluator.options.archive:
        return {}
    from edgepack.archive.archive import add_archives

    ready.evaluator.workspace.progress("archive")
    return add_archives(folder, [(f"model.{fmt}", fmt) for fmt in chosen.trials], chosen.images)


def _choose(ready: Prepared) -> Chosen:
    """Plans every format in turn; each gets its share of the time, and begins where the one before it ended.

    A format that cannot be written is left out, as long as there is another one.
    """
    options = ready.evaluator.options
    picks = picked(ready) if options.pick else None
    wanted = [fmt for fmt in ready.files if picks is None or fmt in picks]
    left_out: dict[Format, ModelError] = {}
    baselines: dict[Format, Baseline] = {}
    for fmt in wanted:
        with leaving_out(fmt, left_out):
            baselines[fmt] = make_baseline(ready.evaluator, ready.files[fmt], ready.estimates)
    planned: dict[Format, Planned] = {}
    trials: dict[Format, FileTrial] = {}
    start: float | None = None
    began = time.monotonic()
    for number, (fmt, baseline) in enumerate(baselines.items(), start=1):
        files = ready.files[fmt]
        deadline_s = began + options.time_limit_s * number / len(baselines)
        with leaving_out(fmt, left_out):
            if picks is not None:
                found = Planned(picks[fmt], None)
            elif (why := ready.opened.fixed) is not None:
                found = Planned(Found(dense_instead(ready.evaluator, files, baseline, why), {}, ()), None)
            else:
                found = plan(
                    ready.evaluator,
                    files,
                    ready.all_candidates[fmt],
                    ready.estimates,
                    baseline,
                    deadline_s=deadline_s,
                    start=start,
                )
                start = found.loss
            trial = fall_back_to_int8(ready.evaluator, files, found.found.trial, baseline, ready.estimates)
            trials[fmt] = no_worse_than_source(ready.evaluator, files, trial, baseline)
            warn_of_clash(ready.evaluator, files, trials[fmt], baseline, ready.estimates)
            planned[fmt] = found
    warn_of_refused(left_out, trials, ready.evaluator.workspace)
    images = _images(ready, trials) if options.archive else {}
    return Chosen(planned, trials, {fmt: baselines[fmt] for fmt in trials}, images)


def _images(ready: Prepared, trials: Mapping[Format, FileTrial]) -> dict[Format, Sequence[JpegImage]]:
    from edgepack.pipeline.jpeg_images import jpeg_images

    return {fmt: jpeg_images(ready.evaluator, one) for fmt, one in trials.items()}


def _entries(
    ready: Prepared,
    chosen: Chosen,
    scores: Mapping[str, float],
    archived: Mapping[str, tuple[int, ArchiveEntry]],
) -> dict[str, File]:
    entries: dict[str, File] = {}
    for fmt, trial in chosen.trials.items():
        name = f"model.{fmt}"
        source, planned = ready.files[fmt].dense_contents, chosen.planned[fmt]
        by = chosen_by(ready.estimates.source_name(fmt), measured=bool(planned.found.latency_s))
        splits = layer_splits(ready.evaluator, ready.files[fmt], trial)
        entry = pack_file(trial, source, by, scores.get(name), splits)
        if trial is planned.found.trial:
            entry = replace(entry, corners=corner_entries(planned.corners, entry.size_bytes))
        entries[name] = _with_archive(entry, archived.get(name))
    if ready.evaluator.options.baseline:
        paths = chosen.paths(baseline=True)
        for fmt, dense in chosen.baselines.items():
            for name, dense_entry in baseline_files(fmt, dense, scores).items():
                if _is_in_parts(paths[name][0]):
                    ready.evaluator.workspace.warn(f"{name} is left out: it would be over 2 GiB")
                else:
                    entries[name] = dense_entry
    return entries


def _with_archive(entry: PackedFile, wire: tuple[int, ArchiveEntry] | None) -> PackedFile:
    return entry if wire is None else replace(entry, archive_bytes=wire[0], archive=wire[1])


def _place(folder: Path, chosen: Chosen, ready: Prepared) -> None:
    options = ready.evaluator.options
    for name, (path, _) in chosen.paths(baseline=options.baseline).items():
        if _is_in_parts(path) and name.startswith("model."):
            raise ModelError(f"{name} would be over 2 GiB, which a pack does not hold yet")
        if not _is_in_parts(path):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)
    place_examples(folder, example(ready.data.validation, ready.opened.inputs, options.seed), tuple(chosen.trials))


def _is_in_parts(path: Path) -> bool:
    """Whether a file has its weights beside it, as they are over 2 GiB."""
    return file_bytes(path) > path.stat().st_size


def place_examples(folder: Path, inputs: Mapping[str, Array], formats: Sequence[Format]) -> None:
    """Write one run's inputs into a pack, once more for a format whose model takes them in other types or with channels
    last: converters narrow whole numbers of 64 bits."""
    _save(folder / EXAMPLE, inputs)
    if not any(array.dtype == np.int64 or array.ndim == 4 for array in inputs.values()):
        return
    for fmt in formats:
        specs = {spec.name: spec for spec in backend(fmt).load(folder / f"model.{fmt}").inputs}
        own = {name: _as_taken(array, specs.get(name)) for name, array in inputs.items()}
        if any(own[name].dtype != array.dtype or own[name].shape != array.shape for name, array in inputs.items()):
            _save(folder / f"{Path(EXAMPLE).stem}.{fmt}.npz", own)


def _as_taken(array: Array, spec: TensorSpec | None) -> Array:
    return array if spec is None else turned(array, spec.shape).astype(spec.dtype)


def _save(path: Path, inputs: Mapping[str, Array]) -> None:
    arrays: dict[str, Any] = dict(inputs)
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
