"""The command line: parse, call one library function, print."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edgepack.cli import streams, targets
from edgepack.cli.bench import bench, compare
from edgepack.cli.build import build, extract, inspect
from edgepack.cli.build_all import build_all
from edgepack.cli.check import check
from edgepack.cli.clean import clean
from edgepack.cli.join import join
from edgepack.cli.machine import doctor, emulator_app
from edgepack.cli.project import ProjectCommand, init
from edgepack.cli.run import run
from edgepack.cli.serve import serve
from edgepack.scratch import own_temporary_folder

app = typer.Typer(
    name="edgepack",
    help="Make trained models small and fast on cheap CPUs: low-rank int8 and int4 layers in ONNX and TFLite files.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(cls=ProjectCommand)(build)
for _command in (build_all, inspect, run, bench, compare, check, serve, join, extract, init, doctor, clean):
    app.command()(_command)
app.add_typer(targets.app)
app.add_typer(emulator_app)


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
    """Make trained models small and fast on cheap CPUs: low-rank int8 and int4 layers in ONNX and TFLite files."""


def main() -> None:
    """Entry point of the `edgepack` command."""
    outputs = streams.prepare()
    code: object = 0
    try:
        with own_temporary_folder():
            app()
    except SystemExit as err:
        # What the reader of help left, click hears of first, and replaces the stream.
        code = err.code if sys.stdout is outputs[0] else streams.READER_LEFT
    except OSError as err:  # of the output: all others end at the door
        code = streams.failed(err)
    sys.exit(streams.finish(outputs, code if isinstance(code, int) else int(code is not None)))
