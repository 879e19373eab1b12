"""Operators of torch that the converter or LiteRT has not, in others that they have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.torchgraph.factor import copied

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.fx import GraphModule, Node


def lowerable(module: GraphModule) -> GraphModule:
    """A graph that computes the same; the given one is not changed, parameters are shared.

    Global max pools become a maximum over the same axes; pools whose indices are read are computed from all places of a
    window side by side; nearest neighbours that LiteRT would choose in another way are picked by their places; what has
    no kernel for narrow numbers is computed in wider ones; bits are joined by sums.
    """
    found = {node.name: other for node in module.graph.nodes if (other := _substitute(node)) is not None}
    if not found:
        return module
    copy = copied(module)
    for node in copy.graph.nodes:
        node.target = found.get(node.name, node.target)
    # Unused indices are still taken out of a pool's result.
    copy.graph.eliminate_dead_code()
    copy.recompile()
    return copy


def _substitute(node: Node) -> Callable[..., Any] | None:
    """What computes the same as a node; None where the node may stay."""
    return _SUBSTITUTES[name](node) if (name := str(node.target)) in _SUBSTITUTES else None


def _pool(node: Node) -> Callable[..., Any] | None:
    """For one that gives a single place, and no index."""
    sizes = node.args[1]
    is_value = all(user.args[1] == 0 or not user.users for user in node.users)
    return _largest if is_value and all(size == 1 for size in ([sizes] if isinstance(sizes, int) else sizes)) else None


def _largest(x: Tensor, sizes: Any) -> tuple[Tensor]:
    return (x.amax(list(range(-len([sizes] if isinstance(sizes, int) else sizes), 0)), True),)


def _with_places(node: Node) -> Callable[..., Any] | None:
    """For a pool whose indices are read: the converter's own are wrong."""
    is_read = any(user.args[1] == 1 and user.users for user in node.users)
    rounds_up = len(node.args) > _CEIL_MODE and node.args[_CEIL_MODE]
    return _placed if is_read and not rounds_up else None


def _placed(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int] = (), pads: Sequence[int] = (0,), dilations: Any = (1,)
) -> tuple[Tensor, Tensor]:
    """Largest values, and where each stands in its plane: of the inputs of all windows side by side."""
    import torch

    axes = range(len(kernel))
    pads, dilations = (list(each) * (len(kernel) // len(each)) for each in (pads, dilations))
    wide = torch.nn.functional.pad(x, [pad for pad in reversed(pads) for _ in range(2)], value=-float("inf"))
    steps, sizes = strides or kernel, wide.shape[-len(kernel) :]
    counts = [(sizes[at] - (kernel[at] - 1) * dilations[at] - 1) // steps[at] + 1 for at in axes]
    offsets = [[each * dilations[at] for at, each in enumerate(place)] for place in np.ndindex(*kernel)]
    windows = [
        wide[(..., *(slice(first[at], first[at] + (counts[at] - 1) * steps[at] + 1, steps[at]) for at in axes))]
        for first in offsets
    ]
    together = torch.stack(windows, -1)
    which, where = together.argmax(-1), torch.zeros((), dtype=torch.long)
    for at in axes:
        offset = torch.tensor([first[at] - pads[at] for first in offsets])[which]
        start = torch.arange(counts[at]) * steps[at]
        where = where * x.shape[at - len(kernel)] + offset + start.reshape(-1, *[1] * (len(kernel) - at - 1))
    return together.amax(-1), where


def _nearest(node: Node) -> Callable[..., Any] | None:
    """LiteRT takes the pixel in the middle of what becomes one, torch the first of them."""
    before, after = node.args[0].meta["val"].shape[-2:], node.meta["val"].shape[-2:]
    first = [np.arange(new) * old // new for old, new in zip(before, after, strict=True)]
    middle = [(2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(before, after, strict=True)]
    if all(np.array_equal(*each) for each in zip(first, middle, strict=True)):
        return None

    def pick(x: Tensor, *_: Any, **__: Any) -> Tensor:
        import torch

        rows, columns = (torch.from_numpy(each) for each in first)
        return x.index_select(-2, rows).index_select(-1, columns)

    return pick


def _wider(node: Node, kinds: Mapping[torch.dtype, torch.dtype]) -> Callable[..., Any] | None:
    """The same operator in wider numbers.

    Args:
        kinds: types of operands, and the type that each is computed in.
    """
    from torch import Tensor

    found = {kinds.get(each.meta["val"].dtype) for each in node.all_input_nodes}
    if len(found) != 1 or None in found or node.kwargs:
        return None
    compute, dtype, (own,) = node.target, node.meta["val"].dtype, found

    def wide(*operands: Any) -> Tensor:
        result: Tensor = compute(*(each.to(own) if isinstance(each, Tensor) else each for each in operands))
        return result.to(dtype)

    return wide


def _widened(node: Node) -> Callable[..., Any] | None:
    """For narrow integers, in int32."""
    import torch

    return _wider(node, dict.fromkeys((torch.int8, torch.uint8, torch.int16), torch.int32))


def _exact(node: Node) -> Callable[..., Any] | None:
    """The same for what is equal in wider numbers: float16 in float32 as well."""
    import torch

    return _wider(node, {torch.float16: torch.float32}) or _widened(node)


def _scattered(node: Node) -> Callable[..., Any] | None:
    """The converter narrows integers of 64 bits everywhere but here."""
    import torch

    if node.meta["val"].dtype != torch.int64:
        return None

    def narrow(x: Tensor, axis: int, places: Tensor, updates: Tensor) -> Tensor:
        return torch.scatter(x.int(), axis, places, updates.int()).long()

    return narrow


def _bits(join: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Node], Callable[..., Any] | None]:
    """For integers, bits joined in int32."""

    def substitute(node: Node) -> Callable[..., Any] | None:
        import torch

        dtype = node.meta["val"].dtype

        def joined(a: Tensor, b: Tensor) -> Tensor:
            return join(a.int(), b.int()).to(dtype)

        return None if dtype == torch.bool else joined

    return substitute


def _both(a: Tensor, b: Tensor) -> Tensor:
    """a & b: a + b is a ^ b and twice that; without the last bit no sum is too large for an int32."""
    import torch

    half_a, half_b = (torch.div(each, 2, rounding_mode="floor") for each in (a, b))
    last = (a - 2 * half_a) * (b - 2 * half_b)
    return (half_a + half_b) - (half_a ^ half_b) + last


def _either(a: Tensor, b: Tensor) -> Tensor:
    """a | b."""
    return (a ^ b) + _both(a, b)


def _one_of_both(node: Node) -> Callable[..., Any] | None:
    """For truth values; narrow integers in int32."""
    import torch

    truth = all(each.meta["val"].dtype == torch.bool for each in node.all_input_nodes)
    return torch.ne if truth else _widened(node)


_CEIL_MODE = 5
"""Place of it among the arguments of a pool."""
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_SUBSTITUTES: Mapping[str, Callable[[Node], Callable[..., Any] | None]] = {
    **{f"aten.adaptive_max_pool{axes}d.default": _pool for axes in (1, 2, 3)},
    **{f"aten.max_pool{axes}d_with_indices.default": _with_places for axes in (2, 3)},
    **{f"aten.upsample_nearest2d.{kind}": _nearest for kind in ("vec", "default")},
    **{f"aten.{name}.{kind}": _widened for name in ("add", "sub", "mul") for kind in ("Tensor", "Scalar")},
    **{f"aten.{name}.{kind}": _exact for name in _COMPARISONS for kind in ("Tensor", "Scalar")},
    **{f"aten.{name}.default": _exact for name in ("maximum", "minimum", "abs", "isnan", "isinf")},
    "aten.scatter.src": _scattered,
    **dict.fromkeys(("aten.bitwise_and.Tensor", "aten.__and__.Tensor"), _bits(_both)),
    **dict.fromkeys(("aten.bitwise_or.Tensor", "aten.__or__.Tensor"), _bits(_either)),
    **dict.fromkeys(("aten.logical_xor.default", "aten.bitwise_xor.Tensor", "aten.__xor__.Tensor"), _one_of_both),
}
"""By operator: what computes the same, if that is needed."""
