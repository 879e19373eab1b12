"""Fourier transforms, as products with matrices of sines and cosines; mel spectra."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from edgepack.model.types import Array
from edgepack.torchgraph.onnx.node import Node, Operator, bounded, listed, operator
from edgepack.torchgraph.onnx.types import dtype_of


def _waves(samples: int, frequencies: int, length: int, sign: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (samples, frequencies) of a transform of that length."""
    turns = np.outer(np.arange(samples), np.arange(frequencies)) % length
    angles = sign * 2 * np.pi * turns / length
    return torch.from_numpy(np.cos(angles)), torch.from_numpy(np.sin(angles))


def _transformed(node: Node, x: Tensor, length: int, frequencies: int, *, inverse: bool) -> Tensor:
    """Of x (…, samples, 1 or 2): (…, frequencies, 2)."""
    x = x[..., :length, :]
    bounded(node, [x.shape[-2], frequencies])
    cosine, sine = (each.to(x.dtype) for each in _waves(x.shape[-2], frequencies, length, 1 if inverse else -1))
    real = x[..., 0]
    in_phase, turned = torch.matmul(real, cosine), torch.matmul(real, sine)
    if x.shape[-1] == 2:
        imaginary = x[..., 1]
        in_phase = in_phase - torch.matmul(imaginary, sine)
        turned = turned + torch.matmul(imaginary, cosine)
    result = torch.stack([in_phase, turned], -1)
    return result / length if inverse else result


def _dft(node: Node, x: Tensor, length: Array | None = None, axis: Array | None = None) -> Tensor:
    along = (listed(axis)[0] if axis is not None else -2) if node.version >= 20 else node.integer("axis", 1)
    along, inverse, half = along % x.dim(), node.flag("inverse"), node.flag("onesided")
    whole = 2 * (x.shape[along] - 1) if inverse and half else x.shape[along]
    size = listed(length)[0] if length is not None else whole
    values = torch.movedim(x, along, -2)
    if inverse and half:
        # What is left out are the conjugates of what is there.
        rest = torch.flip(values[..., 1 : size - values.shape[-2] + 1, :], [-2])
        values = torch.cat([values, rest * torch.tensor([1.0, -1.0], dtype=x.dtype)], -2)
        return torch.movedim(_transformed(node, values, size, size, inverse=True)[..., :1], -2, along)
    result = _transformed(node, values, size, size // 2 + 1 if half else size, inverse=inverse)
    return torch.movedim(result, -2, along)


def _stft(node: Node, signal: Tensor, step: Array, window: Tensor | None = None, length: Array | None = None) -> Tensor:
    if length is None and window is None:
        raise node.error("has neither a window nor a length of frames")
    size = listed(length)[0] if length is not None else len(window) if window is not None else 0
    half = node.flag("onesided", 1)
    frames = signal.unfold(1, size, listed(step)[0])  # (signals, frames, 1 or 2, size)
    frames = frames.unsqueeze(2) if signal.dim() == 2 else frames
    frames = frames if window is None else frames * window
    return _transformed(node, frames.swapaxes(-1, -2), size, size // 2 + 1 if half else size, inverse=False)


def _mel_weights(node: Node, bins: Array, length: Array, rate: Array, lowest: Array, highest: Array) -> Tensor:
    """Triangles (frequencies, mel bins), each from the middle of the one before to the middle of the next."""
    count, size = listed(bins)[0], listed(length)[0]
    dtype = dtype_of(node.integer("output_datatype", 1), node.label)
    bounded(node, [size // 2 + 1, count + 2])
    low, high = (2595 * np.log10(1 + float(each.reshape(-1)[0]) / 700) for each in (lowest, highest))
    hertz = 700 * (10 ** ((np.arange(count + 2) * ((high - low) / (count + 2)) + low) / 2595) - 1)
    places = ((size + 1) * hertz // listed(rate)[0]).astype(np.int64)
    start, middle, end = places[:-2], places[1:-1], places[2:]
    at = np.arange(size // 2 + 1)[:, None]
    rising = (
        np.where(middle > start, (at - start) / np.maximum(middle - start, 1), 1.0) * (start <= at) * (at <= middle)
    )
    falling = (end - at) / np.maximum(end - middle, 1) * (middle <= at) * (at < end)
    return torch.from_numpy(np.where((middle <= at) & (end > middle), falling, rising)).to(dtype)


SIGNALS: Mapping[str, Operator] = {
    "DFT": operator(_dft, 1, 2),
    "MelWeightMatrix": operator(_mel_weights, 0, 1, 2, 3, 4),
    "STFT": operator(_stft, 1, 3),
}
