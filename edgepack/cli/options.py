"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgepack.console import Output


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
