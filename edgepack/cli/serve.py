"""`edgepack serve`."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli.options import TargetsFile, reporting, show
from edgepack.report.render import Renderer


@reporting(tables=False)
def serve(
    folder: Annotated[Path, typer.Argument(help="Folder of packs, or a pack.", show_default=False)],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 for any that is free.")] = 8765,
    bind: Annotated[
        str, typer.Option("--bind", help="Address to listen at; 0.0.0.0 lets the whole network look.")
    ] = "127.0.0.1",
    targets_file: TargetsFile = None,
    *,
    output: Renderer,
) -> None:
    """Show all packs of a folder in the browser.

    The comparison of all of them as a page that follows the folder: what a build or a bench writes there appears by
    itself. Only this machine can look, unless --bind says otherwise.

    Example: edgepack serve dist
    """
    from edgepack.errors import UsageError

    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", hint="give the folder that holds the packs, such as dist")
    from edgepack.listen import address_of, listening
    from edgepack.report.report import Report
    from edgepack.report.serve import Served, application, serve_until_interrupted

    served = Served(folder, targets_file)
    application(served)  # what is missing is said before a port is taken
    with listening(bind, port) as listener, suppress(KeyboardInterrupt):
        address = address_of(listener)
        record = {"folder": str(folder), "address": address}
        show(Report(title=(f"{folder} at {address} (Ctrl-C ends)",), record=record), output)
        sys.stdout.flush()
        serve_until_interrupted(served, listener)
