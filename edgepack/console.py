"""What every command shares: how it shows progress, how it reports an error, how it ends."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

import typer

from edgepack.errors import EdgepackError

if TYPE_CHECKING:
    from edgepack.report.report import Report
    from edgepack.workspace import Progress

INTERRUPTED = 130


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
