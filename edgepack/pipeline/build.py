"""`edgepack build`: model in, pack out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.cache import Cache
from edgepack.data import example
from edgepack.errors import BudgetError, ModelError
from edgepack.model.scheme import Format
from edgepack.pack.folder import writing
from edgepack.pack.manifest import File, Manifest, PackedFile, TransportEntry, write_manifest
from edgepack.pipeline.attempt import Attempt
from edgepack.pipeline.baselines import Baseline, make_baseline
from edgepack.pipeline.blame import unmet_budget
from edgepack.pipeline.explore import picked
from edgepack.pipeline.images import jpeg_streams
from edgepack.pipeline.manifest import Results, baseline_files, chosen_by, make_manifest, pack_file
from edgepack.pipeline.opened import model_name
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.planner import Planned, plan
from edgepack.pipeline.prepared import Prepared, prepared
from edgepack.pipeline.promise import keep_promise
from edgepack.pipeline.scores import final_scores
from edgepack.pipeline.splits import layer_splits
from edgepack.pipeline.transporting import add_transport
from edgepack.progress import Progress, silent
from edgepack.transport.needs import need_all
from edgepack.transport.parts import JpegStream

EXAMPLE = "example_inputs.npz"


@dataclass(frozen=True)
class BuildResult:
    """Where the pack is, what its manifest says, and what the user should hear."""

    out: Path
    manifest: Manifest
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Chosen:
    """The files that go into the pack, by format.

    Attributes:
        streams: codes of weights that come from JPEG files, for transport.
    """

    planned: Mapping[Format, Planned]
    attempts: Mapping[Format, Attempt]
    baselines: Mapping[Format, Baseline]
    streams: Mapping[Format, Sequence[JpegStream]] = field(default_factory=dict)

    def paths(self, *, baseline: bool) -> dict[str, tuple[Path, Format]]:
        """Name in the pack → (file, format)."""
        files: dict[str, tuple[Path, Format]] = {f"model.{fmt}": (a.path, fmt) for fmt, a in self.attempts.items()}
        if baseline:
            for fmt, dense in self.baselines.items():
                files |= {f"baseline/fp32.{fmt}": (dense.fp32, fmt), f"baseline/int8.{fmt}": (dense.int8, fmt)}
        return files


def build(options: BuildOptions, *, cache: Cache | None = None, progress: Progress = silent) -> BuildResult:
    """Build a pack. What is expensive is kept in the cache, so an interrupted build goes on where it was.

    Raises:
        UsageError, InputError: bad arguments, model or data; nothing is written.
        DeviceError: a measurement failed; nothing is written.
        BudgetError: no plan meets the budget; the best attempt is written.
    """
    if options.transport:
        need_all()
    cache = cache or Cache(fresh=options.fresh)
    out = options.out or Path("dist") / f"{model_name(options.model)}.{options.target.name}"
    with writing(out) as folder, prepared(options, cache, progress) as ready:
        record, failure = _fill(folder, ready)
    if failure is not None:
        raise failure
    return BuildResult(out, record, record.warnings)


def _fill(folder: Path, ready: Prepared) -> tuple[Manifest, BudgetError | None]:
    """Write a whole pack into the folder; returns its manifest and the budget error to raise, if any."""
    task = ready.task
    chosen = _choose(ready)
    failures = [planned.failure for planned in chosen.planned.values() if planned.failure is not None]
    failure = next(iter(failures), None) or unmet_budget(task, ready.onnx, chosen.attempts)
    task.progress("final test")
    scores = final_scores(chosen.paths(baseline=True), ready.opened, ready.test, ready.guard)
    task.warnings += [warning for warning in ready.onnx.warnings if warning not in task.warnings]
    _place(folder, chosen, ready)
    results = Results(
        files=_entries(ready, chosen, scores, _transported(folder, chosen, ready)),
        latency_s={
            f"{fmt}/{name}": value for fmt, one in chosen.planned.items() for name, value in one.found.latency_s.items()
        },
        budget_met=failure is None,
        warnings=tuple(task.warnings),
    )
    record = make_manifest(ready, [probe for one in chosen.planned.values() for probe in one.found.probes], results)
    write_manifest(folder, record)
    return record, failure


def _transported(folder: Path, chosen: Chosen, ready: Prepared) -> Mapping[str, tuple[int, TransportEntry]]:
    """Writes a compressed file for each model file, where that was asked for. Their bytes and entries by its name."""
    if not ready.task.options.transport:
        return {}
    ready.task.progress("transport")
    return add_transport(folder, [(f"model.{fmt}", fmt) for fmt in chosen.attempts], chosen.streams)


def _choose(ready: Prepared) -> Chosen:
    """Plans every format in turn; each gets its share of the time, and begins where the one before it ended."""
    options = ready.task.options
    picks = picked(ready) if options.pick else None
    wanted = [fmt for fmt in ready.files if picks is None or fmt in picks]
    baselines = {fmt: make_baseline(ready.task, ready.files[fmt], ready.prices) for fmt in wanted}
    planned: dict[Format, Planned] = {}
    start: float | None = None
    began = time.monotonic()
    for number, fmt in enumerate(wanted, start=1):
        files = ready.files[fmt]
        if picks is not None:
            planned[fmt] = Planned(picks[fmt], None)
            continue
        deadline_s = began + 60 * options.search_minutes * number / len(wanted)
        planned[fmt] = plan(
            *(ready.task, files, ready.menus[fmt], ready.prices, baselines[fmt]), deadline_s=deadline_s, start=start
        )
        start = planned[fmt].loss
    attempts = {
        fmt: keep_promise(ready.task, ready.files[fmt], one.found.attempt, baselines[fmt])
        for fmt, one in planned.items()
    }
    streams = {fmt: jpeg_streams(ready.task, one) for fmt, one in attempts.items()} if options.transport else {}
    return Chosen(planned, attempts, baselines, streams)


def _entries(
    ready: Prepared,
    chosen: Chosen,
    scores: Mapping[str, float],
    transported: Mapping[str, tuple[int, TransportEntry]],
) -> dict[str, File]:
    entries: dict[str, File] = {}
    source = ready.task.prover.source
    for fmt, attempt in chosen.attempts.items():
        name = f"model.{fmt}"
        by = chosen_by(ready.prices.source_name(fmt), measured=bool(chosen.planned[fmt].found.latency_s))
        outcome = ready.task.recovered(attempt.layers, attempt.scheme)
        splits = layer_splits(ready.task, ready.files[fmt], attempt)
        entry = pack_file(attempt, source, by, scores.get(name), splits, outcome)
        entries[name] = _with_transport(entry, transported.get(name))
    if ready.task.options.baseline:
        for fmt, dense in chosen.baselines.items():
            entries |= baseline_files(fmt, dense, scores)
    return entries


def _with_transport(entry: PackedFile, wire: tuple[int, TransportEntry] | None) -> PackedFile:
    return entry if wire is None else replace(entry, wire_bytes=wire[0], transport=wire[1])


def _place(folder: Path, chosen: Chosen, ready: Prepared) -> None:
    options = ready.task.options
    for name, (path, _) in chosen.paths(baseline=options.baseline).items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)
        beside = path.with_name(f"{path.name}.data")
        if beside.is_file():
            raise ModelError(f"{name} would be over 2 GiB, which a pack does not hold yet")
    inputs: dict[str, Any] = dict(example(ready.data.guard, ready.opened.inputs, options.seed))
    with (folder / EXAMPLE).open("wb") as stream:
        np.savez(stream, allow_pickle=False, **inputs)
