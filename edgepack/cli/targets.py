"""`edgepack targets`: list, show, check, probe, calibrate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli.options import (
    Formats,
    Hosts,
    Install,
    Local,
    Python,
    Serials,
    SshConfig,
    TargetsFile,
    progress_bar,
    reporting,
    show,
)
from edgepack.paths import require_model
from edgepack.report.render import TERMINAL, Renderer

app = typer.Typer(name="targets", help="The CPUs that packs are built for.", no_args_is_help=True)


@app.command("list")
@reporting()
def list_targets(targets_file: TargetsFile = None, *, output: Renderer) -> None:
    """List every target.

    Example: edgepack targets list
    """
    from edgepack.report.targets import targets_report
    from edgepack.targets.file import load_targets

    show(targets_report(list(load_targets(targets_file).values())), output)


@app.command("show")
@reporting()
def show_target(
    name: Annotated[str, typer.Argument(help="Name from `edgepack targets list`.", show_default=False)],
    targets_file: TargetsFile = None,
    *,
    output: Renderer,
) -> None:
    """Show what is known of one target, and what is estimated.

    Example: edgepack targets show rpi4
    """
    from edgepack.report.targets import target_report
    from edgepack.targets.file import get_target

    show(target_report(get_target(name, targets_file)), output)


@app.command("check")
@reporting(tables=False)
def check_targets(
    file: Annotated[Path, typer.Argument(help="A targets file.", show_default=False)],
    *,
    output: Renderer,
) -> None:
    """Check a targets file and name every problem with its line.

    Example: edgepack targets check targets.yaml
    """
    from edgepack.errors import TargetsError
    from edgepack.report.report import Report
    from edgepack.targets.file import check_file

    problems = [str(problem) for problem in check_file(file)]
    if output.for_machines:
        show(Report(record={"file": str(file), "problems": problems}), output)
        if problems:
            raise typer.Exit(TargetsError.exit_code)
    elif problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise TargetsError("\n".join([f"{file}: {count}", *(f"  {problem}" for problem in problems)]))
    else:
        typer.echo(f"{file}: good")


@app.command("probe")
@reporting()
def probe(
    hosts: Hosts = None,
    serials: Serials = None,
    local: Local = False,
    name: Annotated[
        str | None, typer.Option("--name", help="Of the entry.", show_default="what the device calls itself")
    ] = None,
    shipped: Annotated[
        str | None, typer.Option("--target", help="Compare with this target.", show_default="the most similar one")
    ] = None,
    ssh_config: SshConfig = None,
    python: Python = None,
    install: Install = False,
    targets_file: TargetsFile = None,
    *,
    output: Renderer,
) -> None:
    """Measure a device and print a targets file with it.

    Caches, read bandwidth, real clock; about 10 s a cluster.

    What differs from the shipped target stands in comments; on a terminal the curves are shown beside it. With
    --markdown or --csv only the curves are printed.

    Example: edgepack targets probe --host pi@raspberrypi.local --name mine > targets.yaml
    """
    from dataclasses import replace

    from rich.console import Console

    from edgepack.devices.connect import ConnectOptions, connected, one_place
    from edgepack.devices.profile import listed_targets, probe_target
    from edgepack.report.targets import entry_text, sweep_report
    from edgepack.targets.file import get_target
    from edgepack.targets.target import HOST

    listed = listed_targets(targets_file)
    compared = listed.get(shipped) or get_target(shipped, targets_file) if shipped is not None else None
    options = ConnectOptions(tuple(hosts or ()), tuple(serials or ()), local, ssh_config, python, install)
    place = one_place(compared or get_target(HOST), options, "edgepack targets probe")
    with progress_bar(output) as progress, connected(place, options, progress) as device:
        found = probe_target(device, name, compared, progress, listed=listed.values())
    record = found.record()
    if output is not TERMINAL:
        show(sweep_report(record), output)
        return
    if sys.stderr.isatty():  # stdout carries the file, and nothing else
        Console(stderr=True, highlight=False).print(output.render(sweep_report(record)))
    target = replace(found.target, hosts=(place.address,)) if place.kind == "ssh" else found.target
    typer.echo(entry_text(target, record), nl=False)


@app.command("calibrate")
@reporting()
def calibrate_target(
    name: Annotated[str, typer.Argument(help="Name from `edgepack targets list`, or host.", show_default=False)],
    model: Annotated[
        str | None, typer.Argument(help="Measure the layers of this model.", show_default="a grid of layers")
    ] = None,
    hosts: Hosts = None,
    serials: Serials = None,
    local: Local = False,
    threads: Annotated[int, typer.Option("--threads", min=1, max=1024, help="Of the inference.")] = 1,
    formats: Formats = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter rounds.")] = False,
    ssh_config: SshConfig = None,
    python: Python = None,
    install: Install = False,
    targets_file: TargetsFile = None,
    *,
    output: Renderer,
) -> None:
    """Measure what layers cost on a target.

    Builds for it then choose schemes and ranks by measured latencies.

    The layers of a model take seconds, the grid some five minutes. What is known is kept and never measured again.

    Example: edgepack targets calibrate rpi4 model.onnx --host pi@raspberrypi.local
    """
    if model is not None:
        require_model(model)
    from edgepack.devices.connect import ConnectOptions, connected, one_place
    from edgepack.pipeline.measure_target import calibrate_target as run
    from edgepack.pipeline.options import parse_formats
    from edgepack.report.targets import calibrated_report
    from edgepack.targets.file import get_target

    target = get_target(name, targets_file)
    options = ConnectOptions(tuple(hosts or ()), tuple(serials or ()), local, ssh_config, python, install)
    place = one_place(target, options, f"edgepack targets calibrate {name}")
    chosen = None if formats is None else parse_formats(formats)
    with progress_bar(output) as progress, connected(place, options, progress) as device:
        found = run(device, target, model=model, formats=chosen, threads=threads, quick=quick, progress=progress)
    show(calibrated_report(found.record()), output)
