"""Operators of ai.onnx.ml that compute with numbers: what scikit-learn's scalers and linear models become."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from edgepack.torchgraph.onnx.node import Node, Operator, operator

_NORMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "MAX": lambda x: x.amax(-1, True),
    "L1": lambda x: x.abs().sum(-1, True),
    "L2": lambda x: x.square().sum(-1, True).sqrt(),
}
_AFTERWARDS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "NONE": lambda scores: scores,
    "LOGISTIC": torch.sigmoid,
    "SOFTMAX": lambda scores: torch.softmax(scores, -1),
}


def _vector(node: Node, name: str, like: Tensor) -> Tensor:
    return torch.tensor(node.numbers(name), dtype=torch.float32, device=like.device)


def _scaler(node: Node, x: Tensor) -> Tensor:
    offset, scale = (_vector(node, name, x) if node.has(name) else None for name in ("offset", "scale"))
    x = x.float() if offset is None else x.float() - offset
    return x if scale is None else x * scale


def _normalizer(node: Node, x: Tensor) -> Tensor:
    x = x.float()
    norm = _NORMS[node.text("norm", "MAX", tuple(_NORMS))](x)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


def _binarizer(node: Node, x: Tensor) -> Tensor:
    return (x > node.number("threshold", 0.0)).to(x.dtype)


def _extractor(node: Node, x: Tensor, places: Tensor) -> Tensor:
    """Of a vector one row, as the operator's own definition has it."""
    found = torch.index_select(x, -1, places.reshape(-1))
    return found.reshape(1, -1) if x.dim() == 1 else found


def _regressor(node: Node, x: Tensor) -> Tensor:
    targets = node.integer("targets", 1)
    weights = _vector(node, "coefficients", x).reshape(targets, -1)
    bias = _vector(node, "intercepts", x) if node.has("intercepts") else None
    return _after(node, functional.linear(x.float(), weights, bias))


def _after(node: Node, scores: Tensor) -> Tensor:
    return _AFTERWARDS[node.text("post_transform", "NONE", tuple(_AFTERWARDS))](scores)


CLASSICAL: Mapping[str, Operator] = {
    "ArrayFeatureExtractor": operator(_extractor),
    "Binarizer": operator(_binarizer),
    "LinearRegressor": operator(_regressor),
    "Normalizer": operator(_normalizer),
    "Scaler": operator(_scaler),
}
