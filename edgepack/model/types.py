"""The vocabulary that the stages exchange: frozen dataclasses, units in their names."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgepack.model.scheme import Activations, FileScheme, Scheme
from edgepack.model.structure import Op, Structure

Array = npt.NDArray[Any]
Aim = Literal["balanced", "latency", "size"]
"""What is least in a plan."""


@dataclass(frozen=True)
class Recipe:
    """What a model file written in Python hands over.

    Attributes:
        model: a `torch.nn.Module` in any mode (it is put in eval mode), or a `keras.Model` on Keras's torch backend.
        example_inputs: tuple of tensors; their shapes and batch are those of the emitted files.
        calibration: one array per model input, in the inputs' order or by name, first axis = samples, and an
            optional `y` with labels: `{"x": (N, …), "y": (N,)}`. Or an iterable of input tuples.
        evaluate: `evaluate(predict) -> float`, higher is better, accuracy in percent. `predict(*arrays)` takes
            numpy arrays with any number of samples on the first axis and returns the first output.
    """

    model: Any
    example_inputs: tuple[Any, ...]
    calibration: Mapping[str, Array] | Iterable[tuple[Array, ...]] | None = None
    evaluate: Callable[[Callable[..., Array]], float] | None = None


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model. `shape` holds None where a dimension is dynamic; `dtype` is numpy's."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Moments:
    """Statistics of one layer's input over the calibration rows.

    Attributes:
        count: rows seen.
        mean: (in,) float64.
        second: (in, in) float64, the raw second moment E[x xᵀ].
        low, high: the smallest and largest input value seen.
        row_range: root mean square over the rows of max(row, 0) − min(row, 0), what a grid chosen per row has to cover.
        shrinkage: λ of the covariance where it was chosen on held-out rows; None for the rule by their number.
    """

    count: int
    mean: Array
    second: Array
    low: float
    high: float
    row_range: float = 0.0
    shrinkage: float | None = None

    @property
    def covariance(self) -> Array:
        """(in, in) float64: E[(x − μ)(x − μ)ᵀ]."""
        covariance = self.second.copy()
        for row, mean in zip(covariance, self.mean, strict=True):  # row by row: an outer product would be a second copy
            row -= mean * self.mean
        return covariance

    @property
    def variance(self) -> Array:
        """(in,) float64: the diagonal of the covariance."""
        return np.asarray(np.diag(self.second) - np.square(self.mean))


@dataclass(frozen=True)
class InputSpread:
    """What is kept of a layer's input to predict quantization noise: `Moments` without its matrix.

    Attributes:
        variance: (in,) float64.
        low, high: the smallest and largest input value seen.
        row_range: see `Moments`.
        innovation: share of the variance that no linear prediction of an input from those before it explains: what is
            left of rounding errors when later weights make up for earlier ones. 1 where nothing is known.
    """

    variance: Array
    low: float
    high: float
    row_range: float
    innovation: float = 1.0

    @property
    def spans(self) -> dict[Activations, float]:
        """What an int8 grid of the input covers, by how it is quantized."""
        return {"float": 0.0, "static": max(self.high, 0.0) - min(self.low, 0.0), "dynamic": self.row_range}


@dataclass(frozen=True)
class Spectrum:
    """One decomposition of a layer: the error curve over all ranks, or over those up to the largest that is wanted.

    Attributes:
        basis: (out, k) float32, orthonormal columns; the rank-r factors are `basis[:, :r]` and `basis[:, :r].T @ W`.
            With a `dual` the columns need not be orthonormal, and the second factor is `dual[:, :r].T @ W`.
        energies: (k,) float64, descending: the output energy σ_k² that each column carries.
        mean: (in,) float64, the mean input that the bias correction uses; None where the data were not looked at.
        inputs: of the same data; None where they were not looked at.
        dual: (out, k) float32 with dualᵀ basis = I, where the projection is oblique; None where the basis is its own.
        rest: output energy beyond the k columns, where these are not all.
    """

    basis: Array
    energies: Array
    mean: Array | None = None
    inputs: InputSpread | None = None
    dual: Array | None = None
    rest: float = 0.0

    @property
    def projection(self) -> Array:
        """(out, k) float32: of W it is what the second factor holds. The dual, or the basis that is its own."""
        return self.basis if self.dual is None else self.dual

    def lost_share(self) -> Array:
        """(k + 1,) float64: share of output energy lost at rank 0 … k."""
        total = float(self.energies.sum()) + self.rest
        if total <= 0.0:
            return np.zeros(len(self.energies) + 1)
        tail = np.concatenate([np.cumsum(self.energies[::-1])[::-1], [0.0]]) + self.rest
        return np.clip(tail / total, 0.0, 1.0)


WeightedBy = Literal["output gradients", "measured noise", "output energy"]
"""What predicted losses of layers are weighed by."""


@dataclass(frozen=True)
class Curvature:
    """What errors at one layer's output cost.

    Attributes:
        moment: G, (out, out) float64: mean over samples of Σ over rows g gᵀ, g the gradient at the output.
        truncation: (k + 1,) float64, what the pair of each rank 0 … k costs, never rising; None without a spectrum, and
            where the layer adds something that is no constant.
    """

    moment: Array
    truncation: Array | None = None


@dataclass(frozen=True)
class Alternative:
    """What another method than the build's own decomposition makes of a layer.

    Attributes:
        method: its name.
        share: of the layer's weights: the bytes that it was allowed, as a share of one byte per weight.
        parameters: numbers that are stored, of any width; bias apart.
    """

    method: str
    share: float
    parameters: int


@dataclass(frozen=True)
class Candidate:
    """One way to write one layer in one format: what the solver chooses from.

    Attributes:
        scheme: how its matrices are stored.
        structure: how it is arranged.
        ops: the products of the structure.
        loss: predicted, quantization included; adds up over the layers of one model, 0 for nothing lost.
        size_bytes: of its weights, scales and bias in the file.
        ram_bytes: of memory that the runtime takes for them at its peak.
        latency_s: of one inference of the layer, all of its places together.
        source: where `latency_s` comes from.
        alternative: what it is by another method; None for the dense layer and the pairs of the decomposition.
    """

    scheme: Scheme
    structure: Structure
    ops: tuple[Op, ...]
    loss: float
    size_bytes: int
    ram_bytes: int
    latency_s: float
    source: str = ""
    alternative: Alternative | None = None


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of one layer.

    Attributes:
        dense: the products of the layer as it is.
        structure: what stands in its place.
        ops: the products of the structure.
        reason: why, in one sentence.
        scheme: how it is written where that is not the scheme of the whole file; None where it is.
        predicted: the candidate that was chosen, with its figures; None where nothing was chosen from.
        others: the best candidate of each other kind: dense in fp32, int8 and int4, and the pair.
        alternative: see `Candidate`.
        shares: names of the layers that have one B, itself among them, in graph order; empty where it has its own. B is
            one of the `ops` of the first of them, and of no other.
    """

    layer: str
    dense: tuple[Op, ...]
    structure: Structure
    ops: tuple[Op, ...]
    break_even_rank: int
    lost_energy_share: float
    reason: str
    scheme: Scheme | None = None
    predicted: Candidate | None = None
    others: tuple[Candidate, ...] = ()
    alternative: Alternative | None = None
    shares: tuple[str, ...] = ()

    @property
    def rank(self) -> int | None:
        """Of its low-rank factors; None where there are none."""
        return self.structure.rank

    @property
    def dense_parameters(self) -> int:
        """Weight parameters of the layer as it is."""
        return sum(op.weights for op in self.dense)

    def scheme_in(self, file: FileScheme) -> Scheme:
        """How it is written in a file of this scheme."""
        return file.layers if self.scheme is None else self.scheme

    @property
    def weight_parameters(self) -> int:
        """Weight parameters after the plan (biases apart)."""
        if self.alternative is not None:
            return self.alternative.parameters
        return sum(op.weights for op in self.ops)


@dataclass(frozen=True)
class Product:
    """One operator that multiplies by a constant matrix, in a file or in what a runtime makes of it.

    Attributes:
        name: in ONNX of the constant, in TFLite of the tensor that the operator writes: unique in a file that edgepack
            wrote, and what `Written` calls it.
        sides: of the matrix, the smaller one first.
        bits: per element.
        content: of the matrix, whatever its order and padding; equal for two operators with the same numbers.
        behind: indices of the products whose results it takes, with no other product between.
    """

    name: str
    sides: tuple[int, int]
    bits: int
    content: Hashable
    behind: frozenset[int]


@dataclass(frozen=True)
class Written:
    """What a file got.

    Attributes:
        schemes: of its linear layers, where that is known: a backend may leave one wider than it was asked for.
        products: by layer name, what the `Product` of each of its matrices is called, in all its places; layers that
            stay as they are may be absent.
    """

    schemes: Mapping[str, Scheme]
    products: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Contents:
    """What a model file holds of its linear layers, read back from the file itself.

    Attributes:
        weights: (smaller side, larger side, bits per element) of every constant matrix of a matmul-like operator.
        products: every such operator, in graph order.
        vectors: every one-dimensional constant as float; integer biases scaled back.
    """

    weights: tuple[tuple[int, int, int], ...]
    vectors: tuple[Array, ...]
    products: tuple[Product, ...] = ()


@dataclass(frozen=True)
class Proof:
    """One property of an emitted file, shown or not, with the figures behind it.

    Attributes:
        layers: by name, those that it failed for, and why; empty where it is about the whole file.
    """

    name: str
    passed: bool
    detail: str
    layers: Mapping[str, str] = field(default_factory=dict)
