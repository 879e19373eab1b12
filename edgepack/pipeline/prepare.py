"""Everything that comes before a plan: open the model, load the data, analyze, and say what layers could become."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from edgepack.backends.backend import THREADS, Writer, WriterData
from edgepack.backends.registry import FACTS, backend
from edgepack.backends.schemes import SCHEMES
from edgepack.data import Samples, example
from edgepack.errors import SOURCE, ModelError, UsageError
from edgepack.methods.registry import DEFAULT, PATENTS, RISKS, is_factorizer, needs_gradients, outside_version
from edgepack.metrics.values import sqnr_db
from edgepack.model.model import Model
from edgepack.model.scheme import Format
from edgepack.model.structure import Structure
from edgepack.model.types import Aim
from edgepack.natives import native
from edgepack.pipeline.activations import Subject
from edgepack.pipeline.analysis import Analysis, Question, analyze
from edgepack.pipeline.candidates import (
    LayerCandidates,
    Offer,
    Offered,
    make_candidates,
    make_offer,
    most_ranks,
    offered,
    without_factors,
)
from edgepack.pipeline.crossval import CrossValidation, Labelled, check_labels, cross_validated
from edgepack.pipeline.datasets import Data, Methods, choose_methods, load_data, make_evaluation_sets, with_open_sides
from edgepack.pipeline.distill import Distillation, check_distill
from edgepack.pipeline.evaluate import EvaluationSet, FileEvaluator, check_evaluate, hardly_told_apart, known_by_heart
from edgepack.pipeline.evaluator import Evaluator
from edgepack.pipeline.gradients import gradient_kind, weighed
from edgepack.pipeline.latency_estimates import LatencyEstimates, make_estimates
from edgepack.pipeline.method_fits import Alternatives, fit_alternatives
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.recipe_score import RECIPE, RecipeScore, check_recipe_metric, recipe_score
from edgepack.pipeline.refit import Refitter, check_refit
from edgepack.pipeline.replacements import Replacements
from edgepack.pipeline.rounding import Rounder
from edgepack.pipeline.shared_input import Group, WithStacks, find_groups, with_shared_input
from edgepack.pipeline.tables import table_candidates
from edgepack.plan.candidates import check_rank
from edgepack.sources import check_installed, open_model
from edgepack.sources.onnx import FOUND
from edgepack.sources.samples import read_samples
from edgepack.workspace import Cache, Progress, Workspace, digest, open_workspace

NO_DATA = (
    "no data: nothing measures the accuracy. Weights go to int8, and only layers that lose next to nothing by their "
    "weights alone are factored; give --data F.npz"
)
NO_DATA_FIXED_RANK = (
    "no data: layers are factored by plain SVD of their weights at the rank that was asked for, and nothing measures "
    "what that costs; give --data F.npz"
)


@dataclass(frozen=True)
class Prepared:
    """A model, ready to be planned.

    Attributes:
        evaluator: what its plans are tried with.
        test: samples that are scored once, at the end; None without `--test`.
        files: writers of the formats that the model can be written in.
        all_candidates: candidates of every layer, by format.
        cross_validation: how the rank was chosen, where it was so.
    """

    evaluator: Evaluator
    data: Data
    test: Samples | None
    files: Mapping[Format, Writer]
    estimates: LatencyEstimates
    all_candidates: Mapping[Format, tuple[LayerCandidates, ...]]
    cross_validation: CrossValidation | None

    @property
    def opened(self) -> Model:
        """The model."""
        return self.evaluator.analysis.subject.opened

    @property
    def validation(self) -> EvaluationSet:
        """The samples that plans are chosen on."""
        return self.evaluator.file_evaluator.validation


@dataclass(frozen=True)
class _Analyzed:
    """What all targets of a build share: the model, its data, what its layers may become, and what that loses.

    Attributes:
        options: of the first target, without what the samples do not allow.
    """

    options: BuildOptions
    data: Data
    test: Samples | None
    methods: Methods
    validation: EvaluationSet
    confirmation: EvaluationSet | None
    recipe: RecipeScore | None
    files: Mapping[Format, Writer]
    analysis: Analysis
    layers: Mapping[str, Offered]
    alternatives: Alternatives
    offer: Offer
    groups: Mapping[tuple[str, ...], Group]
    replacements: Replacements
    cross_validation: CrossValidation | None


NO_LAYERS = (
    "no layer of the model can be factored (linear, convolution, or the inputs of a recurrent one): "
    "a pack holds its own graph, with weights in 8 bits where that is within the budget"
)


@contextmanager
def prepared(options: BuildOptions, cache: Cache, progress: Progress) -> Iterator[Prepared]:
    """Opens and measures a model; temporary files and processes end with the block.

    Raises:
        UsageError, InputError: bad arguments, model or data.
        DeviceError: the scheduler, or this machine as a device, failed.
    """
    with prepared_each([options], cache, progress) as (ready,):
        yield ready


@contextmanager
def prepared_each(targets: Sequence[BuildOptions], cache: Cache, progress: Progress) -> Iterator[Sequence[Prepared]]:
    """The same for several targets: the model is opened, analyzed and its losses are predicted once for all.

    Args:
        targets: options that differ in target and `out` alone, of one `BuildOptions.analysis_key`.
        cache: of results.
        progress: told of what is going on.

    Raises:
        UsageError, InputError, DeviceError: see `prepared`.
    """
    options = targets[0]
    native_name = check_installed(options.model).native
    if options.metric == RECIPE:
        check_recipe_metric(options.model, test=options.test is not None)
    if not options.chosen_formats:
        lacks = ", ".join(dict.fromkeys(package for packages in options.unwritable.values() for package in packages))
        installs = f"{' or '.join(FACTS[fmt].install for fmt in options.unwritable)} {SOURCE}"
        raise UsageError(f"{options.model}: no file of it can be written here: {lacks} not installed", hint=installs)
    with ExitStack() as stack:
        opening = open_workspace(cache, seed=options.seed, scheduler=options.scheduler, progress=progress)
        workspace = stack.enter_context(opening)
        converted = [fmt for fmt in options.chosen_formats if fmt != native_name]
        engines = {fmt: stack.enter_context(backend(fmt).engine()) for fmt in converted}
        analyzed = _analyze(options, engines, workspace)
        ready = [
            _for_target(
                analyzed,
                replace(analyzed.options, target=one.target, out=one.out),
                workspace if len(targets) == 1 else workspace.branch(one.target.name),
            )
            for one in targets
        ]
        analyzed.analysis.sensitivity.forget()  # every loss is predicted
        yield ready


def _analyze(options: BuildOptions, engines: Mapping[Format, Any], workspace: Workspace) -> _Analyzed:
    opened = _open(options, workspace)
    dense = native(opened.native).session(opened.content, {}, threads=THREADS)
    recipe = recipe_score(opened, dense) if options.metric == RECIPE else None
    trains = options.distill is not None or options.rank == "cv"
    data = load_data(options.data, opened, options.model, options.seed, trains=trains, images=options.images)
    test = None if options.test is None else read_samples(options.test, opened.inputs, options.images)
    if data.validation.ragged or (test is not None and test.ragged):
        options = of_any_shape(options, workspace)
    methods = _methods(options, data)
    given = WriterData(data.calibration, example(data.validation, opened.inputs, options.seed), options.weight_grids[0])
    writers = {fmt: backend(fmt).open(opened, given, engines.get(fmt), workspace) for fmt in options.chosen_formats}
    for writer in writers.values():
        writer.begin()
    validation, confirmation = make_evaluation_sets(
        options.metric if recipe is None else None,
        data,
        dense,
        exact=options.exact,
        confidence=options.confidence,
        recipe=recipe,
    )
    if recipe is None:
        check_evaluate(opened, dense)
    del dense  # a session holds its weights once or twice
    qmax = _best_grid(options, writers, validation, workspace)
    for line in (known_by_heart(validation), hardly_told_apart(validation, options.drop_limit)):
        if line is not None:
            workspace.warn(line)
    _warn_of_uninstalled(options, workspace)
    if not validation.has_data:
        workspace.warn(NO_DATA if options.rank == "auto" else NO_DATA_FIXED_RANK)

    method = methods.factorizer
    subject = Subject(opened, data.calibration, digest(opened.sha256, FOUND, data.digest(), *outside_version(method)))
    source, gradients = weighed(subject, method, validation.metric, workspace)
    validated = None if options.rank != "cv" else _cross_validated(subject, method, validation, workspace)
    share = None if validated is None else validated.share
    most = most_ranks(opened.layers, options, share=share)
    key = digest(subject.key, method, validation.metric, options.seed, options.exact, most)
    question = Question(method, validation.metric, qmax, most, key)
    analysis = analyze(subject, source, gradients, question, workspace)
    _warn_of_layers(options, analysis, workspace)
    files = _formats({fmt: writer.with_qmax(qmax) for fmt, writer in writers.items()}, workspace)
    files = {fmt: _with_suited_others(writer, options, validation, workspace) for fmt, writer in files.items()}
    if analysis.sensitivity.problem is not None:
        workspace.warn(f"layers are weighed by their output energy: {analysis.sensitivity.problem}")

    layers = offered(analysis.layers, options, analysis.unseen, share=share)
    schemes = tuple(scheme for fmt in files for scheme in SCHEMES[fmt])
    alternatives = fit_alternatives(analysis, methods.others, options.rank, schemes, workspace)
    if not methods.pairs:
        layers = without_factors(layers, alternatives)
    _warn_of_methods(options, methods, alternatives, workspace)
    offer = make_offer(analysis, layers, alternatives, tuple(files), workspace, has_data=validation.has_data)
    groups = find_groups(analysis, offer, workspace) if _shares(options, methods, validation) else {}
    return _Analyzed(
        options=options,
        data=data,
        test=test,
        methods=methods,
        validation=validation,
        confirmation=confirmation,
        recipe=recipe,
        files=files,
        analysis=analysis,
        layers=layers,
        alternatives=alternatives,
        offer=offer,
        groups=groups,
        replacements=_replacements(options, analysis, source, alternatives, groups, validation),
        cross_validation=validated,
    )


def _for_target(analyzed: _Analyzed, options: BuildOptions, workspace: Workspace) -> Prepared:
    """What the layers may become on one target, with what that takes there."""
    analysis, files, methods, validation = analyzed.analysis, analyzed.files, analyzed.methods, analyzed.validation
    opened = analysis.subject.opened
    estimates = make_estimates(
        options.target,
        opened,
        analyzed.data.validation,
        tuple(files),
        workspace,
        precision=options.precision,
        structures=None if options.rank == "auto" or methods.others else _in_place(analyzed.layers),
    )
    all_candidates = {
        fmt: make_candidates(one, analysis.layers, analyzed.offer, estimates, options) for fmt, one in files.items()
    }
    all_candidates = {
        fmt: with_shared_input(own, files[fmt], analyzed.groups, estimates) for fmt, own in all_candidates.items()
    }
    if not opened.in_integers and _plans_tables(options, methods, validation):
        workspace.progress("embedding tables")
        all_candidates = {
            fmt: own + table_candidates(files[fmt], analysis, estimates, validation.metric, workspace)
            for fmt, own in all_candidates.items()
        }
    alternatives, recipe = analyzed.alternatives, analyzed.recipe
    file_evaluator = FileEvaluator(validation, opened, workspace.folder)
    aim: Aim = options.optimize if methods.pairs or alternatives.only_save_bytes is None else "size"
    judged = options.metric if recipe is None else recipe.key
    file_key = digest(analysis.key, *validation.reference, validation.samples.labels, judged, options.confidence)
    evaluator = Evaluator(
        options, analysis, analyzed.replacements, file_evaluator, analyzed.confirmation, aim, file_key, workspace
    )
    return Prepared(
        evaluator, analyzed.data, analyzed.test, files, estimates, all_candidates, analyzed.cross_validation
    )


def of_any_shape(options: BuildOptions, workspace: Workspace) -> BuildOptions:
    """The options for samples that differ in shape: without the formats whose files have fixed ones.

    Raises:
        UsageError: no other is left, or what was asked for looks at the samples in one shape.
    """
    fixed = [fmt for fmt in options.chosen_formats if not FACTS[fmt].open_shapes]
    rest = tuple(fmt for fmt in options.chosen_formats if fmt not in fixed)
    if not rest or (fixed and options.formats is not None):
        raise UsageError(
            f"the samples differ in shape, and {' and '.join(FACTS[fmt].title for fmt in fixed)} files have fixed ones",
            hint="leave the format out, or pad or cut the samples",
        )
    method = options.method
    weighed_by_gradients = method is not None and is_factorizer(method) and needs_gradients(method)
    if options.distill is not None or weighed_by_gradients:
        option = f"--method {method}" if weighed_by_gradients else "--distill"
        raise UsageError(
            f"{option} takes samples of one shape, these differ", hint="leave it out, or pad or cut the samples"
        )
    for fmt in fixed:
        _warn_of_missing(fmt, "its files have fixed shapes, and the samples differ in theirs", workspace)
    return replace(options, formats=rest) if fixed else options


def _plans_tables(options: BuildOptions, methods: Methods, validation: EvaluationSet) -> bool:
    """Whether embedding tables are chosen for with the layers: where all is left to the build, and there are data."""
    free = options.rank == options.precision == "auto" and options.keep is None and options.only is None
    return free and methods.pairs and validation.has_data


def _shares(options: BuildOptions, methods: Methods, validation: EvaluationSet) -> bool:
    """Whether layers with one input may have one B: where ranks are left to the build, there are data, and pairs stay
    as whitening makes them."""
    untouched = not options.refit and options.distill is None and methods.factorizer == DEFAULT
    return options.rank == "auto" and validation.has_data and methods.pairs and untouched


def _warn_of_uninstalled(options: BuildOptions, workspace: Workspace) -> None:
    """Of every format that nobody asked for and that cannot be written here, or at all."""
    if options.formats is not None:
        return
    for fmt, packages in options.unwritable.items():
        _warn_of_missing(fmt, f"it needs {FACTS[fmt].install} ({', '.join(packages)} not installed)", workspace)
    for fmt, why in options.closed.items():
        _warn_of_missing(fmt, why, workspace)


def _open(options: BuildOptions, workspace: Workspace) -> Model:
    workspace.progress("open model")
    opened = open_model(options.model, workspace.folder, options.chosen_formats, options.inputs)
    opened = with_open_sides(opened, options.data, workspace)
    fixed = opened.fixed or _kept_in_integers(opened, options)
    if fixed is not None:
        workspace.warn(f"the pack keeps the model as it is: {fixed}")
        return replace(opened, layers=(), fixed=fixed)
    if opened.left is not None:
        workspace.warn(opened.left)
    if not opened.layers:
        workspace.warn(NO_LAYERS)
    elif not isinstance(options.rank, str):
        check_rank(opened.layers, options.rank)
    return opened


def _kept_in_integers(opened: Model, options: BuildOptions) -> str | None:
    """Why nothing can stand in the place of the layers of a model that computes in integers; None where it can."""
    if not opened.in_integers:
        return None
    if options.data is None:
        return "it computes in integers, and without --data there are no grids for what flows between two factors"
    if options.precision not in ("auto", "int8"):
        return f"it computes in int8, and {options.precision} was asked for"
    return None


def _methods(options: BuildOptions, data: Data) -> Methods:
    """What the layers may become. Refuses options that are about the pairs of a factorizer where there are none, and
    those that look at data without any."""
    methods = choose_methods(options.method, data)
    given = {"--rank cv": options.rank == "cv", "--refit": options.refit, "--distill": options.distill is not None}
    for option, wanted in given.items():
        if wanted and not methods.pairs:
            raise UsageError(
                f"{option} works on low-rank factors, and --method {options.method} makes none",
                hint="leave it out, or give a factorizer: --method whitened",
            )
    if options.distill is not None:
        check_distill(data.calibration)
    if options.refit:
        check_refit(methods.factorizer, data.calibration)
    return methods


def _best_grid(
    options: BuildOptions, writers: Mapping[Format, Writer], validation: EvaluationSet, workspace: Workspace
) -> int:
    """The largest weight code with which the dense int8 file answers best, of the schemes that may saturate."""
    grids = options.weight_grids
    saturating = [fmt for fmt in writers if any(scheme.saturates for scheme in SCHEMES[fmt])]
    if len(grids) == 1 or not saturating or options.precision == "fp32":
        return grids[0]
    writer = writers[saturating[0]]
    path = workspace.folder / f"grid.{writer.fmt}"
    noise = {}
    for qmax in grids:
        tried = writer.with_qmax(qmax)
        tried.write({}, tried.trial_scheme, path)
        answered = validation.answers(path, tried.fmt)
        noise[qmax] = min(sqnr_db(*pair) for pair in zip(answered, validation.reference, strict=True))
    return max(grids, key=lambda qmax: noise[qmax])


def _with_suited_others(
    writer: Writer, options: BuildOptions, validation: EvaluationSet, workspace: Workspace
) -> Writer:
    """A writer that leaves weights beside layers as they are, where 8 bits of these alone take much of what may be
    lost: no plan has a say in them."""
    limit, path = options.drop_limit, workspace.folder / f"others.{writer.fmt}"
    if limit is None or not validation.has_data or not writer.write_others(path):
        return writer
    drop = validation.drop_of(path, writer.fmt)
    path.unlink()
    return writer.with_others_kept() if drop is not None and drop.bound > MOST_BY_OTHERS * limit else writer


def _cross_validated(subject: Subject, method: str, validation: EvaluationSet, workspace: Workspace) -> CrossValidation:
    labels = check_labels(subject.calibration, validation)
    samples = validation.samples if subject.calibration is None else subject.calibration
    return cross_validated(Labelled(subject, samples, labels, method), workspace)


def _warn_of_layers(options: BuildOptions, analysis: Analysis, workspace: Workspace) -> None:
    fate = "it stays dense" if options.rank == "auto" else "it is factored by plain SVD"
    for name in analysis.unseen:
        workspace.warn(f"{name}: its input was never seen to vary on the data, so {fate}")
    for view in analysis.views:
        known = analysis.gradients is None or view.name in analysis.gradients
        if not known and view.name not in analysis.unseen:
            workspace.warn(f"{view.name}: no gradient reaches it from the model's first output, so it is whitened")


def _warn_of_methods(options: BuildOptions, methods: Methods, alternatives: Alternatives, workspace: Workspace) -> None:
    if not methods.pairs and alternatives.only_save_bytes is not None:
        workspace.warn(f"{options.method} {alternatives.only_save_bytes}")
    for name in methods.others:
        if name in PATENTS:
            workspace.warn(f"{name} is covered by patent {PATENTS[name]}: see to it that you may use it")
        if name in RISKS:
            workspace.warn(f"{name} is risky: {RISKS[name]}")


def _formats(writers: Mapping[Format, Writer], workspace: Workspace) -> dict[Format, Writer]:
    """The formats that this model can be written in. One that it cannot be converted to is left out, with the reason,
    where there is another."""
    files: dict[Format, Writer] = {}
    refused: dict[Format, ModelError] = {}
    for fmt, writer in writers.items():
        with leaving_out(fmt, refused):
            writer.write_dense(workspace.folder / f"dense.fp32.{fmt}")
            files[fmt] = writer
    warn_of_refused(refused, files, workspace)
    return files


MOST_BY_OTHERS = 0.5
"""Of the drop that is allowed, what weights beside layers may take."""


@contextmanager
def leaving_out(fmt: Format, refused: dict[Format, ModelError]) -> Iterator[None]:
    """Notes a format that the model cannot be written in, if that is found in the block."""
    try:
        yield
    except ModelError as err:
        refused[fmt] = err


def warn_of_refused(refused: Mapping[Format, ModelError], files: Collection[Format], workspace: Workspace) -> None:
    """Says which formats are left out, and why, where there are files in others.

    Raises:
        ModelError: there are none.
    """
    for fmt, err in refused.items():
        if not files:
            raise err
        # The first line names the place; a converter that stopped adds its log.
        _warn_of_missing(fmt, err.message.partition("\n")[0] + (f" ({err.hint})" if err.hint else ""), workspace)


def _warn_of_missing(fmt: Format, why: str, workspace: Workspace) -> None:
    workspace.warn(f"no {FACTS[fmt].title} file: {why}")


def _replacements(
    options: BuildOptions,
    analysis: Analysis,
    source: Subject,
    alternatives: Alternatives,
    groups: Mapping[tuple[str, ...], Group],
    validation: EvaluationSet,
) -> Replacements:
    opened, calibration = analysis.subject.opened, analysis.subject.calibration
    workspace = analysis.covariances.workspace
    gradients = analysis.gradients or {}
    rounder = Rounder(WithStacks(analysis.covariances, groups), analysis.method, analysis.qmax, gradients, workspace)
    refitter = distillation = None
    if options.refit and calibration is not None:
        refitter = Refitter(opened, rounder, calibration)
    if options.distill is not None and calibration is not None:
        key, classes = digest(analysis.key, "distillation"), gradient_kind(validation.metric) == "classes"
        distillation = Distillation(source.opened, calibration, classes, options.distill, key, workspace)
    return Replacements(analysis, rounder, refitter, distillation, alternatives, groups)


def _in_place(layers: Mapping[str, Offered]) -> dict[str, tuple[Structure, ...]]:
    return {name: one.in_place for name, one in layers.items()}
