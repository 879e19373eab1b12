"""MobileNet v1 and v2, width 1.0, 224×224, with random weights: what they cost does not depend on them.

Layers after Howard et al. 2017 (arXiv:1704.04861, table 1) and Sandler et al. 2018 (arXiv:1801.04381, table 2), batch
normalisation folded into the convolutions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgepack import Recipe

CLASSES = 1000
SAMPLES = 24
V1 = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
"""Output channels and stride of every depthwise-separable block."""
V2 = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
"""Expansion, output channels, repeats and first stride of every group of bottlenecks."""


def v1() -> Recipe:
    """MobileNet v1 1.0."""
    blocks: list[nn.Module] = [_conv(3, 32, 3, 2)]
    channels = 32
    for out, stride in V1:
        blocks += [_conv(channels, channels, 3, stride, groups=channels), _conv(channels, out, 1)]
        channels = out
    return _recipe(nn.Sequential(*blocks, *_head(channels)))


def v2() -> Recipe:
    """MobileNet v2 1.0."""
    blocks: list[nn.Module] = [_conv(3, 32, 3, 2)]
    channels = 32
    for expansion, out, repeats, first in V2:
        for index in range(repeats):
            blocks.append(_Bottleneck(channels, out, expansion, first if index == 0 else 1))
            channels = out
    return _recipe(nn.Sequential(*blocks, _conv(channels, 1280, 1), *_head(1280)))


class _Bottleneck(nn.Module):
    """Expand, convolve depthwise, project; with a shortcut where the shapes allow one."""

    def __init__(self, channels: int, out: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = channels * expansion
        widen = [_conv(channels, wide, 1)] if expansion > 1 else []
        self.body = nn.Sequential(*widen, _conv(wide, wide, 3, stride, groups=wide), nn.Conv2d(wide, out, 1))
        self.shortcut = stride == 1 and channels == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return x + y if self.shortcut else y


def _conv(channels: int, out: int, size: int, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, out, size, stride, size // 2, groups=groups), nn.ReLU6())


def _head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]


def _recipe(model: nn.Module) -> Recipe:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    images = np.random.default_rng(0).standard_normal((SAMPLES, 3, 224, 224), np.float32)
    return Recipe(model.eval(), (torch.zeros(1, 3, 224, 224),), {"x": images})
