"""`edgepack bench` and `edgepack compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli.options import Formats, Json, Packs, TargetsFile, Verbose
from edgepack.console import door, progress_bar, show

if TYPE_CHECKING:
    from edgepack.bench.results import BenchResult
    from edgepack.pipeline.compare import Compared
    from edgepack.progress import Progress
    from edgepack.targets import Target
    from edgepack.types import Format


def bench(
    pack: Annotated[Path, typer.Argument(help="Pack folder.", show_default=False)],
    target: Annotated[
        str | None, typer.Option("--target", help="Name of the target.", show_default="the pack's")
    ] = None,
    formats: Formats = None,
    local: Annotated[bool, typer.Option("--local", help="Measure on this machine (the default).")] = False,
    emulate: Annotated[bool, typer.Option("--emulate", help="Count on the emulated target instead.")] = False,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of one inference.")] = 1,
    cold: Annotated[bool, typer.Option("--cold/--no-cold", help="Also measure with empty caches.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Shorter and less certain; the result says so.")] = False,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="With --emulate, also count each layer.")] = True,
    targets_file: TargetsFile = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Measure a pack against its dense fp32 and dense int8 baselines, in turns; results go into the pack.

    With --emulate the target's own kernels run in QEMU, and what they execute and miss in the target's caches is
    counted (edgepack emulator install sets it up).

    Example: edgepack bench dist/mnist-mlp.host --quick

    Example: edgepack bench dist/mnist-mlp.rpi4 --target rpi4 --emulate
    """
    with door(as_json=as_json, verbose=verbose):
        from edgepack.errors import UsageError
        from edgepack.pack import read_manifest
        from edgepack.pipeline.compare import Compared, rows_of_emulated, rows_of_result
        from edgepack.pipeline.options import parse_formats
        from edgepack.pipeline.packed import target_name
        from edgepack.targets import get_target

        if emulate and local:
            raise UsageError("--emulate and --local exclude each other")
        if emulate and quick:
            raise UsageError("--quick shortens a measurement; --emulate counts, and has none", hint="leave one out")
        manifest = read_manifest(pack)
        chosen = get_target(target or target_name(manifest, pack), targets_file)
        asked = None if formats is None else parse_formats(formats)
        with progress_bar(as_json=as_json) as progress:
            if emulate:
                from edgepack.pipeline.emulate import emulate_pack

                counted = emulate_pack(
                    pack, target=chosen, threads=threads, formats=asked, by_layer=layers, progress=progress
                )
                compared = Compared((), tuple(rows_of_emulated(counted, manifest, chosen)))
            else:
                measured = _measure(pack, chosen, threads, quick, cold, progress, asked)
                compared = Compared(tuple(rows_of_result(measured, manifest)), ())
        _print(compared, as_json=as_json)


def _measure(
    pack: Path,
    target: Target,
    threads: int,
    quick: bool,
    cold: bool,
    progress: Progress,
    formats: Sequence[Format] | None,
) -> BenchResult:
    from contextlib import closing

    from edgepack.bench.devices.local import LocalDevice
    from edgepack.bench.packs import bench_pack

    with closing(LocalDevice()) as device:
        return bench_pack(
            pack,
            target=target,
            device=device,
            threads=threads,
            quick=quick,
            cold=cold,
            progress=progress,
            formats=formats,
        )


def compare(
    packs: Packs,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print markdown tables.")] = False,
    csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV, full precision; several tables have an empty line between.")
    ] = False,
    targets_file: TargetsFile = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare benched packs: size, latency, memory, accuracy, and ratios to dense fp32 and dense int8 of the same run.

    Emulated results have their own tables below: counts per inference, a bound on the time, and the layers. With --csv
    these are a second and a third table, each with its own header, after an empty line.

    Example: edgepack compare dist/mnist-mlp.host dist/mnist-mlp.rpi4 --markdown
    """
    with door(as_json=as_json, verbose=verbose):
        from edgepack.errors import UsageError
        from edgepack.pipeline.compare import compare_packs

        if markdown + csv + as_json > 1:
            raise UsageError("--markdown, --csv and --json exclude each other")
        compared = compare_packs(packs, targets_file)
        _print(compared, as_json=as_json, markdown=markdown, csv=csv)


def _print(compared: Compared, *, as_json: bool, markdown: bool = False, csv: bool = False) -> None:
    from edgepack.report.render_csv import render_csv
    from edgepack.report.render_json import render_json
    from edgepack.report.render_markdown import render_markdown
    from edgepack.report.render_terminal import render_terminal

    if as_json or markdown or csv:
        render = render_json if as_json else render_markdown if markdown else render_csv
        typer.echo(render(compared.rows, compared.emulated).rstrip("\n"))
    else:
        show(render_terminal(compared.rows, compared.emulated))
