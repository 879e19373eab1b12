"""How far a student's answers are from the teacher's; no labels needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TEMPERATURE = 2.0
SMALLEST_SHARE = 1e-12
LAYER_WEIGHT = 0.5
"""Of the mean layer-wise error beside the error of the answer."""

TaskLoss = Callable[["Tensor", "Tensor"], "Tensor"]
"""(student, teacher) → scalar."""


def class_loss(reference: Tensor) -> TaskLoss:
    """KL divergence of the softened class shares at T = 2, times T² (Hinton, Vinyals and Dean, 2015).

    Args:
        reference: teacher outputs (…, classes): logits, or probabilities, which count as the logits behind them.
    """
    import torch
    from torch.nn.functional import log_softmax

    sums = reference.sum(-1)
    shares = bool((reference >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)

    def softened(scores: Tensor) -> Tensor:
        scores = scores.clamp_min(SMALLEST_SHARE).log() if shares else scores
        return log_softmax(scores / TEMPERATURE, dim=-1).reshape(-1, scores.shape[-1])

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        wanted, found = softened(teacher), softened(student)
        return (wanted.exp() * (wanted - found)).sum(-1).mean() * TEMPERATURE**2

    return loss


def feature_loss(reference: Tensor) -> TaskLoss:
    """Mean squared error, as a share of how much the teacher's features (samples, …) vary from sample to sample."""
    import torch

    power = float(reference.square().mean())
    variance = float((reference - reference.mean(0)).square().mean())
    scale = max(variance, 1e-6 * power, float(torch.finfo(torch.float32).tiny))

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().mean() / scale

    return loss


def layer_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over layers of the squared error of their outputs, each as a share of the output's variance."""
    import torch

    parts = [
        (s - t).square().mean() / t.var(correction=0).clamp_min(torch.finfo(torch.float32).eps)
        for s, t in zip(student, teacher, strict=True)
    ]
    return torch.stack(parts).mean()
