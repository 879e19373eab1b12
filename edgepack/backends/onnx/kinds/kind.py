"""The roles of a kind of layer within ONNX: how its layers stand in a graph, and how they are written."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from edgepack.errors import ModelError
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepack.backends.onnx.constants import Reader
    from edgepack.backends.onnx.matching import Use
    from edgepack.backends.onnx.rewrite import Build
    from edgepack.backends.onnx.sites import Site

Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Storing:
    """What is known where the layers of a graph are put into their schemes.

    Attributes:
        ranges: (low, high) of the input of every layer that was seen at work, by name.
        qmax: largest weight code of the schemes that may saturate.
        static: nodes of layers whose input, just as it comes, goes onto a static grid.
        shared: quantized inputs by what they are made of, for layers that take the same one.
    """

    ranges: Ranges
    qmax: int
    static: Collection[ir.Node] = ()
    shared: dict[tuple[object, ...], tuple[ir.Value, ...]] = field(default_factory=dict)


class OnnxKind(Protocol):
    """A kind whose layers multiply vectors: they are watched, replaced by products, and written in schemes.

    Products that stand in a layer's place are layers again, of this kind or of another: they are found and put into
    their schemes like those that were there before.
    """

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """That a layer can be written in, as it is."""

    @property
    def operators(self) -> Mapping[str, tuple[int, ...]]:
        """Operator → inputs that may hold a weight, of all that `match` takes for a layer."""

    @property
    def factors(self) -> Mapping[str, tuple[int, ...]]:
        """Likewise, of all that edgepack writes for a layer, or the runtime puts in its place."""

    def match(self, node: ir.Node, reader: Reader) -> Use | None:
        """The node as a layer of this kind, or None if it is anything else."""

    def layer(self, name: str, use: Use, bias: Array | None, uses: int) -> Layer:
        """The layer that `uses` nodes share, of which `use` is the first; its bias where they share that as well."""

    def sides(self, node: ir.Node, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Both sides of the matrix that a node of `factors` multiplies by, of a constant of this shape.

        None where it is no product of this kind, and with the shape () where the node does not say it by itself.
        """

    def bias(self, node: ir.Node, index: int, constant: Array) -> Array | None:
        """The bias (out,) within a constant at an input of a node of `factors`; None where it is no part of one."""

    def refuses(self, layer: Layer, scheme: Scheme) -> str | None:
        """Why a layer cannot be stored in one of `schemes`; None if it can."""

    def replace(self, site: Site, part: Replacement) -> Build:
        """The float products of a replacement in the layer's place, in the order of its `Op`s, with their bias.

        Raises:
            ModelError: it does not fit the layer.
        """

    def stored(self, site: Site, scheme: Scheme, storing: Storing) -> Build | None:
        """The layer as it is in a scheme; None where it stays in float32."""


class LookupKind(Protocol):
    """A kind whose layers are looked up: what can be chosen is how they are stored, and a narrower one with a product
    behind it."""

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """That a layer can be stored in, beside that of all other weights."""

    def find(self, model: ir.Model) -> tuple[Layer, ...]:
        """Every layer of this kind."""

    def refuses(self, layer: Layer, scheme: Scheme) -> str | None:
        """Why a layer cannot be stored in one of `schemes`; None if it can."""

    def replace(self, model: ir.Model, parts: Mapping[str, Replacement]) -> dict[str, tuple[str, str]]:
        """Put low-rank factors in the place of layers, by name, in place.

        Returns:
            By layer name, what its factors are called: the layer of this kind, and the product behind it.
        """

    def store(self, model: ir.Model, schemes: Mapping[str, Scheme]) -> None:
        """Put layers into schemes, by name, in place; names of other kinds' layers are passed over."""


def check_part(layer: Layer, part: Replacement, what: str) -> None:
    """Whether a replacement is another weight of a layer, or two thin ones in its place, and fits it.

    Args:
        what: the kind of layer, with its article, for the error.

    Raises:
        ModelError: it is anything else, or has other shapes.
    """
    (outputs, inputs), structure = layer.weight.shape, part.structure
    if structure.is_dense or structure.is_constexpr:
        tensors, expected = {"weight": part.weight}, {"weight": (outputs, inputs)}
    elif structure.is_low_rank:
        tensors, expected = dict(part.tensors), {"A": (outputs, part.rank), "B": (part.rank, inputs)}
    else:
        raise ModelError(f"{layer.name}: {what} cannot be {structure} in an ONNX file")
    found = {role: tensor.shape for role, tensor in tensors.items()}
    if found != expected:
        raise ModelError(f"{layer.name}: found {found}, expected {expected}")
    if part.bias is not None and part.bias.shape != (outputs,):
        raise ModelError(f"{layer.name}: found a bias {part.bias.shape}, expected {(outputs,)}")
