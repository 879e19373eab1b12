"""`edgepack run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli.options import Data, Formats, ImageLayout, ImageSize, Mean, Std, reporting, show
from edgepack.paths import require_pack, require_samples
from edgepack.report.render import Renderer


@reporting()
def run(
    pack: Annotated[Path, typer.Argument(help="Pack folder.", show_default=False)],
    data: Data = None,
    samples: Annotated[int, typer.Option("--samples", min=1, max=1000, help="The first of the data, at most.")] = 5,
    formats: Formats = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    layout: ImageLayout = None,
    *,
    output: Renderer,
) -> None:
    """Run a pack on a few samples beside the original.

    What each of its files answers, how long that takes here, and where it differs from the dense fp32 file of the same
    format. Without --data the example inputs of the pack are run.

    Example: edgepack run dist/mnist-mlp.rpi4 --data samples.npz
    """
    require_pack(pack)
    require_samples(data)
    from edgepack.pipeline.options import parse_formats
    from edgepack.pipeline.run import run_pack
    from edgepack.report.run import run_report
    from edgepack.sources.images import parse_images

    asked = None if formats is None else parse_formats(formats)
    images = parse_images(image_size, mean, std, layout)
    show(run_report(run_pack(pack, data, asked, samples=samples, images=images)), output)
