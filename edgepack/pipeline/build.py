"""`edgepack build`: model in, pack out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepack import metrics, pack
from edgepack.cache import Cache, digest
from edgepack.data import example, read_npz
from edgepack.errors import BudgetError, ModelError
from edgepack.pipeline import manifest
from edgepack.pipeline.attempt import Attempt, Guard, Prover
from edgepack.pipeline.blame import unmet_budget
from edgepack.pipeline.files import ModelFiles
from edgepack.pipeline.guarding import Data, choose_method, load_data, make_guard
from edgepack.pipeline.onnx_files import OnnxFiles
from edgepack.pipeline.opened import Opened, model_kind, model_name, open_model
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.pricing import prices_for
from edgepack.pipeline.promise import Baseline, keep_promise, make_baselines
from edgepack.pipeline.scores import check_evaluate, final_scores
from edgepack.pipeline.search import Found, Search
from edgepack.pipeline.statistics import decompose
from edgepack.pipeline.tflite_files import TfliteFiles
from edgepack.progress import Progress, silent
from edgepack.types import Array, Format

EXAMPLE = "example_inputs.npz"
UNGUARDED = (
    "no calibration data: layers are factored by plain SVD of their weights and nothing guards the accuracy; "
    "give --data F.npz"
)


@dataclass(frozen=True)
class BuildResult:
    """Where the pack is, what its manifest says, and what the user should hear."""

    out: Path
    manifest: Mapping[str, Any]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Chosen:
    """The files that go into the pack."""

    attempts: Mapping[Format, Attempt]
    baselines: Mapping[Format, Baseline]

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
        BudgetError: no plan meets the budget; the best attempt is written.
    """
    cache = cache or Cache(fresh=options.fresh)
    model_kind(options.model)
    out = options.out or Path("dist") / f"{model_name(options.model)}.{options.target.name}"
    with ExitStack() as stack:
        folder = stack.enter_context(pack.writing(out))
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgepack-")))
        tflite = stack.enter_context(TfliteFiles(cache, work)) if "tflite" in options.formats else None
        progress("open model")
        opened = open_model(options.model, work)
        record, failure = _fill(folder, options, opened, tflite, cache, work, progress)
    if failure is not None:
        raise failure
    return BuildResult(out, record, tuple(record["warnings"]))


def _fill(
    folder: Path,
    options: BuildOptions,
    opened: Opened,
    tflite: TfliteFiles | None,
    cache: Cache,
    work: Path,
    progress: Progress,
) -> tuple[dict[str, Any], BudgetError | None]:
    """Write a whole pack into the folder; returns its manifest and the budget error to raise, if any."""
    if not opened.layers:
        raise ModelError(f"{options.model}: no linear layer found; there is nothing to factor")
    warnings: list[str] = []
    data = load_data(options.data, opened, options.model, options.seed)
    method = choose_method(options.method, data)
    if data.calibration is None:
        warnings.append(UNGUARDED)
    test = None if options.test is None else read_npz(options.test, opened.inputs)
    onnx = OnnxFiles(opened.model, data.calibration, largest=options.weight_grids[0])
    dense = work / "dense.fp32.onnx"
    onnx.write_dense(dense)
    guard = make_guard(options.metric, data, dense, exact=options.exact)
    check_evaluate(opened, dense, guard)
    _choose_grid(options, onnx, guard, work)
    key = digest(opened.sha256, data.digest())
    spectra, unobserved = decompose(opened.model, opened.layers, method, data.calibration, key, cache, progress)
    fate = "it stays dense" if options.rank == "auto" else "it is factored by plain SVD"
    warnings += [f"{name}: its input was never seen to vary on the data, so {fate}" for name in unobserved]
    files = _formats(options, opened, data, onnx, tflite, work, warnings)
    prover = Prover(guard, onnx.read(dense), opened.layers, onnx, work)
    search = Search(
        *(options, opened.layers, spectra, method, files, prover, cache, key, work, progress),
        largest=onnx.largest,
        unseen=unobserved,
        prices=prices_for(options.target, opened, data.guard, options.seed),
    )
    found = search.run()
    baselines = make_baselines(search)
    kept = {fmt: keep_promise(search, attempt, baselines[fmt]) for fmt, attempt in found.attempts.items()}
    chosen = Chosen(kept, baselines)
    failure = unmet_budget(search, onnx, found) or _over_flash(options, kept)
    progress("final test")
    scores = final_scores(chosen.paths(baseline=True), opened, test, guard)
    warnings += onnx.warnings + search.warnings
    record = {
        **manifest.build_record(options, opened, data, guard, method, search.probes, onnx.largest),
        "files": _entries(chosen, search, found, scores, baseline=options.baseline),
        "latency_s": found.latency_s,
        "budget_met": failure is None,
        "warnings": warnings,
    }
    _place(folder, chosen, data, opened, options)
    pack.write_manifest(folder, record)
    return record, failure


def _choose_grid(options: BuildOptions, onnx: OnnxFiles, guard: Guard, work: Path) -> None:
    """Take the weight grid with which the dense int8 file answers best."""
    if len(options.weight_grids) == 1 or "onnx" not in options.formats or options.precision == "fp32":
        return
    path = work / "grid.onnx"
    noise = {}
    for largest in options.weight_grids:
        onnx.largest = largest
        onnx.write({}, onnx.probe_form, path)
        noise[largest] = metrics.sqnr_db(guard.answers(path, "onnx"), guard.reference)
    onnx.largest = max(options.weight_grids, key=lambda largest: noise[largest])


def _formats(
    options: BuildOptions,
    opened: Opened,
    data: Data,
    onnx: OnnxFiles,
    tflite: TfliteFiles | None,
    work: Path,
    warnings: list[str],
) -> dict[Format, ModelFiles]:
    """The formats that this model can be written in. TFLite is left out, with the reason, where conversion fails."""
    files: dict[Format, ModelFiles] = {"onnx": onnx} if "onnx" in options.formats else {}
    if tflite is None:
        return files
    tflite.open(opened, data.calibration, _example(data, opened, options.seed))
    try:
        tflite.write_dense(work / "dense.fp32.tflite")
    except ModelError as err:
        if not files:
            raise
        warnings.append(f"no TFLite file: {err.message}")
    else:
        files["tflite"] = tflite
    return files


def _example(data: Data, opened: Opened, seed: int) -> dict[str, Array]:
    return example(data.guard, opened.inputs, seed)


def _over_flash(options: BuildOptions, attempts: Mapping[Format, Attempt]) -> BudgetError | None:
    limit = options.flash_bytes
    sizes = {attempt.path.stat().st_size: fmt for fmt, attempt in attempts.items()}
    if limit is None or max(sizes) <= limit:
        return None
    largest = max(sizes)
    heavy = sorted(attempts[sizes[largest]].layers, key=lambda p: -p.weight_parameters)[:3]
    names = ", ".join(f"{p.layer} ({p.weight_parameters} weights)" for p in heavy)
    return BudgetError(
        f"the {sizes[largest]} file has {largest} bytes, --flash allows {limit}; the largest layers are {names}",
        hint="allow a larger drop with --max-drop, or a smaller --rank",
    )


def _entries(
    chosen: Chosen, search: Search, found: Found, scores: Mapping[str, float], *, baseline: bool
) -> dict[str, dict[str, Any]]:
    entries = {}
    for fmt, attempt in chosen.attempts.items():
        chosen_by = search.chosen_by(attempt, found.latency_s)
        entry = manifest.pack_file(attempt, search.prover.source, chosen_by, scores.get(f"model.{fmt}"))
        entries[f"model.{fmt}"] = entry
    if baseline:
        for fmt, dense in chosen.baselines.items():
            entries |= manifest.baseline_files(fmt, dense, scores)
    return entries


def _place(folder: Path, chosen: Chosen, data: Data, opened: Opened, options: BuildOptions) -> None:
    for name, (path, _) in chosen.paths(baseline=options.baseline).items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)
        beside = path.with_name(f"{path.name}.data")
        if beside.is_file():
            raise ModelError(f"{name} would be over 2 GiB, which a pack does not hold yet")
    inputs: dict[str, Any] = dict(_example(data, opened, options.seed))
    with (folder / EXAMPLE).open("wb") as stream:
        np.savez(stream, allow_pickle=False, **inputs)
