"""The images that layers by `--method jpeg` travel as."""

from __future__ import annotations

from edgepack.archive.images import JpegImage
from edgepack.methods import jpeg
from edgepack.pipeline.evaluate import FileTrial
from edgepack.pipeline.evaluator import Evaluator
from edgepack.quantize.grids import quantize_weight

METHOD = "jpeg"


def jpeg_images(evaluator: Evaluator, trial: FileTrial) -> tuple[JpegImage, ...]:
    """Codes and image of every layer that was put through one.

    Where a file has other codes, because its int8 grid is a smaller one, the image does not serve and the codes travel
    like any others.
    """
    found = []
    views = {view.name: view for view in evaluator.analysis.views}
    for choice in trial.layers:
        layer = views.get(choice.layer)
        other = choice.alternative
        quality = jpeg.quality_within(layer, other.share) if layer and other and other.method == METHOD else ""
        if layer is not None and isinstance(quality, int):
            part, image = jpeg.at_quality(layer, quality)
            found.append(JpegImage(quantize_weight(part.weight)[0], image))
    return tuple(found)
