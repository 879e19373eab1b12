"""Where to start a layer in code that is trained from scratch: random numbers of the right size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgepack.errors import UsageError

if TYPE_CHECKING:
    from edgepack.training.constexpr import ConstexprLinear

_STEPS = 4


def random_start(module: ConstexprLinear, *, seed: int = 0, std: float | None = None) -> ConstexprLinear:
    """Draw the trained constants anew, such that the layer's weight has a given size; the bias becomes 0.

    Every constant is drawn from N(0, 1), then all are scaled alike. What a weight of products of several constants
    needs of that follows from how its size grows with theirs. Activations keep their scale through such a layer as
    through a dense one, whose variance per output it has (Glorot and Bengio, 2010; He et al., 2015).

    Args:
        module: changed in place.
        seed: of the numbers.
        std: root mean square of the weight's entries, zeros included; by default √(2 / in), for rectifiers.

    Raises:
        UsageError: the weight does not depend on the constants, as it does not where all of their products are zero.
    """
    import torch

    std = math.sqrt(2 / module.in_features) if std is None else std
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.constants.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        if module.bias is not None:
            module.bias.zero_()
        for _ in range(_STEPS):
            size = _size(module)
            _scale(module, 2.0)
            degree = math.log2(_size(module) / size) if size > 0 else 0.0
            if not degree > 0:
                raise UsageError("random_start: the layer's weight does not grow with its numbers")
            _scale(module, 0.5 * (std / size) ** (1 / degree))
    return module


def _size(module: ConstexprLinear) -> float:
    return float(module.weight.double().square().mean().sqrt())


def _scale(module: ConstexprLinear, factor: float) -> None:
    for parameter in module.constants.parameters():
        parameter.mul_(factor)
