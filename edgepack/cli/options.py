"""What every command shares: its options, how it shows progress, how it reports an error, how it ends."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgepack.errors import EdgepackError

if TYPE_CHECKING:
    from edgepack.report.report import Report
    from edgepack.workspace import Progress

INTERRUPTED = 130


class PrecisionName(StrEnum):
    """What `--precision` takes."""

    auto = "auto"
    fp32 = "fp32"
    int8 = "int8"
    int4 = "int4"


Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print markdown tables.")]
Csv = Annotated[
    bool, typer.Option("--csv", help="Print CSV, full precision; several tables have an empty line between.")
]
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
Formats = Annotated[str | None, typer.Option("--formats", help="onnx, tflite or both.", show_default="all")]
Packs = Annotated[list[Path], typer.Argument(help="Pack folders.", show_default=False)]
Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", help="user@host[:port] over SSH; again for more devices at once.", show_default=False),
]
Serials = Annotated[
    list[str] | None, typer.Option("--adb", help="Serial number of an Android device.", show_default=False)
]
Local = Annotated[bool, typer.Option("--local", help="This machine (the default where the target names no hosts).")]
SshConfig = Annotated[Path | None, typer.Option("--ssh-config", help="An ssh_config file in place of your own.")]
Python = Annotated[
    str | None,
    typer.Option("--python", help="Interpreter on the device.", show_default="edgepack's own there, else python3"),
]
Install = Annotated[bool, typer.Option("--install", help="First make an environment with the runtimes on the device.")]


def chosen_output(*, as_json: bool, markdown: bool, csv: bool) -> Output:
    """What a command prints its report as.

    Raises:
        UsageError: several were asked for.
    """
    from edgepack.errors import UsageError

    if as_json + markdown + csv > 1:
        raise UsageError("--markdown, --csv and --json exclude each other")
    return "json" if as_json else "markdown" if markdown else "csv" if csv else "terminal"


@contextmanager
def door(*, as_json: bool, verbose: bool) -> Iterator[None]:
    """Turn every error into a message and the documented exit code; a traceback only with -v."""
    try:
        yield
    except EdgepackError as err:
        _report(type(err).__name__, err.message, err.hint, err.exit_code, as_json, verbose)
        raise typer.Exit(err.exit_code) from err
    except KeyboardInterrupt as err:
        hint = "run the same command again: it goes on where it was"
        _report("Interrupted", "interrupted", hint, INTERRUPTED, as_json, False)
        raise typer.Exit(INTERRUPTED) from err
    except BrokenPipeError as err:
        with suppress(OSError):
            sys.stdout.close()
        raise typer.Exit(1) from err
    except Exception as err:
        if isinstance(err, typer.Exit | typer.Abort) or type(err).__module__.startswith(("click", "typer")):
            raise
        message = f"internal error: {type(err).__name__}: {err}"
        _report(
            "InternalError", message, None if verbose else "run again with -v for the traceback", 1, as_json, verbose
        )
        raise typer.Exit(1) from err


def _report(kind: str, message: str, hint: str | None, code: int, as_json: bool, verbose: bool) -> None:
    if verbose:
        traceback.print_exc()
    if as_json:
        show_json({"error": {"kind": kind, "message": message, "hint": hint, "exit_code": code}})
        return
    typer.echo(f"error: {message}", err=True)
    if hint:
        typer.echo(f"  hint: {hint}", err=True)


def show_json(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=2, sort_keys=True, default=str))


Output = Literal["terminal", "json", "markdown", "csv"]


def show(report: Report, output: Output = "terminal") -> None:
    """Print a report: in tables as wide as the terminal, or 160 columns where there is none, or as a document."""
    from importlib import import_module

    render = import_module(f"edgepack.report.render.{output}").render
    if output != "terminal":
        typer.echo(render(report).rstrip("\n"))
        return
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(render(report))


@contextmanager
def progress_bar(*, as_json: bool) -> Iterator[Progress]:
    """A progress line on stderr while the block runs; silent where stderr is no terminal."""
    with progress_bars([""], as_json=as_json) as bars:
        yield bars[""]


@contextmanager
def progress_bars(titles: Sequence[str], *, as_json: bool) -> Iterator[Mapping[str, Progress]]:
    """A progress line for each of several things at once, by its title; silent where stderr is no terminal."""
    if as_json or not sys.stderr.isatty():
        from edgepack.workspace import silent

        yield dict.fromkeys(titles, silent)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:

        def line(title: str) -> Progress:
            task = bar.add_task(title or "start", total=None)

            def update(stage: str, done: int = 0, total: int = 0) -> None:
                shown = f"{title}: {stage}" if title else stage
                bar.update(task, description=shown, completed=done, total=total or None)

            return update

        yield {title: line(title) for title in titles}
