"""Which layers of a model are to be compressed, at which ranks, and why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.errors import UsageError
from edgepack.model.structure import RANK_TILE
from edgepack.plan.candidates import asked_rank

if TYPE_CHECKING:
    from torch.nn import Linear, Module

Layers = Sequence[str] | Callable[[str, Any], bool] | None
"""Names of layers, or a predicate on name and module, or None for all."""

Places = tuple[tuple["Module", str], ...]
"""(parent, name there) of every place where one module stands."""

Rank = int | float | Mapping[str, int | float]
"""A rank, or a share of a layer's weights, for all layers or by name."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


@dataclass(frozen=True)
class Chosen:
    """A layer to be compressed.

    Attributes:
        name: its first name in the model.
        layer: a plain `torch.nn.Linear`.
        rank: of its factors; a share of its weights where the compressor works by share.
        places: all of them: a shared layer stands in several.
    """

    name: str
    layer: Linear
    rank: int | float
    places: Places


def choose(
    model: Module, layers: Layers, rank: Rank, *, by_share: bool = False
) -> tuple[tuple[Chosen, ...], dict[str, str]]:
    """Layers to compress, and why other linear layers are left as they are, by name.

    Args:
        model: the model.
        layers: which are asked for.
        rank: of the factors, or the share of the weights, also by name.
        by_share: whether the compressor is to be given a share instead of a rank.

    Raises:
        UsageError: a layer that was named cannot be compressed, or none can.
    """
    import torch

    _check_rank(rank)
    if isinstance(model, torch.nn.Linear):
        raise UsageError("the model is a single linear layer", hint="give torch.nn.Sequential(layer) instead")
    modules = dict(model.named_modules())
    wanted = _wanted(model, modules, layers)
    named = wanted is not None and not callable(layers)
    owners = Counter(id(p) for module in modules.values() for p in module._parameters.values() if p is not None)
    chosen, skipped = [], {}
    for name, module in modules.items():
        asked_for = isinstance(module, torch.nn.Linear) if wanted is None else name in wanted
        if not asked_for:
            continue
        found = _unfit(module, owners) or (
            _share_of(name, module, rank) if by_share else _rank_of(name, module, rank, named=named)
        )
        if not isinstance(found, str):
            chosen.append(Chosen(name, module, found, _places(modules, module)))
            continue
        skipped[name] = found
        if named:
            raise UsageError(f"layer {name!r} cannot be compressed: {skipped[name]}", hint="leave it out of `layers`")
    if not chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise UsageError(
            f"no layer to compress ({reasons or 'there is no torch.nn.Linear in the model'})",
            hint="give a smaller rank, or other layers",
        )
    return tuple(chosen), skipped


def _check_rank(rank: Rank) -> None:
    for value in rank.values() if isinstance(rank, Mapping) else (rank,):
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not whole and not (isinstance(value, float) and 0 < value < 1):
            raise UsageError(f"rank={value!r}: a whole number from 1 on, or a share of the weights between 0 and 1")


def _wanted(model: Module, modules: Mapping[str, Module], layers: Layers) -> set[str] | None:
    """First names of the layers asked for; None where the choice is free."""
    if layers is None:
        return None
    if callable(layers):
        import torch

        return {n for n, module in modules.items() if isinstance(module, torch.nn.Linear) and layers(n, module)}
    if isinstance(layers, str):
        raise UsageError(f"layers={layers!r} is one string", hint="give a list of names")
    first = {id(module): name for name, module in modules.items()}
    every = dict(model.named_modules(remove_duplicate=False))
    unknown = [name for name in layers if name not in every]
    if unknown:
        import torch

        linear = [name for name, module in every.items() if isinstance(module, torch.nn.Linear)]
        raise UsageError(
            f"the model has no layer {unknown[0]!r}", hint=f"its linear layers: {', '.join(linear[:20]) or 'none'}"
        )
    return {first[id(every[name])] for name in layers}


def _unfit(module: Module, owners: Mapping[int, int]) -> str | None:
    """Why this module cannot be compressed; None if it can."""
    import torch
    from torch.nn.utils.parametrize import is_parametrized

    if is_parametrized(module) or "weight_g" in module._parameters or "weight_orig" in module._parameters:
        return "its weight is computed by a parametrization (weight norm, spectral norm, pruning); remove that first"
    if type(module) is not torch.nn.Linear:
        return (
            f"it is a {type(module).__name__}, which may use its weight in ways of its own; only torch.nn.Linear is fit"
        )
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return "hooks are registered on it, which would be lost"
    parameters = [p for p in (module.weight, module.bias) if p is not None]
    if any(owners[id(p)] > 1 for p in parameters):
        return "it shares a parameter with another layer (tied weights)"
    if module.weight.is_meta or not module.weight.is_floating_point():
        return f"its weight is {module.weight.dtype} on {module.weight.device}, floats with values were expected"
    return None


def _rank_of(name: str, layer: Linear, rank: Rank, *, named: bool) -> int | str:
    """The layer's rank, or why it stays dense."""
    asked = rank.get(name) if isinstance(rank, Mapping) else rank
    if asked is None:
        return "no rank is given for it"
    out_features, in_features = layer.weight.shape
    found = asked_rank(out_features, in_features, asked)
    if isinstance(found, int) and isinstance(asked, float) and found < RANK_TILE and not named:
        # A share of a layer with few outputs, a classifier's last one, is rank 2 or 3: fatal, and little gained.
        return f"a share of {asked} is rank {found}, less than a kernel's tile of {RANK_TILE}"
    return found


def _share_of(name: str, layer: Linear, rank: Rank) -> float | str:
    """The share of the layer's weights, or why it stays dense; of a rank, the share that its factors would have."""
    asked = rank.get(name) if isinstance(rank, Mapping) else rank
    if asked is None:
        return "no rank or share is given for it"
    if isinstance(asked, float):
        return asked
    out_features, in_features = layer.weight.shape
    share = asked * (out_features + in_features) / (out_features * in_features)
    return share if share < 1 else f"factors of rank {asked} would have {share:.0%} of its weights"


def _places(modules: Mapping[str, Module], wanted: Module) -> Places:
    return tuple((parent, key) for parent in modules.values() for key, m in parent._modules.items() if m is wanted)


def place(module: Module, places: Places) -> None:
    """Put the module wherever a layer stood."""
    for parent, key in places:
        parent._modules[key] = module
