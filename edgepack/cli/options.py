"""What every command shares: its options, how it shows progress, how it reports an error, how it ends."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from enum import StrEnum
from functools import wraps
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgepack import backends
from edgepack.cli.streams import READER_LEFT
from edgepack.errors import EdgepackError, InputError, OutputError, UsageError
from edgepack.report.render import RENDERERS, TERMINAL, Renderer, write_report
from edgepack.validation import plain_lines

if TYPE_CHECKING:
    from edgepack.report.report import Report
    from edgepack.workspace import Progress

INTERRUPTED = 130
SHOWN = 300
"""Letters of a file's name in an error."""
_PLACES = "give the name of a place that can be read or written there; -v shows where it was wanted"
_NO_MEMORY = "there is not enough memory for this"
_LESS = "give a smaller model or fewer samples, or allow the process more memory"


class PrecisionName(StrEnum):
    """What `--precision` takes."""

    auto = "auto"
    fp32 = "fp32"
    int8 = "int8"
    int4 = "int4"


class Optimize(StrEnum):
    """What `--optimize` takes."""

    balanced = "balanced"
    latency = "latency"
    size = "size"


Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.")]
Reasons = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show the reason for every layer, and the traceback of an error.")
]
Model = Annotated[
    str,
    typer.Argument(
        help="model.onnx, model.tflite, model.keras, model.h5, model.pt2, file.py:function or package.module:function.",
        show_default=False,
    ),
]
TargetName = Annotated[str, typer.Option("--target", help="Name from `edgepack targets list`, or host.")]
TargetsFile = Annotated[
    Path | None, typer.Option("--targets-file", help="Your own targets, merged over the shipped ones.")
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="An .npz with arrays named like the inputs, first axis = samples, labels as `y`; a folder with an .npz, "
        ".npy or image for each sample, in folders of classes; or file.py:function that yields dicts.",
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        "--image-size",
        help="Size that images of a folder are resized to.",
        metavar="224|240x320",
        show_default="what the model takes",
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean",
        help="What is subtracted from pixels (0 to 1): one number, or one for each channel.",
        metavar="0.485,0.456,0.406",
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        "--std",
        help="What pixels are divided by after that: one number, or one for each channel.",
        metavar="0.229,0.224,0.225",
    ),
]
ImageLayout = Annotated[
    str | None,
    typer.Option(
        "--layout", help="Order of the axes of images.", metavar="nchw|nhwc", show_default="what the model takes"
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="Shape of an input that the model leaves open; again for others.",
        metavar="NAME=1x3x224x224",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the split and of every random choice.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Compute everything again.")]
_FORMATS = [module.name for module in iter_modules(backends.__path__) if module.ispkg]
FORMATS_HELP = f"{', '.join(_FORMATS)} or {'both' if len(_FORMATS) == 2 else 'several'}."
"""By the folders of the backends: their registry takes as long to import as all of this."""
Formats = Annotated[str | None, typer.Option("--formats", help=FORMATS_HELP, show_default="all")]
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


def reporting(
    *, tables: bool = True, files: Sequence[Renderer] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """For a command that prints a report: in place of its parameter `output` it offers an option for every renderer,
    one at a time of those that print, and `-v`, which a command with a parameter `verbose` is told; and it runs behind
    the `door`.

    Args:
        tables: whether the report has tables; of one without, only machines want another form.
        files: renderers of this command alone that write files, in the place of those of their names.
    """
    named = {renderer.name for renderer in files}
    offered = [each for each in RENDERERS if (tables or each.for_machines) and each.name not in named] + [*files]
    printing = [renderer for renderer in offered if not renderer.to_file]

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(verbose: bool, **values: Any) -> None:
            own = {"verbose": verbose} if tells_more else {}
            asked = [renderer for renderer in printing if values.pop(renderer.name)]
            output = next((renderer for renderer in asked if renderer.for_machines), (*asked, TERMINAL)[0])
            written = [(each, values.pop(each.name)) for each in offered if each.to_file]
            if files := tuple((each, path) for each, path in written if path is not None):
                output = replace(output, files=files)
            with door(output, verbose=verbose):
                if len(asked) > 1:
                    first, *others = (renderer.option for renderer in printing)
                    raise UsageError(f"{', '.join(others)} and {first} exclude each other")
                command(**values, **own, output=output)

        flags = {each.name: Annotated[bool, typer.Option(each.option, help=each.help)] for each in printing}
        parameters = dict(inspect.signature(command, eval_str=True).parameters)
        del parameters["output"]
        tells_more = "verbose" in parameters
        kinds = {"verbose": parameters["verbose"].annotation if tells_more else Verbose}
        for name, kind in (flags | kinds).items():
            parameters[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for each in (each for each in offered if each.to_file):
            path = Annotated[Path | None, typer.Option(each.option, help=each.help, metavar="FILE")]
            parameters[each.name] = inspect.Parameter(
                each.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=path
            )
        run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
        run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
        return run

    return decorated


@contextmanager
def door(output: Renderer, *, verbose: bool) -> Iterator[None]:
    """Turn every error into a message and the documented exit code; a traceback only with -v."""
    try:
        yield
    except EdgepackError as err:
        _report(type(err).__name__, err.message, err.hint, err.exit_code, output, verbose)
        raise typer.Exit(err.exit_code) from err
    except KeyboardInterrupt as err:
        hint = "run the same command again: it goes on where it was"
        _report("Interrupted", "interrupted", hint, INTERRUPTED, output, False)
        raise typer.Exit(INTERRUPTED) from err
    except BrokenPipeError as err:
        raise typer.Exit(READER_LEFT) from err
    except OSError as err:
        refused = _refused(err)
        _report("OutputError", refused, _PLACES, OutputError.exit_code, output, verbose)
        raise typer.Exit(OutputError.exit_code) from err
    except MemoryError as err:
        _report("InputError", _NO_MEMORY, _LESS, InputError.exit_code, output, verbose)
        raise typer.Exit(InputError.exit_code) from err
    except Exception as err:
        if isinstance(err, typer.Exit | typer.Abort) or type(err).__module__.startswith(("click", "typer")):
            raise
        if getattr(sys.stdout, "closed", False):
            _report("OutputError", "the output was closed meanwhile", None, OutputError.exit_code, output, verbose)
            raise typer.Exit(OutputError.exit_code) from err
        message = f"internal error: {type(err).__name__}: {err}"
        _report(
            "InternalError", message, None if verbose else "run again with -v for the traceback", 1, output, verbose
        )
        raise typer.Exit(1) from err


def _refused(err: OSError) -> str:
    """What the system has against a file: its name, and why."""
    names = [os.fsdecode(name) for name in (err.filename, err.filename2) if isinstance(name, str | bytes)]
    return ": ".join([" and ".join(name[:SHOWN] for name in names) or "the system", err.strerror or str(err)])


def _report(kind: str, message: str, hint: str | None, code: int, output: Renderer, verbose: bool) -> None:
    with suppress(OSError):  # of the output; the code is told in any case
        _print_error(kind, message, hint, code, output, verbose)


def _print_error(kind: str, message: str, hint: str | None, code: int, output: Renderer, verbose: bool) -> None:
    if verbose:
        traceback.print_exc()
    if output.for_machines:
        from edgepack.report.report import Report

        error = {"kind": kind, "message": message, "hint": hint, "exit_code": code}
        show(Report(record={"error": error}), replace(output, files=()))
        return
    # A message may hold words of a file or a device: none of them is for the terminal to obey.
    typer.echo(f"{_colored('error', 'red')}: {plain_lines(message)}", err=True)
    if hint:
        typer.echo(f"  {_colored('hint', 'cyan')}: {plain_lines(hint)}", err=True)


def _colored(word: str, color: str) -> str:
    """In colour on a terminal, unless the user wants none: https://no-color.org."""
    return word if os.environ.get("NO_COLOR") or not sys.stderr.isatty() else typer.style(word, fg=color, bold=True)


def show(report: Report, output: Renderer = TERMINAL) -> None:
    """Print a report: in tables as wide as the terminal (COLUMNS, else 160 where there is none), or as a document.
    Files that were asked for are written first."""
    for renderer, path in output.files:
        write_report(replace(report, command=shlex.join(["edgepack", *sys.argv[1:]])), renderer, path)
    if output.name != TERMINAL.name:
        typer.echo(output.render(report).rstrip("\n"))
        return
    from rich.console import Console

    class Terminal(Console):
        """One that leaves it to the `door` that its reader left."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 160
    Terminal(width=width, highlight=False).print(output.render(report))


@contextmanager
def progress_bar(output: Renderer) -> Iterator[Progress]:
    """A progress line on stderr while the block runs; silent where stderr is no terminal."""
    with progress_bars([""], output) as bars:
        yield bars[""]


@contextmanager
def progress_bars(titles: Sequence[str], output: Renderer) -> Iterator[Mapping[str, Progress]]:
    """A progress line for each of several things at once, by its title; silent where stderr is no terminal."""
    if output.for_machines:
        from edgepack.workspace import silent

        yield dict.fromkeys(titles, silent)
        return
    from edgepack.report.progress import shown_progress

    with shown_progress(titles) as bars:
        yield bars
