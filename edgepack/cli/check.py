"""`edgepack check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli.options import Formats, TargetsFile, progress_bar, reporting, show
from edgepack.cli.project import PROJECT, read_thresholds
from edgepack.paths import require_pack
from edgepack.report.render import COMMENT, JUNIT, Renderer

if TYPE_CHECKING:
    from edgepack.check.latency import Measuring
    from edgepack.targets.target import Target


@reporting(files=(COMMENT, JUNIT))
def check(
    pack: Annotated[Path, typer.Argument(help="Pack folder.", show_default=False)],
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="The base: a pack, a folder with a pack of the same name, a git revision (REVISION:FOLDER where the "
            "pack was elsewhere), or a file that `edgepack check --json` wrote.",
            metavar="BASE",
            show_default="nothing: only take the figures",
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Target to count on.", show_default="the pack's")
    ] = None,
    formats: Formats = None,
    counts: Annotated[
        bool, typer.Option("--counts/--no-counts", help="Count instructions and misses on the emulated target.")
    ] = True,
    host: Annotated[
        str | None,
        typer.Option("--host", help="Also measure latency there: user@host[:port] over SSH.", show_default=False),
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Also measure latency on this machine.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Measure shorter and less certain.")] = False,
    targets_file: TargetsFile = None,
    *,
    output: Renderer,
) -> None:
    """Hold a pack against an earlier one, and fail where it got worse.

    Size, drop, and per inference the instructions and cache misses of each file and each of its layers, counted on the
    emulated target: counts repeat where times on shared machines vary by half. Latency only where that is asked for.

    How much a figure may grow stands under `check:` in edgepack.yaml. Where one has grown by more, the layers are named
    and the exit code is 6.

    Example: edgepack check dist/mnist-mlp.rpi4 --against main

    Example: edgepack check dist/mnist-mlp.rpi4 --json > base.json
    """
    require_pack(pack)
    from edgepack.check.check import CheckOptions, check_pack
    from edgepack.pack.facts import read_facts
    from edgepack.pipeline.options import parse_formats
    from edgepack.report.check import check_report
    from edgepack.targets.file import get_target

    chosen = get_target(target or read_facts(pack).target_name, targets_file)
    options = CheckOptions(
        chosen,
        None if formats is None else parse_formats(formats),
        counts,
        _measuring(chosen, host, local=local, quick=quick),
        read_thresholds(Path(PROJECT)),
    )
    with progress_bar(output) as progress:
        checked = check_pack(pack, against, options, progress)
    show(check_report(checked), output)
    if checked.failure is not None:
        if output.for_machines:  # the document says it
            raise typer.Exit(checked.failure.exit_code)
        raise checked.failure


def _measuring(target: Target, host: str | None, *, local: bool, quick: bool) -> Measuring | None:
    from edgepack.check.latency import Measuring
    from edgepack.devices.connect import ConnectOptions, one_place
    from edgepack.errors import UsageError

    if host is None and not local:
        if quick:
            raise UsageError("--quick is for a measurement", hint="add --local or --host")
        return None
    options = ConnectOptions(() if host is None else (host,), local=local)
    return Measuring(one_place(target, options, "edgepack check"), options, quick)
