"""One linear layer with seeded weights whose singular values decay, as those of trained layers do.

Its latency does not depend on the values; its outputs do, and they show that the pair still computes the layer.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgepack import Recipe

SEED = 0
DIRECTIONS = 512
NOISE = 0.01
SAMPLES = 640


def recipe() -> Recipe:
    """The layer of 4096×4096 and Gaussian inputs for it."""
    return _square(4096)


def recipe_1024() -> Recipe:
    """The same of 1024×1024."""
    return _square(1024)


def _square(side: int) -> Recipe:
    rng = np.random.default_rng(SEED)
    left = rng.standard_normal((side, DIRECTIONS), np.float32)
    right = rng.standard_normal((DIRECTIONS, side), np.float32)
    scale = 1 / np.arange(1, DIRECTIONS + 1, dtype=np.float32)
    weight = (left * scale) @ right / side + NOISE / side * rng.standard_normal((side, side), np.float32)
    layer = nn.Linear(side, side)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(rng.standard_normal(side, np.float32) * weight.std()))
    inputs = rng.standard_normal((SAMPLES, side), np.float32)
    return Recipe(layer, (torch.zeros(1, side),), {"x": inputs})
