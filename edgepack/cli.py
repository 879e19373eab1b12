"""The command line: parse, call one library function, print."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edgepack.console import door, progress_bar, show, show_json

app = typer.Typer(
    name="edgepack",
    help="Ship trained models to cheap CPUs: layers as two thin int8 matmuls, in standard ONNX and TFLite files.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
targets_app = typer.Typer(name="targets", help="The CPUs that packs are built for.", no_args_is_help=True)
app.add_typer(targets_app)


class PrecisionName(StrEnum):
    """What `--precision` takes."""

    auto = "auto"
    fp32 = "fp32"
    int8 = "int8"


Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.")]
Model = Annotated[
    str, typer.Argument(help="model.onnx, model.pt2, file.py:function or package.module:function.", show_default=False)
]
TargetName = Annotated[str, typer.Option("--target", help="Name from `edgepack targets list`, or host.")]
TargetsFile = Annotated[
    Path | None, typer.Option("--targets-file", help="Your own targets, merged over the shipped ones.")
]
Data = Annotated[
    Path | None, typer.Option("--data", help="Arrays named like the inputs, first axis = samples; labels as `y`.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the split and of every random choice.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Compute everything again instead of taking it from the cache.")]
Packs = Annotated[list[Path], typer.Argument(help="Pack folders.", show_default=False)]


def _version(asked: bool) -> None:
    if asked:
        from edgepack import __version__

        typer.echo(f"edgepack {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Ship trained models to cheap CPUs: layers as two thin int8 matmuls, in standard ONNX and TFLite files."""


@app.command()
def build(
    model: Model,
    target: TargetName,
    data: Data = None,
    test: Annotated[Path | None, typer.Option("--test", help="Samples that are scored once, at the end.")] = None,
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", help="Largest drop of the metric, in its unit.", show_default="0.5")
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="accuracy, agreement or cosine.", show_default="by the data")
    ] = None,
    formats: Annotated[str, typer.Option("--formats", help="onnx, tflite or both.")] = "onnx,tflite",
    rank: Annotated[str, typer.Option("--rank", help="auto, a rank, or a share of a layer's weights.")] = "auto",
    precision: Annotated[PrecisionName, typer.Option("--precision", help="Of the weights.")] = PrecisionName.auto,
    method: Annotated[
        str | None, typer.Option("--method", help="whitened or svd.", show_default="whitened with data, else svd")
    ] = None,
    flash: Annotated[str | None, typer.Option("--flash", help="Largest model file, such as 2MB.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Pack folder.", show_default="dist/MODEL.TARGET")] = None,
    no_baseline: Annotated[bool, typer.Option("--no-baseline", help="Leave the dense models out of the pack.")] = False,
    seed: Seed = 0,
    fresh: Fresh = False,
    targets_file: TargetsFile = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Build a pack: the model with its linear layers factored and in int8, its baselines, and a manifest.

    Example: edgepack build model.onnx --target rpi4 --data samples.npz --max-drop 0.5
    """
    with door(as_json=as_json, verbose=verbose):
        from edgepack.pipeline.build import build as run
        from edgepack.pipeline.options import BuildOptions, parse_formats, parse_rank, parse_size
        from edgepack.report.build_summary import render_build
        from edgepack.targets import get_target

        options = BuildOptions(
            model=model,
            target=get_target(target, targets_file),
            data=data,
            test=test,
            max_drop=max_drop,
            metric=metric,
            formats=parse_formats(formats),
            rank=parse_rank(rank),
            precision=precision.value,
            method=method,
            flash_bytes=None if flash is None else parse_size(flash),
            out=out,
            seed=seed,
            fresh=fresh,
            baseline=not no_baseline,
        )
        with progress_bar(as_json=as_json) as progress:
            result = run(options, progress=progress)
        if as_json:
            show_json({"pack": str(result.out), "manifest": result.manifest})
        else:
            show(render_build(result.out, result.manifest))


@app.command()
def inspect(
    model: Model,
    data: Data = None,
    method: Annotated[
        str | None, typer.Option("--method", help="whitened or svd.", show_default="whitened with data, else svd")
    ] = None,
    seed: Seed = 0,
    fresh: Fresh = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show every linear layer: its share of bytes and multiplications, its break-even rank, and the ranks it needs.

    Example: edgepack inspect model.onnx --data samples.npz
    """
    with door(as_json=as_json, verbose=verbose):
        from dataclasses import asdict

        from edgepack.pipeline.inspect import inspect as run
        from edgepack.report.layers import render_layers

        with progress_bar(as_json=as_json) as progress:
            report = run(model, data=data, method=method, seed=seed, fresh=fresh, progress=progress)
        if as_json:
            show_json(asdict(report))
        else:
            show(render_layers(report))


@app.command()
def bench(
    pack: Annotated[Path, typer.Argument(help="Pack folder.", show_default=False)],
    target: Annotated[
        str | None, typer.Option("--target", help="Name of the target.", show_default="the pack's")
    ] = None,
    formats: Annotated[str | None, typer.Option("--formats", help="onnx, tflite or both.", show_default="all")] = None,
    local: Annotated[bool, typer.Option("--local", help="Measure on this machine (the default).")] = True,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of one inference.")] = 1,
    cold: Annotated[bool, typer.Option("--cold/--no-cold", help="Also measure with empty caches.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Shorter and less certain; the result says so.")] = False,
    targets_file: TargetsFile = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Measure a pack against its dense fp32 and dense int8 baselines, in turns; results go into the pack.

    Example: edgepack bench dist/mnist-mlp.host --quick
    """
    with door(as_json=as_json, verbose=verbose):
        from contextlib import closing

        from edgepack.bench.devices.local import LocalDevice
        from edgepack.bench.packs import bench_pack
        from edgepack.pack import read_manifest
        from edgepack.pipeline.compare import rows_of_result
        from edgepack.pipeline.options import parse_formats
        from edgepack.report.render_json import render_json
        from edgepack.report.render_terminal import render_terminal
        from edgepack.targets import get_target

        manifest = read_manifest(pack)
        chosen = get_target(target or manifest["target"]["name"], targets_file)
        with progress_bar(as_json=as_json) as progress, closing(LocalDevice()) as device:
            result = bench_pack(
                pack,
                target=chosen,
                device=device,
                threads=threads,
                quick=quick,
                cold=cold,
                progress=progress,
                formats=None if formats is None else parse_formats(formats),
            )
        rows = rows_of_result(result, manifest)
        if as_json:
            typer.echo(render_json(rows))
        else:
            show(render_terminal(rows))


@app.command()
def compare(
    packs: Packs,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a markdown table.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV, full precision.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare benched packs: size, latency, memory, accuracy, and ratios to dense fp32 and dense int8 of the same run.

    Example: edgepack compare dist/mnist-mlp.host dist/mnist-mlp.rpi4 --markdown
    """
    with door(as_json=as_json, verbose=verbose):
        from edgepack.errors import UsageError
        from edgepack.pipeline.compare import rows_of_packs
        from edgepack.report.render_csv import render_csv
        from edgepack.report.render_json import render_json
        from edgepack.report.render_markdown import render_markdown
        from edgepack.report.render_terminal import render_terminal

        if markdown + csv + as_json > 1:
            raise UsageError("--markdown, --csv and --json exclude each other")
        rows = rows_of_packs(packs)
        if as_json or markdown or csv:
            render = render_json if as_json else render_markdown if markdown else render_csv
            typer.echo(render(rows).rstrip("\n"))
        else:
            show(render_terminal(rows))


@targets_app.command("list")
def targets_list(targets_file: TargetsFile = None, as_json: Json = False, verbose: Verbose = False) -> None:
    """List every target.

    Example: edgepack targets list
    """
    with door(as_json=as_json, verbose=verbose):
        from dataclasses import asdict

        from edgepack.report.targets_table import render_targets
        from edgepack.targets import load_targets

        targets = load_targets(targets_file)
        if as_json:
            show_json([asdict(target) for target in targets.values()])
        else:
            show(render_targets(list(targets.values())))


@targets_app.command("show")
def targets_show(
    name: Annotated[str, typer.Argument(help="Name from `edgepack targets list`.", show_default=False)],
    targets_file: TargetsFile = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show what is known of one target, and what of it is only an estimate.

    Example: edgepack targets show rpi4
    """
    with door(as_json=as_json, verbose=verbose):
        from dataclasses import asdict

        from edgepack.report.targets_table import render_target
        from edgepack.targets import get_target

        target = get_target(name, targets_file)
        if as_json:
            show_json(asdict(target))
        else:
            show(render_target(target))


@targets_app.command("check")
def targets_check(
    file: Annotated[Path, typer.Argument(help="A targets file.", show_default=False)],
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Check a targets file and name every problem with its line.

    Example: edgepack targets check targets.yaml
    """
    with door(as_json=as_json, verbose=verbose):
        from edgepack.errors import TargetsError
        from edgepack.targets import check_file

        problems = [str(problem) for problem in check_file(file)]
        if as_json:
            show_json({"file": str(file), "problems": problems})
            if problems:
                raise typer.Exit(TargetsError.exit_code)
        elif problems:
            count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
            raise TargetsError("\n".join([f"{file}: {count}", *(f"  {problem}" for problem in problems)]))
        else:
            typer.echo(f"{file}: good")


@app.command()
def doctor(as_json: Json = False, verbose: Verbose = False) -> None:
    """Show which runtimes, converters and clients are here, and the command that installs what is missing.

    Example: edgepack doctor
    """
    with door(as_json=as_json, verbose=verbose):
        from dataclasses import asdict

        from edgepack.doctor import examine
        from edgepack.report.doctor_table import render_doctor

        findings = examine()
        if as_json:
            show_json([asdict(finding) for finding in findings])
        else:
            show(render_doctor(findings))


def main() -> None:
    """Entry point of the `edgepack` command."""
    app()
