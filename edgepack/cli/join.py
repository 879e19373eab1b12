"""`edgepack join`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli.options import reporting, show
from edgepack.report.render import Renderer


@reporting()
def join(
    parts: Annotated[
        list[str],
        typer.Argument(help="Signature, and its .tflite file or pack.", metavar="NAME=FILE...", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .tflite file to write.", show_default=False)],
    *,
    output: Renderer,
) -> None:
    """Put TFLite files into one, with a signature for each.

    For models with several entry points: each is built by itself, and what they share stands in the joined file once.
    ONNX files have one entry point; they stay apart.

    Example: edgepack join encode=dist/encoder.rpi4 decode=dist/decoder.rpi4 -o model.tflite
    """
    from edgepack.pipeline.join import join_files, parse_parts
    from edgepack.report.join import joined_report

    show(joined_report(out, join_files(parse_parts(parts), out)), output)
