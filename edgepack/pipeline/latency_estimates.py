"""What the layers of a model cost on a target: where each stands, and the estimate of every way to write it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from edgepack.backends.backend import Writer
from edgepack.backends.registry import FACTS
from edgepack.backends.schemes import DENSE_INT8, FP32, SCHEMES
from edgepack.cost.measure import measure_points, points_for
from edgepack.cost.model import CostSource, LatencyEstimate
from edgepack.cost.roofline import ERROR_SHARE, Roofline, roofline
from edgepack.cost.select import Shape, cost_source, dense_int8, estimates_of, together
from edgepack.data import Samples
from edgepack.devices.local import LocalDevice
from edgepack.model.kinds import kind_of, views_of
from edgepack.model.layer import WEIGHT, Layer
from edgepack.model.model import Model
from edgepack.model.point import Point, is_linear
from edgepack.model.scheme import INT8_BITS, Format, Scheme, bits_of
from edgepack.model.structure import DENSE, Op, Structure, as_matrix, copied, is_depthwise
from edgepack.pipeline.activations import row_counts
from edgepack.pipeline.options import PrecisionChoice
from edgepack.plan.candidates import WorthwhileRanks
from edgepack.targets.target import HOST, Target
from edgepack.workspace import Workspace


@dataclass(frozen=True)
class Uses:
    """Where a layer stands: in `places` nodes, each of which multiplies `rows` vectors per inference."""

    places: int
    rows: int


@dataclass(frozen=True)
class LatencyEstimates:
    """Latency estimates of one model's layers on one target.

    Attributes:
        sources: by format; every estimate of a format is from its one source.
        sheet: of the target, for schemes that a source has nothing on.
        uses: of every layer that an inference reaches.
        layers: all of them, by name.
    """

    sources: Mapping[Format, CostSource]
    sheet: Roofline
    uses: Mapping[str, Uses]
    layers: Mapping[str, Layer]
    _known: dict[Point, LatencyEstimate | None] = field(default_factory=dict, repr=False, compare=False)
    _filled: set[Scheme] = field(default_factory=set, repr=False, compare=False)

    def estimate(self, layer: str, structure: Structure, scheme: Scheme) -> LatencyEstimate | None:
        """One inference of a layer, all of its places together, in a structure and a scheme.

        None where the source has nothing on it. A layer that an inference does not reach costs nothing.
        """
        uses = self.uses.get(layer)
        if uses is None:
            return LatencyEstimate(0.0, self.sources[scheme.backend].name, 0.0)
        ops = _ops(self.layers[layer], structure, uses.rows)
        estimate = self._of_convolutions(scheme, ops) or self._as_matrices(layer, structure, scheme, ops)
        return None if estimate is None else replace(estimate, latency_s=uses.places * estimate.latency_s)

    def of_product(self, scheme: Scheme, op: Op) -> LatencyEstimate | None:
        """One inference of a single product, which need not be a layer; None where the source has nothing on it."""
        return self._of_convolutions(scheme, (op,)) or self._of_products(scheme, (op,))

    def _of_convolutions(self, scheme: Scheme, ops: Sequence[Op]) -> LatencyEstimate | None:
        """Of convolutions one after the other, each as a layer by itself; None where there are other products, or the
        source has nothing on one of them."""
        if not all(op.kind == "conv" and not op.corrects for op in ops):
            return None
        return self._together([Point(scheme, DENSE, (replace(op, role=WEIGHT),)) for op in ops])

    def _as_matrices(
        self, layer: str, structure: Structure, scheme: Scheme, ops: Sequence[Op]
    ) -> LatencyEstimate | None:
        """Of plain matrices that multiply every patch, and of laying these out."""
        if structure.of_a_matrix:
            estimate = self._of(_point(scheme, structure, ops))
        else:
            estimate = self._of_products(scheme, ops) or self._by_macs(layer, scheme, ops)
        copying_s = self._copying_s(scheme.backend, ops)
        return None if estimate is None else replace(estimate, latency_s=estimate.latency_s + copying_s)

    def _of(self, point: Point) -> LatencyEstimate | None:
        if point not in self._known:
            self._fill(point.scheme, point)
        return self._known[point]

    def _of_products(self, scheme: Scheme, ops: Iterable[Op]) -> LatencyEstimate | None:
        """Of products one after the other, each as a layer by itself; None where the source has nothing on one."""
        return self._together([_point(scheme, DENSE, (replace(op, role=WEIGHT),)) for op in ops])

    def _together(self, points: Iterable[Point]) -> LatencyEstimate | None:
        found = [self._of(point) for point in points]
        known = [one for one in found if one is not None]
        return together(known) if known and len(known) == len(found) else None

    def _by_macs(self, layer: str, scheme: Scheme, ops: Iterable[Op]) -> LatencyEstimate | None:
        """As long as factors of the layer's matrix with as many multiplications take, and not less than the smallest of
        these; None where the source has nothing on them."""
        own, rows = self.layers[layer], self.uses[layer].rows
        pairs = kind_of(own).structures(own, WorthwhileRanks())
        points = [_point(scheme, one, kind_of(own).ops(own, one, rows)) for one in pairs if one.of_a_matrix]
        known_by_macs = {
            sum(op.macs for op in one.ops): estimate for one in points if (estimate := self._of(one)) is not None
        }
        if not known_by_macs:
            return None
        steps = sorted(known_by_macs)
        seconds = float(np.interp(sum(op.macs for op in ops), steps, [known_by_macs[step].latency_s for step in steps]))
        error = max(ERROR_SHARE, *(estimate.error_share for estimate in known_by_macs.values()))
        return LatencyEstimate(
            seconds, f"{self.source_name(scheme.backend)}, estimated from multiplications", error, True
        )

    def dense_latency_s(self, scheme: Scheme, single: Mapping[str, Scheme] = MappingProxyType({})) -> float | None:
        """Seconds of all layers, dense and in one scheme, but for `single` ones; None where the source lacks it."""
        found = [self.estimate(layer, DENSE, single.get(layer, scheme)) for layer in self.layers]
        known = [one.latency_s for one in found if one is not None]
        return sum(known) if len(known) == len(found) else None

    def call_s(self, fmt: Format) -> float:
        """Seconds of one call of the runtime, which no layer's estimate contains."""
        return self.sources[fmt].call_s(fmt)

    def convolutions_s(self, fmt: Format, products: Sequence[Op]) -> float:
        """Seconds of one inference of convolutions in float32, without those that are layers.

        Args:
            products: as of `Backend.convolutions`; where the source has nothing on one, the estimate of a matrix on as
                many vectors, and of copying these. So are those that take every channel by itself.
        """
        return sum(self._convolution_s(fmt, op) for op in self._between(products))

    def _convolution_s(self, fmt: Format, op: Op) -> float:
        point = _point(FP32[fmt], DENSE, (op,))
        known = None if is_depthwise(op) else self._of_convolutions(FP32[fmt], (op,))
        if known is not None:
            return known.latency_s
        (found,) = estimates_of(self.sources[fmt], [point], self.sheet)
        return (self.sheet.latency_s(point) if found is None else found.latency_s) + self._copying_s(fmt, (op,))

    def _between(self, products: Sequence[Op]) -> list[Op]:
        """The products of convolutions that are no layers, told apart by their sides."""
        layers = Counter(
            (op.rows, op.inputs)
            for layer in self.layers.values()
            for op in kind_of(layer).ops(layer, DENSE, 1)
            for _ in range(layer.uses)
            if copied(op)
        )
        others = []
        for op in products:
            if layers[op.rows, op.inputs]:
                layers[op.rows, op.inputs] -= 1
            else:
                others.append(op)
        return others

    def _copying_s(self, fmt: Format, ops: Iterable[Op]) -> float:
        """Seconds of laying out the patches of convolutions."""
        return sum(map(copied, ops)) * FACTS[fmt].patch_value / self.sheet.instructions_s

    def source_name(self, fmt: Format) -> str:
        """Where the estimates of a format come from, for people."""
        return self.sources[fmt].name

    def _fill(self, scheme: Scheme, wanted: Point) -> None:
        """Estimates what will be asked next as well: a source answers many points in little more time than one."""
        points = [wanted]
        if scheme not in self._filled:
            self._filled.add(scheme)
            for name, uses in self.uses.items():
                layer = self.layers[name]
                for one in kind_of(layer).structures(layer, WorthwhileRanks()):
                    ops = _ops(layer, one, uses.rows)
                    points += [Point(scheme, DENSE, (replace(op, role=WEIGHT),)) for op in ops if op.kind == "conv"]
                    if not one.of_a_matrix:
                        points += [_point(scheme, DENSE, (replace(op, role=WEIGHT),)) for op in ops]
                    elif scheme.correction or not one.is_correction:
                        points.append(_point(scheme, one, ops))
        missing = [point for point in dict.fromkeys(points) if point not in self._known]
        self._known.update(zip(missing, estimates_of(self.sources[scheme.backend], missing, self.sheet), strict=True))


def scheme_held(files: Writer, layer: Layer, scheme: Scheme) -> Scheme:
    """What a dense layer gets in a file of a scheme: that, or one of as many bits that its kind has."""
    suited = (one for one in files.layer_schemes() if one.bits == scheme.bits)
    able = (one for one in (scheme, *suited) if files.supports(layer, DENSE, one) is None)
    return next(able, scheme)


def as_written(layer: Layer, op: Op) -> Op:
    """A product of a layer: in the place of a convolution every one is a convolution."""
    is_point = op.kind == "matmul" and layer.geometry.operator == "Conv"
    return replace(op, kind="conv", kernel=(1, 1)) if is_point else op


def _ops(layer: Layer, structure: Structure, rows: int) -> tuple[Op, ...]:
    return tuple(as_written(layer, op) for op in kind_of(layer).ops(layer, structure, rows))


def _point(scheme: Scheme, structure: Structure, ops: Iterable[Op]) -> Point:
    """As of a linear layer."""
    return Point(scheme, structure, tuple(map(as_matrix, ops)))


def make_estimates(
    target: Target,
    opened: Model,
    samples: Samples | None,
    formats: Sequence[Format],
    workspace: Workspace,
    *,
    precision: PrecisionChoice = "auto",
    structures: Mapping[str, Collection[Structure]] | None = None,
) -> LatencyEstimates:
    """By the most trusted source of each format; on this machine, layers that are new to it are measured first.

    Args:
        target: whose estimates.
        opened: the model.
        samples: of its inputs, None for seeded values.
        formats: to estimate for.
        workspace: with the cache that measured latencies are kept in; with `fresh` they are measured again.
        precision: of the weights; a source that lacks it is passed over.
        structures: by layer name, where no others with low-rank factors will be asked for: this machine is measured in
            these alone.

    Raises:
        InputError: the emulated table is damaged.
        DeviceError: this machine could not be measured.
        ModelError: the model does not run on the samples.
    """
    uses = layer_uses(opened, samples, workspace.seed)
    dense = {
        layer.name: tuple(map(as_matrix, kind_of(layer).ops(layer, DENSE, uses[layer.name].rows)))
        for layer in opened.layers
        if layer.name in uses
    }
    sources: dict[Format, CostSource] = {}
    if target.name == HOST and dense and all(map(is_linear, dense.values())):
        shapes = {name: (ops[-1].rows, ops[0].columns, ops[0].vectors) for name, ops in dense.items()}
        ranks = _by_sides(shapes, structures)
        sources = _measured_here(target, list(shapes.values()), formats, ranks, workspace)
    for fmt in formats:
        if fmt not in sources:
            needed = _needed(fmt, list(dense.values()), precision)
            sources[fmt] = cost_source(target, fmt, needed, root=workspace.cache.root)
    return LatencyEstimates(sources, roofline(target), uses, {layer.name: layer for layer in opened.layers})


def _by_sides(
    shapes: Mapping[str, Shape], structures: Mapping[str, Collection[Structure]] | None
) -> dict[tuple[int, int], list[int]] | None:
    """Ranks of all layers of one shape together, ascending."""
    if structures is None:
        return None
    found: dict[tuple[int, int], set[int]] = {}
    for name in shapes.keys() & structures.keys():
        rows, columns, _ = shapes[name]
        found.setdefault((rows, columns), set()).update(one.ranks[0] for one in structures[name])
    return {sides: sorted(own) for sides, own in found.items()}


def _needed(fmt: Format, dense: Sequence[tuple[Op, ...]], precision: PrecisionChoice) -> list[Point]:
    """The points that a source has to know: the dense layers in int8, and in fewer bits where these were asked for."""
    points = [Point(DENSE_INT8[fmt][0], DENSE, ops) for ops in dict.fromkeys(dense)]
    if precision == "auto" or bits_of(precision) >= INT8_BITS:
        return points
    narrow = next((scheme for scheme in SCHEMES[fmt] if scheme.bits == bits_of(precision)), None)
    return points if narrow is None else points + [replace(point, scheme=narrow) for point in points]


def _measured_here(
    target: Target,
    shapes: Sequence[Shape],
    formats: Sequence[Format],
    ranks: Mapping[tuple[int, int], Sequence[int]] | None,
    workspace: Workspace,
) -> dict[Format, CostSource]:
    """The table of this machine, for the formats in which it knows every layer."""
    here = [fmt for fmt in formats if fmt in target.formats]
    if not here:
        return {}
    points = points_for(shapes, here, ranks=ranks)
    table = measure_points(LocalDevice(), target, points, progress=workspace.progress, cache=workspace.cache)
    return {fmt: table for fmt in here if None not in table.estimates(dense_int8(fmt, shapes))}


def layer_uses(opened: Model, samples: Samples | None, seed: int) -> dict[str, Uses]:
    """Places and rows of every layer that one inference reaches, seen in a run of the model on one example.

    A layer whose input cannot be watched, and every layer of a model that does not run on seeded inputs, is taken to
    multiply one row in each of its places.

    Raises:
        ModelError: the model does not run on the samples.
    """
    counts = row_counts(opened, samples, seed)
    if counts is None:
        return {layer.name: Uses(layer.uses, 1) for layer in opened.layers}
    uses = {}
    for layer in opened.layers:
        # The rows of a weight in several places are those of all of them together.
        rows = counts.get(views_of([layer])[0].name, layer.uses)
        if rows:
            uses[layer.name] = Uses(layer.uses, max(1, rows // layer.uses))
    return uses
