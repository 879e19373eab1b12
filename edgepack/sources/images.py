"""Images as inputs of a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgepack.errors import DataError, UsageError
from edgepack.model.types import Array, TensorSpec
from edgepack.sources.inputs import shown

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Of Pillow, by the channels of an input."""
LARGEST_SIDE = 2**14
WHITE = 255.0

Layout = Literal["nchw", "nhwc"]


@dataclass(frozen=True)
class ImageOptions:
    """How images become the input of a model; None for what the model itself says.

    Attributes:
        size: height and width in pixels.
        mean, std: of each channel, or one for all, on a scale where black is 0 and white is 1: what is subtracted, and
            what the rest is divided by.
        layout: whether channels come before the pixels or behind them.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Layout | None = None


def parse_images(size: str | None, mean: str | None, std: str | None, layout: str | None) -> ImageOptions | None:
    """What `--image-size`, `--mean`, `--std` and `--layout` say; None where none of them was given.

    Raises:
        UsageError: one of them cannot be read.
    """
    if size is mean is std is layout is None:
        return None
    scale = () if std is None else _numbers("--std", std)
    if any(one <= 0 for one in scale):
        raise UsageError(f"--std {std}: expected numbers above 0")
    return ImageOptions(
        None if size is None else _size(size),
        (0.0,) if mean is None else _numbers("--mean", mean),
        scale or (1.0,),
        None if layout is None else _asked_layout(layout),
    )


def _asked_layout(text: str) -> Layout:
    if text == "nchw":
        return "nchw"
    if text == "nhwc":
        return "nhwc"
    raise UsageError(f"--layout {text}: expected nchw or nhwc")


def _size(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and 0 < int(side[:9]) <= LARGEST_SIDE for side in sides):
        raise UsageError(f"--image-size {text}: expected pixels a side, such as 224, or height and width as 240x320")
    return int(sides[0]), int(sides[-1])


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(one) for one in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in MODES or not np.isfinite(numbers).all():
        raise UsageError(f"{option} {text}: expected a number, or one for each channel, such as 0.485,0.456,0.406")
    return numbers


def image_reader(spec: TensorSpec, options: ImageOptions) -> Callable[[Path], Array]:
    """Makes the array of an image file: (C, H, W) or (H, W, C) of the input's dtype.

    Pixels are resized to the input's height and width (bilinear) and scaled to 0 … 1; for an input of integers they
    stay 0 … 255.

    Args:
        spec: of the input.

    Raises:
        UsageError: the input takes no images, or others than `options` say.
    """
    layout = options.layout or _layout(spec)
    if len(spec.shape) != 4 or layout is None:
        raise UsageError(
            f"the model's input {spec.name!r} takes {shown(spec)}, which is no image of 1, 3 or 4 channels",
            hint="give samples as arrays, or --layout nchw or nhwc where the channels are left open",
        )
    channels, sides = (spec.shape[1], spec.shape[2:]) if layout == "nchw" else (spec.shape[3], spec.shape[1:3])
    channels = 3 if channels is None else channels
    if channels not in MODES:
        raise UsageError(
            f"the model's input {spec.name!r} takes {shown(spec)}: in {layout} no image has {channels} channels"
        )
    height, width = (own or given for own, given in zip(sides, options.size or (None, None), strict=True))
    if height is None or width is None:
        raise UsageError(
            f"the model's input {spec.name!r} leaves its sides open: {shown(spec)}", hint="give --image-size"
        )
    if options.size not in (None, (height, width)):
        raise UsageError(f"--image-size {options.size[0]}x{options.size[1]}: the model takes {height}x{width}")
    whole = spec.dtype.kind != "f"
    if whole and (np.iinfo(spec.dtype).max < WHITE or (options.mean, options.std) != ((0.0,), (1.0,))):
        raise UsageError(
            f"the model's input {spec.name!r} takes {spec.dtype}: pixels are 0 to 255, neither shifted nor scaled",
            hint="give samples as arrays, without --mean and --std",
        )
    mean, std = (_of_channels(name, one, channels) for name, one in (("mean", options.mean), ("std", options.std)))

    def read(path: Path) -> Array:
        pixels = _pixels(path, MODES[channels], (width, height)).reshape(height, width, channels)
        if not whole:
            pixels = (pixels / WHITE - mean) / std
        return (pixels.transpose(2, 0, 1) if layout == "nchw" else pixels).astype(spec.dtype)

    return read


def _layout(spec: TensorSpec) -> Layout | None:
    """By which axis has a number of channels that images have, three or one before four."""
    for channels in (3, 1, 4) if len(spec.shape) == 4 else ():
        if channels in (spec.shape[1], spec.shape[3]):
            return "nchw" if spec.shape[1] == channels else "nhwc"
    return None


def _of_channels(option: str, numbers: tuple[float, ...], channels: int) -> Array:
    if len(numbers) not in (1, channels):
        raise UsageError(f"--{option}: {len(numbers)} numbers, the model's images have {channels} channels")
    return np.asarray(numbers)


def _pixels(path: Path, mode: str, size: tuple[int, int]) -> Array:
    """(H, W) or (H, W, C) uint8."""
    try:
        from PIL import Image
    except ImportError as err:
        raise UsageError("folders of images need pillow: not installed", hint="pip install pillow") from err
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            found = image.convert(mode).resize(size, Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise DataError(
            f"{path}: no image that can be read ({err})", hint="leave it out of the folder, or save it as .png"
        ) from err
    return np.asarray(found)
