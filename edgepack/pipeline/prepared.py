"""Everything that comes before a plan: the model opened, its layers decomposed, and what they could become and cost."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgepack import metrics
from edgepack.data import Samples, example, read_npz
from edgepack.errors import ModelError, UsageError
from edgepack.executor import Workers, workers
from edgepack.model.kinds import views_of
from edgepack.model.scheme import Format
from edgepack.pipeline.attempt import Guard, Prover
from edgepack.pipeline.covariances import Covariances
from edgepack.pipeline.crossvalidating import CrossValidation, check_labels, cross_validated
from edgepack.pipeline.files import ModelFiles
from edgepack.pipeline.guarding import Data, Methods, choose_methods, load_data, make_guard
from edgepack.pipeline.menus import Menu
from edgepack.pipeline.offering import offered
from edgepack.pipeline.onnx_files import OnnxFiles
from edgepack.pipeline.opened import Opened, model_kind, open_model
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.output_gradients import weighed
from edgepack.pipeline.pricing import Prices
from edgepack.pipeline.recovering import Recovery, check_recover
from edgepack.pipeline.refitting import Refitter, check_refit
from edgepack.pipeline.rounding import Rounder
from edgepack.pipeline.scores import check_evaluate
from edgepack.pipeline.sensitivity import Sensitivity
from edgepack.pipeline.statistics import decompose
from edgepack.pipeline.task import Task
from edgepack.pipeline.tflite_files import TfliteFiles
from edgepack.plan.candidates import check_rank
from edgepack.workspace import Cache, Progress, digest

UNGUARDED = (
    "no calibration data: layers are factored by plain SVD of their weights and nothing guards the accuracy; "
    "give --data F.npz"
)


@dataclass(frozen=True)
class Prepared:
    """A model, ready to be planned.

    Attributes:
        test: samples that are scored once, at the end; None without `--test`.
        files: writers of the formats that the model can be written in.
        menus: candidates of every layer, by format.
        by_gradients: whether predicted losses weigh layers by output gradients.
        cross_validation: how the rank was chosen, where it was so.
    """

    task: Task
    opened: Opened
    data: Data
    test: Samples | None
    guard: Guard
    onnx: OnnxFiles
    files: Mapping[Format, ModelFiles]
    prices: Prices
    menus: Mapping[Format, tuple[Menu, ...]]
    by_gradients: bool
    cross_validation: CrossValidation | None


@contextmanager
def prepared(options: BuildOptions, cache: Cache, progress: Progress) -> Iterator[Prepared]:
    """Opens and measures a model; temporary files and processes end with the block.

    Raises:
        UsageError, InputError: bad arguments, model or data.
        DeviceError: the scheduler, or this machine as a device, failed.
    """
    model_kind(options.model)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgepack-")))
        tflite = stack.enter_context(TfliteFiles(cache, work)) if "tflite" in options.formats else None
        crew = stack.enter_context(workers(options.scheduler))
        progress("open model")
        opened = open_model(options.model, work)
        yield _prepare(options, opened, tflite, crew, cache, work, progress)


def _prepare(
    options: BuildOptions,
    opened: Opened,
    tflite: TfliteFiles | None,
    crew: Workers,
    cache: Cache,
    work: Path,
    progress: Progress,
) -> Prepared:
    if not opened.layers:
        raise ModelError(f"{options.model}: no linear layer found; there is nothing to factor")
    if not isinstance(options.rank, str):
        check_rank(opened.layers, options.rank)
    data = load_data(options.data, opened, options.model, options.seed)
    methods = choose_methods(options.method, data)
    method = methods.factorizer
    _check_methods(options, methods)
    trained_on = None if options.recover is None else check_recover(data.calibration)
    refitted_on = check_refit(method, data.calibration) if options.refit else None
    test = None if options.test is None else read_npz(options.test, opened.inputs)
    onnx = OnnxFiles(opened.model, data.calibration, largest=options.weight_grids[0])
    dense = work / "dense.fp32.onnx"
    onnx.write_dense(dense)
    guard = make_guard(options.metric, data, dense, exact=options.exact)
    check_evaluate(opened, dense, guard)
    _choose_grid(options, onnx, guard, work)
    key = digest(opened.sha256, data.digest())
    names = [layer.name for layer in opened.layers]
    covariances = Covariances(opened.model, names, data.calibration, key, cache, progress, crew)
    source, gradients = weighed(
        opened, method, data.calibration, guard.metric, options.seed, key, cache, work, progress
    )
    validated: CrossValidation | None = None
    if options.rank == "cv":
        labels = check_labels(data.calibration, guard)
        samples = data.guard if data.calibration is None else data.calibration
        validated = cross_validated(
            *(opened, samples, labels, method, options.seed, key, onnx, cache, work, crew, progress)
        )
    spectra, unseen = decompose(
        *(opened.model, views_of(opened.layers), method, data.calibration, key, cache, progress, crew),
        gradients=gradients,
    )
    prover = Prover(guard, onnx.read(dense), opened.layers, onnx, work)
    search_key = digest(key, method, guard.metric, options.seed, options.exact)
    guarded_key = digest(search_key, guard.reference, guard.samples.labels)
    task = Task(
        *(options, opened.layers, spectra, method, prover, cache, guarded_key),
        *(Rounder(covariances, method, options.seed, onnx.largest, gradients or {}), work, progress),
        warnings=[UNGUARDED] if data.calibration is None else [],
    )
    if refitted_on is not None:
        task.refitter = Refitter(opened.model, task.rounder, refitted_on, progress)
    if options.recover is not None and trained_on is not None:
        task.recovery = Recovery(
            *(source, trained_on, guard.metric, options.recover, options.seed),
            *(digest(search_key, "recovery"), cache, work, progress),
        )
    fate = "it stays dense" if options.rank == "auto" else "it is factored by plain SVD"
    for name in unseen:
        task.warn(f"{name}: its input was never seen to vary on the data, so {fate}")
    for layer in opened.layers:
        if gradients is not None and layer.name not in gradients and layer.name not in unseen:
            task.warn(f"{layer.name}: no gradient reaches it from the model's first output, so it is whitened")
    files = _formats(options, opened, data, onnx, tflite, task)
    sensitivity = Sensitivity(
        *(source, spectra, data.calibration, guard.metric, options.seed, search_key, cache, progress),
        moments=gradients,
    )
    if sensitivity.problem is not None:
        task.warn(f"layers are weighed by their output energy: {sensitivity.problem}")
    share = None if validated is None else validated.share
    menus, prices = offered(task, opened, data, files, sensitivity, methods, unseen, share, search_key, crew)
    return Prepared(task, opened, data, test, guard, onnx, files, prices, menus, sensitivity.known, validated)


def _check_methods(options: BuildOptions, methods: Methods) -> None:
    """Refuses options that are about the pairs of a factorizer where there are none."""
    given = {"--rank cv": options.rank == "cv", "--refit": options.refit, "--recover": options.recover is not None}
    for option, wanted in given.items():
        if wanted and not methods.pairs:
            raise UsageError(
                f"{option} is for the pairs of a factorizer, and --method {options.method} makes none",
                hint="leave it out, or give a factorizer: --method whitened",
            )


def _choose_grid(options: BuildOptions, onnx: OnnxFiles, guard: Guard, work: Path) -> None:
    """Take the weight grid with which the dense int8 file answers best."""
    if len(options.weight_grids) == 1 or "onnx" not in options.formats or options.precision == "fp32":
        return
    path = work / "grid.onnx"
    noise = {}
    for largest in options.weight_grids:
        onnx.largest = largest
        onnx.write({}, onnx.probe_scheme, path)
        noise[largest] = metrics.sqnr_db(guard.answers(path, "onnx"), guard.reference)
    onnx.largest = max(options.weight_grids, key=lambda largest: noise[largest])


def _formats(
    options: BuildOptions, opened: Opened, data: Data, onnx: OnnxFiles, tflite: TfliteFiles | None, task: Task
) -> dict[Format, ModelFiles]:
    """The formats that this model can be written in. TFLite is left out, with the reason, where conversion fails."""
    files: dict[Format, ModelFiles] = {"onnx": onnx} if "onnx" in options.formats else {}
    if tflite is None:
        return files
    tflite.open(opened, data.calibration, example(data.guard, opened.inputs, options.seed))
    try:
        tflite.write_dense(task.work / "dense.fp32.tflite")
    except ModelError as err:
        if not files:
            raise
        task.warn(f"no TFLite file: {err.message}")
    else:
        files["tflite"] = tflite
    return files
