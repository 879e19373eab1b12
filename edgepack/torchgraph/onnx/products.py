"""Matrix products."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from edgepack.torchgraph.onnx.node import Node, Operator, operator

_EQUATION = re.compile(r"(?:[A-Za-z, ]|\.{3}){0,200}(?:->(?:[A-Za-z ]|\.{3}){0,200})?")

_MOST_MINORS = 4
"""Rows of a matrix whose determinant is written out."""


def _matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    a = a.t() if node.flag("transA") else a
    weight = b if node.flag("transB") else b.t()
    if alpha == 1 and beta == 1 and a.is_floating_point() and (c is None or (c.dim() == 1 and len(c) == len(weight))):
        return functional.linear(a, weight, c)
    product = torch.matmul(a, weight.t())
    product = product if alpha == 1 else alpha * product
    if c is None or beta == 0:
        return product.to(a.dtype)
    return (product + (c if beta == 1 else beta * c)).to(a.dtype)


def _einsum(node: Node, *operands: Tensor) -> Tensor:
    equation = str(node.attributes.get("equation", ""))
    node.read.add("equation")
    if not _EQUATION.fullmatch(equation):
        raise node.error(f"has equation {equation[:80]!r}, letters, commas and an arrow were expected")
    return torch.einsum(equation, *operands)


def _determinant(node: Node, x: Tensor) -> Tensor:
    """Of small matrices by minors, since converters have no operator for it."""
    return torch.linalg.det(x) if x.shape[-1] > _MOST_MINORS else _by_minors(x)


def _by_minors(x: Tensor) -> Tensor:
    result, rest = x[..., 0, 0], x[..., 1:, :]
    if x.shape[-1] == 1:
        return result
    result = result * _by_minors(rest[..., 1:])
    for at in range(1, x.shape[-1]):
        term = x[..., 0, at] * _by_minors(torch.cat([rest[..., :at], rest[..., at + 1 :]], -1))
        result = result - term if at % 2 else result + term
    return result


PRODUCTS: Mapping[str, Operator] = {
    "Det": operator(_determinant),
    "Einsum": operator(_einsum),
    "Gemm": operator(_gemm),
    "MatMul": operator(_matmul),
}
