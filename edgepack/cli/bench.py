"""`edgepack bench` and `edgepack compare`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli.options import (
    Formats,
    Hosts,
    Install,
    Local,
    Packs,
    Python,
    Serials,
    SshConfig,
    TargetsFile,
    progress_bar,
    progress_bars,
    reporting,
    show,
)
from edgepack.paths import require_pack
from edgepack.report.render import Renderer

if TYPE_CHECKING:
    from edgepack.benchmark.pack import Session
    from edgepack.devices.connect import ConnectOptions
    from edgepack.targets.target import Target


@reporting()
def bench(
    pack: Annotated[Path, typer.Argument(help="Pack folder.", show_default=False)],
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target", help="Name of the target; again where each device has its own.", show_default="the pack's"
        ),
    ] = None,
    hosts: Hosts = None,
    serials: Serials = None,
    local: Local = False,
    emulate: Annotated[bool, typer.Option("--emulate", help="Count on the emulated target instead.")] = False,
    formats: Formats = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of one inference.")] = 1,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", help="Kind of core to run on, such as cortex-a55.", show_default="the fastest"),
    ] = None,
    cold: Annotated[bool, typer.Option("--cold/--no-cold", help="Also measure with empty caches.")] = True,
    sustained: Annotated[bool, typer.Option("--sustained", help="Also run for a minute: does it stay fast?")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Shorter and less certain; the result says so.")] = False,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="With --emulate, also count each layer.")] = True,
    ssh_config: SshConfig = None,
    python: Python = None,
    install: Install = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew instead of resuming an interrupted measurement.")
    ] = False,
    benchmark_model: Annotated[
        Path | None, typer.Option("--benchmark-model", help="TFLite's benchmark_model, for devices without Python.")
    ] = None,
    perf_test: Annotated[
        Path | None, typer.Option("--perf-test", help="onnxruntime_perf_test, for devices without Python.")
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser", help="Measure in a browser that opens a page of this machine.")
    ] = False,
    lan: Annotated[
        bool, typer.Option("--lan", help="With --browser, let phones in the same network open the page.")
    ] = False,
    targets_file: TargetsFile = None,
    *,
    output: Renderer,
) -> None:
    """Measure a pack against its dense baselines, file after file in turns.

    The baselines are the dense fp32 and the dense int8 files; results go into the pack.

    On this machine, on devices over SSH or adb (several at once), or with --emulate in QEMU: there the target's own
    kernels run, and what they execute and miss in the target's caches is counted.

    The same command resumes a measurement that was interrupted.

    Example: edgepack bench dist/mnist-mlp.host --quick

    Example: edgepack bench dist/mnist-mlp.rpi4 --target rpi4 --host pi@raspberrypi.local --install

    Example: edgepack bench dist/mnist-mlp.pixel6a --target pixel6a --browser --lan

    Example: edgepack bench dist/mnist-mlp.rpi4 --target rpi4 --emulate
    """
    require_pack(pack)
    from edgepack.benchmark.pack import Session
    from edgepack.benchmark.session import Settings
    from edgepack.devices.connect import ConnectOptions
    from edgepack.pack.facts import read_facts
    from edgepack.pipeline.options import parse_formats
    from edgepack.targets.file import get_target

    options = ConnectOptions(
        tuple(hosts or ()),
        tuple(serials or ()),
        local,
        ssh_config,
        python,
        install,
        fresh,
        benchmark_model,
        perf_test,
        browser,
        lan,
        _announce,
    )
    if emulate:
        _require_countable(options, measured=quick or sustained)
    facts = read_facts(pack)
    chosen = [get_target(name, targets_file) for name in target or [facts.target_name]]
    asked = None if formats is None else parse_formats(formats)
    session = Session(pack, Settings(threads, quick, cold, sustained, cluster), asked)
    if emulate:
        _count(session, chosen, by_layer=layers, output=output)
    else:
        _measure(session, chosen, options, output)


def _announce(address: str) -> None:
    """The address of the page, and its QR code where a phone can be held to the terminal."""
    typer.echo(f"open {address}", err=True)
    if sys.stderr.isatty():
        import segno

        segno.make(address).terminal(out=sys.stderr, compact=True)


def _require_countable(options: ConnectOptions, *, measured: bool) -> None:
    from edgepack.errors import UsageError

    if options.local or options.hosts or options.serials or options.browser:
        raise UsageError("--emulate excludes --local, --host, --adb and --browser")
    if measured:
        hint = "leave them out"
        raise UsageError("--quick and --sustained are for a measurement; --emulate counts, and has none", hint=hint)


def _count(session: Session, targets: Sequence[Target], *, by_layer: bool, output: Renderer) -> None:
    from edgepack.benchmark.emulate import emulate_pack
    from edgepack.errors import UsageError
    from edgepack.pack.facts import read_facts
    from edgepack.report.comparison import comparison_report, rows_of_emulated

    if len(targets) != 1:
        raise UsageError(f"--emulate counts on one target, found {len(targets)}")
    with progress_bar(output) as progress:
        counted = emulate_pack(
            session.pack,
            target=targets[0],
            threads=session.settings.threads,
            formats=session.formats,
            by_layer=by_layer,
            progress=progress,
        )
    show(comparison_report((), rows_of_emulated(counted, read_facts(session.pack), targets[0])), output)


def _measure(session: Session, targets: Sequence[Target], options: ConnectOptions, output: Renderer) -> None:
    from edgepack.benchmark.pack import bench_places, failure
    from edgepack.devices.connect import places
    from edgepack.report.comparison import compare_results, comparison_report

    found = places(targets, options)
    titles = [place.title for place in found]
    with progress_bars(titles, output) as progress:
        benched = bench_places(session, found, options, progress)
    for one in benched:
        if one.taken_up and not output.for_machines:
            note = f"{one.place.title}: {one.taken_up} processes were taken up from a measurement that was cut"
            typer.echo(f"{note} (--fresh measures again)", err=True)
    results = [one.result for one in benched if one.result is not None]
    error = failure(benched)
    if results and not (error and output.for_machines):
        compared = compare_results(results, session.pack)
        show(comparison_report(compared.rows, compared.emulated, sources=compared.sources), output)
    if error:
        raise error


@reporting()
def compare(packs: Packs, targets_file: TargetsFile = None, *, output: Renderer) -> None:
    """Compare packs: one table of all that was measured of them.

    Size, latency, memory, accuracy, and ratios to dense fp32 and dense int8 of the same run.

    Emulated results have their own tables below: counts per inference, a bound on the time, and the layers. With --csv
    all are one table, whose first column then says what a row is.

    Example: edgepack compare dist/mnist-mlp.host dist/mnist-mlp.rpi4 --markdown
    """
    for pack in packs:
        require_pack(pack)
    from edgepack.report.comparison import compare_packs, comparison_report

    compared = compare_packs(packs, targets_file)
    show(comparison_report(compared.rows, compared.emulated, compared.unmeasured, compared.sources), output)
