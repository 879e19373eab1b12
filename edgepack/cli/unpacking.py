"""`edgepack unpack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli.options import Json, Verbose
from edgepack.console import door, show, show_json


def unpack(
    file: Annotated[Path, typer.Argument(help="The .tar.xz that `build --transport` wrote.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the files.", show_default="the archive's")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a different file of the same name.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write the model file of an archive, to the byte as it was packed, and check its SHA-256.

    Example: edgepack unpack dist/model.rpi4/transport/model.onnx.tar.xz --out models
    """
    with door(as_json=as_json, verbose=verbose):
        from edgepack.archive.archive import unpack_file
        from edgepack.report.unpacked import render_unpacked

        files = unpack_file(file, out, force=force)
        if as_json:
            listed = [
                {"path": str(f.path), "size_bytes": f.size_bytes, "sha256": f.sha256, "written": f.written}
                for f in files
            ]
            show_json({"file": str(file), "wire_bytes": file.stat().st_size, "files": listed})
        else:
            show(render_unpacked([(f.path, f.size_bytes, f.sha256, f.written) for f in files]))
