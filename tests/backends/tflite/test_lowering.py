"""Operators that LiteRT has not, in others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.runtime import load, signature
from edgepack.sources.torch import export_program, save_program


def assert_alike(emitter: TfliteEmitter, model: nn.Module, inputs: tuple[torch.Tensor, ...], folder: Path) -> None:
    save_program(export_program(model, inputs), folder / "m.pt2")
    emitter.load_program(folder / "m.pt2")
    emitter.emit(folder / "m.tflite")
    feed = dict(zip(signature(folder / "m.tflite")[1], (each.numpy() for each in inputs), strict=True))
    for have, want in zip(load(folder / "m.tflite", threads=1).run(feed), model(*inputs), strict=True):
        np.testing.assert_array_equal(have, want.numpy())


class Narrow(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.maximum(a, b), torch.minimum(a, b)


class Arithmetic(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return a + b, a - b, a * b, a < b, a <= b, a == b


class Halves(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.maximum(a, b), torch.minimum(a, b), a.abs(), a > b, a.isnan(), b.isinf()


class Codes(nn.Module):
    """Bits of numbers as integers, and the other way round."""

    def forward(self, x: torch.Tensor, n: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.view(torch.int32), n.view(torch.float32)


class Inverse(nn.Module):
    """Of an order: where each element went."""

    def forward(self, order: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.zeros_like(order).scatter(1, order, places),)


class Bits(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return a & b, a | b, a ^ b


class Truth(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return a & b, a | b, a ^ b, torch.logical_xor(a, b)


class Smaller(nn.Module):
    """Every second pixel, two of three, and each one twice."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(functional.interpolate(x, size) for size in ([3, 3], [4, 6], [12, 6]))


class Places(nn.Module):
    """Largest values with their indices: windows that overlap, with pads, with gaps."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        overlapping, places = functional.max_pool2d(x, 3, 1, 1, return_indices=True)
        apart, others = functional.max_pool2d(x, (2, 3), dilation=(2, 1), return_indices=True)
        return overlapping, places, apart, others


def test_narrow_integers_have_extremes(emitter: TfliteEmitter, tmp_path: Path) -> None:
    for dtype in (torch.int8, torch.uint8):
        least, most = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        values = tuple(torch.randint(least, most + 1, (2, 9), dtype=dtype) for _ in range(2))
        assert_alike(emitter, Narrow(), values, tmp_path)


def test_narrow_integers_are_computed_with_and_compared(emitter: TfliteEmitter, tmp_path: Path) -> None:
    for dtype in (torch.int8, torch.uint8):
        least, most = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        values = tuple(torch.randint(least, most + 1, (2, 40), dtype=dtype) for _ in range(2))
        assert_alike(emitter, Arithmetic(), values, tmp_path)


def test_halves_are_compared(emitter: TfliteEmitter, tmp_path: Path) -> None:
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 1.0])
    first, second = special.repeat_interleave(5), special.repeat(5)
    assert_alike(emitter, Halves(), (first.half(), second.half()), tmp_path)


def test_bits_are_read_as_another_type(emitter: TfliteEmitter, tmp_path: Path) -> None:
    x = torch.tensor([1.0, -2.5, 0.0, 3e38])
    assert_alike(emitter, Codes(), (x, x.view(torch.int32).flip(0).clone()), tmp_path)


def test_integers_are_scattered(emitter: TfliteEmitter, tmp_path: Path) -> None:
    order = torch.tensor([[2, 0, 1]])
    assert_alike(emitter, Inverse(), (order, torch.arange(3).unsqueeze(0)), tmp_path)


def test_bits_are_joined(emitter: TfliteEmitter, tmp_path: Path) -> None:
    for dtype in (torch.int32, torch.uint8):
        least, most = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        ends = torch.tensor([least, most, 0, 1, most - 1], dtype=dtype)
        first, second = (torch.randint(least, most, (20,), dtype=dtype) for _ in range(2))
        values = torch.cat([ends.repeat_interleave(5), first]), torch.cat([ends.repeat(5), second])
        assert_alike(emitter, Bits(), values, tmp_path)


def test_truth_values_are_joined(emitter: TfliteEmitter, tmp_path: Path) -> None:
    values = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    assert_alike(emitter, Truth(), values, tmp_path)


def test_nearest_pixels_are_those_of_torch(emitter: TfliteEmitter, tmp_path: Path) -> None:
    assert_alike(emitter, Smaller(), (torch.randn(1, 2, 6, 6),), tmp_path)


def test_largest_values_are_where_indices_say(emitter: TfliteEmitter, tmp_path: Path) -> None:
    assert_alike(emitter, Places(), (torch.randn(2, 3, 7, 6),), tmp_path)
