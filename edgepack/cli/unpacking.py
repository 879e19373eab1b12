"""`edgepack unpack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli.options import Csv, Json, Markdown, Verbose, chosen_output
from edgepack.console import door, show


def unpack(
    file: Annotated[Path, typer.Argument(help="The .tar.xz that `build --transport` wrote.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the files.", show_default="the archive's")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a different file of the same name.")] = False,
    as_json: Json = False,
    markdown: Markdown = False,
    csv: Csv = False,
    verbose: Verbose = False,
) -> None:
    """Write the model file of an archive, to the byte as it was packed, and check its SHA-256.

    Example: edgepack unpack dist/model.rpi4/transport/model.onnx.tar.xz --out models
    """
    with door(as_json=as_json, verbose=verbose):
        output = chosen_output(as_json=as_json, markdown=markdown, csv=csv)
        from edgepack.archive.archive import unpack_file
        from edgepack.report.doctor import unpacked_report

        show(unpacked_report(file, unpack_file(file, out, force=force)), output)
