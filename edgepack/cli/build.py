"""`edgepack build`, `edgepack inspect` and `edgepack extract`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli.options import (
    FORMATS_HELP,
    Data,
    ImageLayout,
    ImageSize,
    Inputs,
    Mean,
    Model,
    NoCache,
    Optimize,
    PrecisionName,
    Reasons,
    Seed,
    Std,
    TargetsFile,
    progress_bar,
    reporting,
    show,
)
from edgepack.paths import require_model, require_samples
from edgepack.report.render import Renderer

if TYPE_CHECKING:
    from edgepack.pipeline.inspect import InspectOptions
    from edgepack.pipeline.options import BuildOptions
    from edgepack.targets.target import Target

METHOD_HELP = (
    "whitened: least error of each layer's output on your data. two-sided: least error of the model's answer, weighed "
    "by output gradients as well (torch). fisher: the same, with each output's own gradient. svd: least error of the "
    "weights."
)
METHODS_HELP = (
    f"{METHOD_HELP} auto: whitened, or coded weights, whichever suits each layer. Other low-rank methods: dct, "
    "simhash, random-projection, output-projection, input-projection, rank-pruning. For convolutions, and risky: cp. "
    "Coded weights, which are decoded when the file is loaded, so that it is smaller and not faster: kmeans, pruning, "
    "hashednet, deepthin. Both at once: dictionary, deepthin-conv. In archives alone: jpeg. DeepThin is covered by US "
    "patent 11429849: it is used only where you ask for it."
)


@reporting()
def build(
    model: Model,
    target: Annotated[
        str,
        typer.Option("--target", help="Name from `edgepack targets list`, or host; or several: rpi4,rpi5,n100."),
    ],
    data: Data = None,
    test: Annotated[
        Path | None, typer.Option("--test", help="Samples that the finished files are scored on, once.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option("--max-drop", help="Largest drop of the metric that is allowed, in its unit.", show_default="0.5"),
    ] = None,
    optimize: Annotated[
        Optimize, typer.Option("--optimize", help="What to minimize: latency × bytes (balanced), or one of them.")
    ] = Optimize.balanced,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            help="accuracy, f1, top5, agreement, cosine, r2, nrmse, mae, mse, sqnr, psnr, file.py:function, or "
            "recipe: the evaluate of a recipe.",
            show_default="by the data",
        ),
    ] = None,
    confidence: Annotated[
        float,
        typer.Option("--confidence", help="How sure it has to be that the drop stays within --max-drop (one-sided)."),
    ] = 0.9,
    formats: Annotated[
        str | None, typer.Option("--formats", help=FORMATS_HELP, show_default="all that can be written here")
    ] = None,
    rank: Annotated[
        str,
        typer.Option(
            "--rank",
            help="auto, a rank, a share of a layer's weights, or cv: the smallest share that 5-fold cross-validation "
            "on your labels cannot tell from the best.",
        ),
    ] = "auto",
    precision: Annotated[PrecisionName, typer.Option("--precision", help="Bits of the weights.")] = PrecisionName.auto,
    method: Annotated[
        str | None, typer.Option("--method", help=METHODS_HELP, show_default="whitened with data, else svd")
    ] = None,
    distill: Annotated[
        str | None,
        typer.Option(
            "--distill",
            help="Train the factors to answer as the original model does, for that long.",
            metavar="3epochs|10min",
        ),
    ] = None,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit/--no-refit",
            help="Fit the factors again to the outputs of the compressed layers in front of them. For each file "
            "that is tried it takes two passes over the calibration data per layer.",
        ),
    ] = False,
    max_size: Annotated[str | None, typer.Option("--max-size", help="Largest model file, such as 2MB.")] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            "--max-memory", help="Most memory that an inference takes beside the runtime itself, such as 64MB."
        ),
    ] = None,
    max_latency: Annotated[str | None, typer.Option("--max-latency", help="Longest inference, such as 5ms.")] = None,
    time_limit: Annotated[str, typer.Option("--time-limit", help="How long plans are tried, such as 90s.")] = "10min",
    explore: Annotated[
        bool, typer.Option("--explore", help="List the plans and what they lose; write no pack.")
    ] = False,
    pick: Annotated[
        str | None,
        typer.Option(
            "--pick", help="Build the plan of that number in the list of --explore.", metavar="NUMBER[,NUMBER]"
        ),
    ] = None,
    keep: Annotated[
        str | None, typer.Option("--keep", help="Leave layers whose names match as they are.", metavar="REGEX")
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", help="Change only layers whose names match.", metavar="REGEX")
    ] = None,
    inputs: Inputs = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    layout: ImageLayout = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler", help="Dask cluster for the heavy work, tcp://HOST:PORT.", show_default="this machine"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Pack folder, or the model file alone: small.onnx. Of several targets the folder of their packs.",
            show_default="dist/MODEL.TARGET",
        ),
    ] = None,
    no_baseline: Annotated[bool, typer.Option("--no-baseline", help="Leave the dense models out of the pack.")] = False,
    archive: Annotated[
        bool, typer.Option("--archive", help="Also write each model as a .tar.xz with its SHA-256, for slow links.")
    ] = False,
    channels_last: Annotated[
        bool,
        typer.Option(
            "--channels-last", help="TFLite files take images as (N, H, W, C), without a transpose at the start."
        ),
    ] = False,
    seed: Seed = 0,
    no_cache: NoCache = False,
    targets_file: TargetsFile = None,
    *,
    output: Renderer,
    verbose: Reasons,
) -> None:
    """Compress a model for a target CPU, within a budget.

    Writes a pack: a folder with the compressed model, its dense fp32 and int8 baselines, and a manifest with the reason
    for every layer.

    With several targets it writes a pack for each, and a table of which file serves which. What comes before the plans
    is done once for all.

    Example: edgepack build model.onnx --target rpi4 --data samples.npz --max-drop 0.5

    Example: edgepack build model.onnx --target rpi4,rpi5,n100 --data samples.npz
    """
    require_model(model)
    require_samples(data)
    require_samples(test)
    from edgepack.distill.budget import parse_budget
    from edgepack.pipeline.options import (
        BuildOptions,
        parse_duration,
        parse_formats,
        parse_pick,
        parse_rank,
        parse_size,
    )
    from edgepack.sources.images import parse_images
    from edgepack.sources.inputs import parse_input
    from edgepack.targets.file import get_targets

    targets = get_targets(target, targets_file)
    options = BuildOptions(
        model=model,
        target=targets[0],
        data=data,
        test=test,
        optimize=optimize.value,
        max_drop=max_drop,
        metric=metric,
        confidence=confidence,
        formats=None if formats is None else parse_formats(formats),
        rank=parse_rank(rank),
        precision=precision.value,
        method=method,
        distill=None if distill is None else parse_budget(distill),
        refit=refit,
        max_size_bytes=None if max_size is None else parse_size(max_size),
        max_memory_bytes=None if max_memory is None else parse_size(max_memory),
        max_latency_s=None if max_latency is None else parse_duration(max_latency),
        time_limit_s=parse_duration(time_limit),
        pick=() if pick is None else parse_pick(pick),
        scheduler=scheduler,
        out=out,
        seed=seed,
        fresh=no_cache,
        baseline=not no_baseline,
        archive=archive,
        channels_last=channels_last,
        keep=keep,
        only=only,
        inputs=tuple(parse_input(text) for text in inputs or ()),
        images=parse_images(image_size, mean, std, layout),
    )
    if len(targets) > 1:
        _build_each(options, targets, output, explores=explore)
    elif explore:
        _explore(options, output)
    else:
        _build(options, output, reasons=verbose)


def _build(options: BuildOptions, output: Renderer, *, reasons: bool) -> None:
    from edgepack.pipeline.build import best_attempt
    from edgepack.report.build import build_report

    with progress_bar(output) as progress:
        result = best_attempt(options, progress=progress)
    if result.failure is None or not output.for_machines:
        show(build_report(result.out, result.manifest, reasons=reasons), output)
    if result.failure is not None:
        raise result.failure


def _build_each(options: BuildOptions, targets: Sequence[Target], output: Renderer, *, explores: bool) -> None:
    from edgepack.errors import UsageError
    from edgepack.pipeline.build import best_attempts, failure_of_some, for_targets
    from edgepack.report.build_each import packs_report

    if explores or options.pick:
        raise UsageError(
            f"--explore and --pick are for one target, found {len(targets)}", hint="give one of them with --target"
        )
    with progress_bar(output) as progress:
        results = best_attempts(for_targets(options, targets), progress=progress)
    failure = failure_of_some(results)
    if failure is None or not output.for_machines:
        show(packs_report(results), output)
    if failure is not None:
        raise failure


def _explore(options: BuildOptions, output: Renderer) -> None:
    from edgepack.errors import UsageError
    from edgepack.pipeline.explore import explore as run
    from edgepack.report.build import explored_report

    if options.pick:
        raise UsageError("--explore lists plans and --pick builds one: give one of them")
    with progress_bar(output) as progress:
        found = run(options, progress=progress)
    show(explored_report(found.rows, found.warnings), output)


@reporting()
def inspect(
    model: Model,
    data: Data = None,
    method: Annotated[
        str | None, typer.Option("--method", help=METHOD_HELP, show_default="whitened with data, else svd")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="Show what every operator of an ONNX or TFLite file takes on this target."),
    ] = None,
    inputs: Inputs = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    layout: ImageLayout = None,
    seed: Seed = 0,
    no_cache: NoCache = False,
    targets_file: TargetsFile = None,
    overlay: Annotated[
        Path | None,
        typer.Option(
            "--overlay",
            help="Of a pack, also write node data for Model Explorer, and a copy for Netron, into this folder.",
        ),
    ] = None,
    *,
    output: Renderer,
) -> None:
    """Show what there is to gain in each layer.

    Its share of bytes and multiplications, its break-even rank, and the ranks that it needs.

    Of a pack, show what became of each and why. With --target, show what each operator of a model file takes there,
    which of them run in a slow kernel, and what build would do about it.

    Example: edgepack inspect model.onnx --data samples.npz

    Example: edgepack inspect model.tflite --target rpi4
    """
    require_model(model)
    require_samples(data)
    from edgepack.errors import UsageError
    from edgepack.pack.folder import MANIFEST
    from edgepack.sources.others import is_folder, other_kind

    if target is None and is_folder(model) and (Path(model, MANIFEST).is_file() or other_kind(model) is None):
        from edgepack.pack.manifest import read_manifest
        from edgepack.report.inspect import pack_report

        manifest = read_manifest(Path(model))
        if overlay is not None:
            from edgepack.report.overlay import write_overlays

            write_overlays(Path(model), manifest, overlay)
        show(pack_report(Path(model), manifest), output)
        return
    if overlay is not None:
        raise UsageError("--overlay is of a pack, found a model", hint="give the folder that `edgepack build` wrote")
    from edgepack.pipeline.inspect import InspectOptions
    from edgepack.pipeline.inspect import inspect as run
    from edgepack.report.inspect import model_report
    from edgepack.sources.images import parse_images
    from edgepack.sources.inputs import parse_input
    from edgepack.targets.file import get_target
    from edgepack.workspace import Cache

    given, images = [parse_input(text) for text in inputs or ()], parse_images(image_size, mean, std, layout)
    options = InspectOptions(model, data, method, given, images, seed)
    if target is not None:
        _inspect_operators(options, get_target(target, targets_file), output)
        return
    with progress_bar(output) as progress:
        found = run(options, Cache(fresh=no_cache), progress)
    show(model_report(found), output)


def _inspect_operators(options: InspectOptions, target: Target, output: Renderer) -> None:
    from edgepack.pipeline.operators import inspect_operators
    from edgepack.report.operators import operators_report

    with progress_bar(output) as progress:
        found = inspect_operators(options, target, progress=progress)
    show(operators_report(found), output)


@reporting()
def extract(
    file: Annotated[Path, typer.Argument(help="The .tar.xz that `build --archive` wrote.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the files.", show_default="the archive's")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a different file of the same name.")] = False,
    *,
    output: Renderer,
) -> None:
    """Write the model file of an archive, and check it.

    It has to be the very file that was packed: its SHA-256 is compared.

    Example: edgepack extract dist/model.rpi4/archive/model.onnx.tar.xz --out models
    """
    from edgepack.archive.archive import extract_file
    from edgepack.report.doctor import extracted_report

    show(extracted_report(file, extract_file(file, out, force=force)), output)
