"""`edgepack clean`: what killed processes left, and the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli.options import reporting, show
from edgepack.report.render import Renderer

DAY_S = 86400.0


@reporting()
def clean(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders that packs were built into.", show_default="this one and dist"),
    ] = None,
    max_cache: Annotated[
        str | None,
        typer.Option("--max-cache", help="Results to keep in the cache, such as 5GB; the longest unused go first."),
    ] = None,
    unused_days: Annotated[
        float | None, typer.Option("--unused-days", min=0, help="Remove results that nothing read for so many days.")
    ] = None,
    *,
    output: Renderer,
) -> None:
    """Remove what killed builds left behind, and show the cache.

    Temporary folders that no running process holds: the system's, those beside packs, those in the cache. A build does
    the same when it starts. Results in the cache stay unless --max-cache or --unused-days says which go; a build
    makes again what it lacks. Tables of costs that were measured or counted always stay.

    Example: edgepack clean

    Example: edgepack clean --max-cache 5GB --unused-days 30
    """
    from edgepack.cache import PARTS, default_root, entries, trim
    from edgepack.errors import UsageError
    from edgepack.pipeline.options import parse_size
    from edgepack.report.clean import clean_report
    from edgepack.scratch import sweep, system_folder

    for folder in folders or ():
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder", hint="name the folders that packs were built into")
    most = None if max_cache is None else parse_size(max_cache)
    root = default_root()
    places = [system_folder(), root / PARTS, *(folders or (Path(), Path("dist")))]
    left = [path for place in dict.fromkeys(place.resolve() for place in places) for path in sweep(place)]
    found = entries(root)
    removed = trim(found, most_bytes=most, unused_s=None if unused_days is None else unused_days * DAY_S)
    show(clean_report(root, left, found, removed), output)
