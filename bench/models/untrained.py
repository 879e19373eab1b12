"""Convolutional networks as their weights are drawn: what they cost does not depend on these."""

from __future__ import annotations

from collections.abc import Callable

import kinds_models
import torch
from torch import nn

from edgepack.model.types import Recipe

SEED, SAMPLES, SIDE = 0, 64, 28


def resnet8() -> Recipe:
    """That of MLPerf Tiny, for one channel."""
    return _drawn(kinds_models.resnet8)


def vgg() -> Recipe:
    """Five 3×3 convolutions."""
    return _drawn(kinds_models.vgg)


def _drawn(make: Callable[[], nn.Module]) -> Recipe:
    torch.manual_seed(SEED)
    images = torch.randn(SAMPLES, 1, SIDE, SIDE)
    return Recipe(make().eval(), (images[:1],), {"x": images.numpy()})
