"""What a finished model's compressed layers are, in edgepack's own terms: to be written, counted or measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.model.replacement import Replacement, low_rank

if TYPE_CHECKING:
    from torch.nn import Module


def parts(model: Module) -> dict[str, Replacement]:
    """Trained pairs and layers stored in code, by module name; float32 copies. Other layers are left out."""
    from edgepack.training.constexpr import ConstexprLinear
    from edgepack.training.modules import FactoredLinear

    found: dict[str, Replacement] = {}
    for name, module in model.named_modules():
        if isinstance(module, ConstexprLinear):
            found[name] = module.to_constexpr()
        elif isinstance(module, FactoredLinear):
            a, b = (module[i].weight.detach().float().cpu().numpy().copy() for i in (1, 0))
            bias = None if module.bias is None else module.bias.detach().float().cpu().numpy().copy()
            found[name] = low_rank(a, b, bias)
    return found
