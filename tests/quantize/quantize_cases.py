"""Layers with decaying spectra on correlated inputs, and their exact pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgepack.factorize import whitened
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array, InputSpread, Moments, Spectrum


@dataclass(frozen=True)
class Case:
    layer: View
    inputs: Array
    covariance: Array
    mean: Array
    spectrum: Spectrum

    def factors(self, rank: int) -> Replacement:
        return whitened.factors(self.layer, self.spectrum, rank)

    def error(self, A: Array, B: Array) -> float:
        """tr(ΔW C ΔWᵀ) as a share of the layer's output energy."""
        weight = self.layer.weight.astype(np.float64)
        delta = weight - A.astype(np.float64) @ B
        return float(((delta @ self.covariance) * delta).sum() / ((weight @ self.covariance) * weight).sum())


def case(out: int, columns: int, seed: int, *, rows: int = 2000, power: float = 1.0) -> Case:
    rng = np.random.default_rng(seed)
    side = min(out, columns)
    u = np.linalg.qr(rng.standard_normal((out, side)))[0]
    v = np.linalg.qr(rng.standard_normal((columns, side)))[0]
    weight = ((u * np.arange(1, side + 1) ** -power) @ v.T).astype(np.float32)
    mixing = np.linalg.qr(rng.standard_normal((columns, columns)))[0] * np.arange(1, columns + 1) ** -0.5
    x = rng.standard_normal((rows, columns)) @ mixing.T + 0.2 * rng.standard_normal(columns)
    mean, second = x.mean(axis=0), x.T @ x / rows
    spans = x.max(axis=1).clip(min=0) - x.min(axis=1).clip(max=0)
    seen = Moments(rows, mean, second, float(x.min()), float(x.max()), float(np.sqrt(np.mean(spans**2))))
    layer = View("l", weight, rng.standard_normal(out).astype(np.float32), seen)
    spread = InputSpread(seen.variance, seen.low, seen.high, seen.row_range)
    spectrum = replace(whitened.spectrum(layer), inputs=spread)
    return Case(layer, x, whitened.shrunk_covariance(seen), mean, spectrum)
