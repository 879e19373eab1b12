"""`edgepack targets`: list, show, check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli.options import Json, TargetsFile, Verbose
from edgepack.console import door, show, show_json

app = typer.Typer(name="targets", help="The CPUs that packs are built for.", no_args_is_help=True)


@app.command("list")
def list_targets(targets_file: TargetsFile = None, as_json: Json = False, verbose: Verbose = False) -> None:
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


@app.command("show")
def show_target(
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


@app.command("check")
def check_targets(
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
