"""How one backend stores a weight and multiplies by it, as a value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from edgepack.model.structure import Op

Format = str
"""Name of a file format, which is the suffix of its files. `edgepack.backends.registry` has them all, and holds names
from outside against them."""

FLOAT_BITS, INT8_BITS = 32, 8
"""Of a weight that is stored as it came, and of the integers that everything is held against."""

Granularity = Literal["tensor", "channel", "block"]
Activations = Literal["float", "dynamic", "static"]
Scope = Literal["layer", "file"]

MIXED = "mixed"


@dataclass(frozen=True)
class Scheme:
    """One way in which a backend stores a weight and multiplies by it.

    Attributes:
        name: unique in its backend.
        backend: the file format that it belongs to.
        bits: per stored weight.
        granularity: what shares a scale: a whole tensor, an output channel, or a block of weights of one channel.
        activations: what the operator multiplies: floats, integers on a range found at run time, or on one that
            calibration found.
        qmax: largest weight code of a symmetric grid; 0 where weights are floats. Of schemes per channel in 8 bits the
            target may allow less.
        scope: whether a single layer can have it, or only a whole file.
        min_version: of the backend: the ONNX opset that brought the operators, the TFLite schema version.
        min_sqnr_db: tolerance of a file's answers, as signal over noise, against fp32 arithmetic on the same plan.
        bytes_per_channel: in the file, of scales and zero points.
        bytes_per_op: in the file, of the operators and names of one matrix, within a factor of two.
        ram_per_byte: peak bytes that the runtime holds per byte of the file.
        instructions_per_op: around one matrix, whatever its size.
        saturates: whether some CPUs add its products in too few bits, unless codes stay below `qmax`.
        correction: of low-rank factors that correct a dense matrix in this scheme; None where a layer cannot be both.
        estimated_like: a scheme of the same backend by whose estimates this one is estimated where a table of costs has
            nothing on it; None where it is then not offered.
    """

    name: str
    backend: Format
    bits: int
    granularity: Granularity
    activations: Activations
    qmax: int
    scope: Scope = "layer"
    min_version: int = 1
    min_sqnr_db: float = 60.0
    bytes_per_channel: int = 0
    bytes_per_op: int = 0
    ram_per_byte: float = 2.0
    instructions_per_op: float = 0.0
    saturates: bool = False
    correction: Scheme | None = field(default=None, repr=False)
    estimated_like: Scheme | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.name

    @property
    def key(self) -> str:
        """Unique over all backends: what a cache or a task calls it."""
        return f"{self.backend}:{self.name}"

    def qmax_within(self, allowed: int) -> int:
        """Largest weight code on a target whose kernels add without overflow up to the code `allowed`."""
        return min(allowed, self.qmax) if self.saturates else self.qmax

    @property
    def is_float(self) -> bool:
        """Whether weights are stored as float32."""
        return self.bits == FLOAT_BITS

    @property
    def computes_in_float(self) -> bool:
        """Whether an inference multiplies floats: weights of fewer bits are float32 by then, decoded at load."""
        return self.activations == "float"

    @property
    def bits_read(self) -> int:
        """Per weight, that an inference reads."""
        return FLOAT_BITS if self.computes_in_float else self.bits

    @property
    def is_static(self) -> bool:
        """Whether it needs ranges of the activations, and so calibration data."""
        return self.activations == "static"

    @property
    def is_constexpr(self) -> bool:
        """Whether weights are computed from stored constants when the file is loaded, or by operators of their own."""
        return self.name == CONSTEXPR

    @property
    def per_channel_int8(self) -> bool:
        """Whether weights have 8 bits with one scale per output channel."""
        return self.bits == INT8_BITS and self.granularity == "channel"


def precision_of(bits: int) -> str:
    """What weights of so many bits are called: `fp32`, `int8`, `int4` …"""
    return f"fp{bits}" if bits == FLOAT_BITS else f"int{bits}"


def bits_of(precision: str) -> int:
    """Undo `precision_of`."""
    return int(precision.removeprefix("fp").removeprefix("int"))


CONSTEXPR = "constexpr"
"""Name of the scheme of layers whose weights are computed from stored constants, in every backend."""


@dataclass(frozen=True)
class FileScheme:
    """How a file stores its weights, but for layers that have a scheme of their own.

    Attributes:
        layers: of linear layers.
        others: of the weights that stand outside of linear layers.
        single: of layers of other kinds, by name, where it is not that of the others.
        factored: by name, the product behind each of these layers that is low-rank factors.
    """

    layers: Scheme
    others: Scheme
    single: tuple[tuple[str, Scheme], ...] = ()
    factored: tuple[tuple[str, Op], ...] = ()

    @classmethod
    def of(cls, scheme: Scheme) -> FileScheme:
        """Everything as the scheme has it, as far as operators take it."""
        return cls(scheme, scheme)

    def __str__(self) -> str:
        return self.label([])

    def label(self, matrices: Iterable[Scheme]) -> str:
        """Name of the file's scheme for people, by the schemes of its layers' matrices: `mixed` where these differ."""
        schemes = set(matrices) or {self.layers}
        name = schemes.pop().name if len(schemes) == 1 else MIXED
        suffix = next((scheme for _, scheme in self.single), self.others)
        label = name if suffix == self.layers else f"{name}+{suffix}"
        return " ".join([label, *(f"rank {op.columns}" for _, op in self.factored)])

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """All that it names."""
        return (self.layers, self.others, *(scheme for _, scheme in self.single))


def scheme_of(op: Op, scheme: Scheme) -> Scheme:
    """The scheme of one product of a layer in `scheme`: factors beside a dense matrix have that of its correction."""
    return (scheme.correction or scheme) if op.corrects else scheme
