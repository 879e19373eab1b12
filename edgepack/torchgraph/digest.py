"""What tells one torch program from another: what it computes, without notes of where it was written."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from edgepack.torchgraph.linears import attribute

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule, Node


def program_digest(module: GraphModule) -> str:
    """SHA-256 (hex) of a graph's inputs, operators and constants. The same program gives the same digest anywhere."""
    total = hashlib.sha256()
    _update(total, module)
    return total.hexdigest()


def _update(total: hashlib._Hash, module: GraphModule) -> None:
    import torch

    for node in module.graph.nodes:
        total.update(repr((node.op, _target(node), node.name, node.args, node.kwargs)).encode())
        value = attribute(module, str(node.target)) if node.op == "get_attr" else node.meta.get("val")
        if isinstance(value, torch.fx.GraphModule):
            _update(total, value)
        elif isinstance(value, torch.Tensor):
            total.update(repr((value.dtype, tuple(value.shape))).encode())
            if node.op == "get_attr":
                total.update(_content(value))


def _target(node: Node) -> str:
    """Without addresses in memory."""
    target = node.target
    return str(target) if isinstance(target, str) or not hasattr(target, "__qualname__") else target.__qualname__


def _content(tensor: Tensor) -> bytes:
    import torch

    content: bytes = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return content
