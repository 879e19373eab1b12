"""ONNX files of one source model: dense, baseline and packed."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.backends.observation import joined
from edgepack.backends.onnx.kinds import KINDS, LOOKUPS, OPERATORS, refuses
from edgepack.backends.onnx.observation import OnnxObservation
from edgepack.backends.onnx.ort_quantizer import REST_OP_TYPES
from edgepack.backends.onnx.other_ops import MIN_ELEMENTS
from edgepack.backends.onnx.schemes import (
    CONSTEXPR,
    FP32,
    INT8_DYNAMIC,
    INT8_STATIC,
    SCHEMES,
    TABLES,
    WEIGHTS8,
)
from edgepack.backends.shared import in_one_scheme, refuses_shared, without_shared
from edgepack.backends.tables import EmbeddingTable
from edgepack.data import Samples, feeds
from edgepack.errors import ModelError
from edgepack.model.kinds import kind_of, view_name
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import FileScheme, Format, Scheme, scheme_of
from edgepack.model.statistics import ranges
from edgepack.model.structure import DENSE, Structure
from edgepack.model.types import Array, Contents, Written

if TYPE_CHECKING:
    import onnx_ir as ir

RANGE_SAMPLES = 128
"""Samples that activation ranges are taken from, for the packs and the baseline alike."""


def _layer_nodes(model: ir.Model, others: Collection[str]) -> list[ir.Node]:
    """Those that are layers, but for the layers named in `others`."""
    from edgepack.backends.onnx.sites import find_sites

    return [p.node for site in find_sites(model) if site.layer.name not in others for p in site.placements]


def _layer_weights(model: ir.Model, others: Collection[str]) -> frozenset[tuple[int, int]]:
    """(id of the node, input) wherever such a layer may hold its weight; a node may have others, which are not its."""
    nodes = _layer_nodes(model, others)
    return frozenset((id(node), index) for node in nodes for index in OPERATORS[node.op_type])


def _refused(path: Path, scheme: Scheme) -> str | None:
    """Why what the runtime's quantizer wrote is no baseline; None where it can be loaded."""
    from edgepack.backends.onnx.session import session

    try:
        session(path)
    except ModelError:  # such as of a model in float16, for which the operators have no kernels
        return f"onnxruntime refuses what its own {scheme} quantizer makes of this model"
    return None


def _holds(constant: str, matrix: str) -> bool:
    """Whether a constant holds a matrix of this name: as it is, or the codes of its integer grid, by whichever
    quantizer."""
    return re.fullmatch(rf"{re.escape(matrix)}(\.int\d+|_quantized)?(_\d+)?", constant) is not None


class OnnxWriter:
    """Writes the ONNX files of a build. `model` is the dense fp32 model and is never changed.

    Attributes:
        qmax: largest weight code of per-channel int8.
    """

    fmt: Format = "onnx"
    file_schemes: tuple[Scheme, ...] = ()
    table_schemes: tuple[Scheme, ...] = (WEIGHTS8, *TABLES)

    def __init__(
        self,
        model: ir.Model,
        calibration: Samples | None,
        *,
        qmax: int,
        warn: Callable[[str], None] = lambda message: None,
        given: tuple[Path, Scheme] | None = None,
    ) -> None:
        """`warn` hears of what is written in another way than asked for; `given` as of `Model`."""
        self.model = model
        self.calibrated = calibration is not None
        self._calibration = calibration
        self._samples = None if calibration is None else calibration.head(RANGE_SAMPLES)
        self.qmax = qmax
        self._warn = warn
        self._given = given

    def with_qmax(self, qmax: int) -> OnnxWriter:
        """See `Writer.with_qmax`."""
        return OnnxWriter(self.model, self._calibration, qmax=qmax, warn=self._warn, given=self._given)

    def with_others_kept(self) -> OnnxWriter:
        """This one: plans are tried with weights beside layers in 8 bits and as they are."""
        return self

    def write_others(self, out: Path) -> bool:
        """See `Writer.write_others`: nothing is written."""
        return False

    def begin(self) -> None:
        """See `Writer.begin`: there is nothing to wait for."""

    def layer_schemes(self) -> tuple[Scheme, ...]:
        """The schemes that a single layer of this model can take, by its opset and the data at hand."""
        return tuple(scheme for scheme in self._schemes if self.calibrated or not scheme.is_static)

    def supports(self, layer: Layer, structure: Structure, scheme: Scheme) -> str | None:
        """None where a layer can be written so, else why not."""
        reason = refuses(layer, scheme) or refuses_shared(layer, structure, scheme)
        if reason is not None:
            return reason
        if not self._supports(scheme):
            return f"the model has opset {self._opset}, the scheme {scheme} needs {scheme.min_version}"
        if structure.is_correction and scheme.correction is None:
            return f"there are no low-rank factors beside a matrix in {scheme}"
        return "there are no calibration data" if scheme.is_static and not self.calibrated else None

    def corrected_schemes(self) -> tuple[Scheme, ...]:
        """Those of a dense matrix with a pair beside it that the model's opset has operators for."""
        return tuple(
            scheme for scheme in self._schemes if scheme.correction is not None and self._supports(scheme.correction)
        )

    def shares(self, layers: Sequence[str]) -> bool:
        """See `Writer.shares`."""
        from edgepack.backends.onnx.rewrite import share
        from edgepack.backends.onnx.sites import find_sites

        own = [site for site in find_sites(self.model.clone()) if site.layer.name in layers]
        return len(own) == len(layers) and share(own)

    def rest(self, scheme: Scheme) -> tuple[FileScheme, ...]:
        """The schemes of the whole file where its linear layers are in `scheme`, the one to try first in front.

        Without weights outside of them that is the scheme alone. Else those weights become int8 and are decoded at load
        (`WEIGHTS8`), they get integer kernels from the runtime's own quantizer (the static scheme), or they stay float
        (fp32).
        """
        alone = FileScheme.of(scheme)
        if not self.has_rest:
            return (alone,)
        decoded = FileScheme(scheme, WEIGHTS8)
        if scheme == FP32:
            return decoded, alone
        # ConvInteger and its like are slower than float kernels nearly everywhere: never with dynamic activations.
        return (alone, decoded) if scheme == INT8_STATIC else (decoded,)

    @property
    def _schemes(self) -> Iterator[Scheme]:
        """Of layers of every kind, as far as the model's opset has operators for them."""
        every = dict.fromkeys(scheme for kind in KINDS.values() for scheme in kind.schemes)
        return (scheme for scheme in every if not scheme.is_constexpr and self._supports(scheme))

    def _supports(self, scheme: Scheme) -> bool:
        from edgepack.backends.onnx.emit import supports

        return supports(scheme, self._opset)

    @property
    def _opset(self) -> int:
        return self.model.opset_imports.get("", 1)

    @property
    def trial_scheme(self) -> FileScheme:
        """The int8 scheme that needs no calibration and loses least; fp32 where the model's opset is too old for it."""
        return self.rest(INT8_DYNAMIC if self._supports(INT8_DYNAMIC) else FP32)[0]

    def takes(self, factors: Mapping[str, Replacement]) -> dict[str, Replacement]:
        """All of them but those of a weight that others share, and layers in code of a kind that cannot be, or whose
        operators the model's opset lacks."""
        from edgepack.backends.onnx.constexpr import least_opset

        return {
            name: part
            for name, part in without_shared(factors, self._layers.values()).items()
            if not part.structure.is_constexpr
            or (self._opset >= least_opset(part) and refuses(self._layers[name], CONSTEXPR) is None)
        }

    def write_dense(self, out: Path) -> None:
        """The dense fp32 baseline: the file as it was given where that has weights in integers, or is smaller."""
        from edgepack.backends.onnx.file import copy, save

        if self._given is None or self._given[1].is_float:
            save(self.model, out)
        if self._given is not None and (
            not self._given[1].is_float or self._given[0].stat().st_size < out.stat().st_size
        ):
            copy(self._given[0], out)

    @property
    def given_scheme(self) -> Scheme:
        """See `Writer.given_scheme`."""
        return FP32 if self._given is None else self._given[1]

    @property
    def kept_scheme(self) -> Scheme:
        """See `Writer.kept_scheme`: float32, since integers are decoded."""
        return FP32

    def write_baseline(self, scheme: Scheme, out: Path) -> str:
        """The dense int8 baseline by the format's own quantizer, or the model itself where its layers take and give
        integers; returns the quantizer's name.

        The runtime's quantizer of block-wise weights passes over Gemm: those are quantized by edgepack.
        """
        from edgepack.backends.onnx import ort_quantizer
        from edgepack.backends.onnx.file import to_proto

        if self.given_scheme.is_static:
            self.write_dense(out)
            return "the source's own"
        if scheme not in REST_OP_TYPES:
            self._write_layers(self.model, self.rest(scheme)[0], out)
            return "edgepack"
        try:
            ort_quantizer.quantize(to_proto(self.model), out, scheme, self._feeds, qmax=self.qmax)
            why = _refused(out, scheme)
        except ModelError as err:
            why = err.message
        if why is None:
            return "onnxruntime"
        self._warn(f"{why}; the dense int8 baseline has its linear layers quantized by edgepack")
        self._write_layers(self.model, FileScheme(scheme, WEIGHTS8), out)
        return "edgepack"

    def write(
        self,
        factors: Mapping[str, Replacement],
        scheme: FileScheme,
        out: Path,
        schemes: Mapping[str, Scheme] | None = None,
    ) -> Written:
        """The model with factors in place, in a scheme; the layers named in `schemes` in their own, both halves alike.

        Weights outside of the linear layers go by `scheme` alone. A corrected scheme is for layers whose factors have a
        base.
        """
        from edgepack.backends.onnx.rewrite import names_after, with_factors

        pairs = {name: part for name, part in factors.items() if part.structure.ranks}
        dense = {name: part for name, part in factors.items() if not part.structure.ranks}
        schemes = in_one_scheme(schemes or {}, self._layers.values(), scheme.layers)
        base, scheme, behind = self._with_tables(scheme)
        schemes = {**schemes, **behind}
        model, names = base, {}
        others = self._others(scheme, schemes)
        matrices = set(others)
        if pairs:
            model = with_factors(base, pairs)
            names = names_after(base, model, pairs)
            single = (
                self._matrix_schemes(name, own, pairs.get(name), schemes.get(name, scheme.layers))
                for name, own in names.items()
            )
            matrix_schemes = {matrix: each for pair in single for matrix, each in pair if each != scheme.layers}
            dense = {names[name][0]: part for name, part in dense.items()}
            matrices = {matrix for name in others for matrix in names[name]}
        else:
            matrix_schemes = schemes
        constants = self._write_layers(model, scheme, out, matrix_schemes, dense, matrices)
        own = {
            name: tuple(each for each in constants if any(_holds(each, matrix) for matrix in names[name]))
            for name in pairs
        }
        return Written(others, own)

    def _with_tables(self, scheme: FileScheme) -> tuple[ir.Model, FileScheme, dict[str, Scheme]]:
        """The model with low-rank factors in the place of tables, the scheme by what these are called then, and that of
        the products behind them. They compute in float: the first components of what is looked up are far larger than
        the last, which would be lost on one grid."""
        from edgepack.backends.onnx.sites import find_sites

        if not scheme.factored:
            return self.model, scheme, {}
        copy = self.model.clone()
        held = {table.layer.name: table for table in self.embeddings}
        parts = {name: held[name].factors(op.columns) for name, op in scheme.factored}
        made = {name: pair for kind in LOOKUPS.values() for name, pair in kind.replace(copy, parts).items()}
        rows = {name: first for name, (first, _) in made.items()}
        wide = {second for _, second in made.values()}
        own = WEIGHTS8 if scheme.others == WEIGHTS8 and self._supports(WEIGHTS8) else FP32
        behind = {site.layer.name: own for site in find_sites(copy.clone()) if site.root.name in wide}
        single = tuple((rows.get(name, name), each) for name, each in scheme.single)
        return copy, replace(scheme, single=single), behind

    def _others(self, file: FileScheme, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        """By name, layers that are written like the weights outside of layers, and the scheme that they get so.

        They are those whose kind does not have the scheme of their own or of the file; those that share a weight, which
        is rounded once; and, where the runtime's quantizer gives a whole file integer kernels, those whose kind has 8
        bits and no such kernel by itself.
        """
        found = {}
        for name, layer in self._layers.items():
            own, kinds = schemes.get(name, file.layers), KINDS[layer.kind].schemes
            kernels = file.others not in kinds and layer.geometry.operator in REST_OP_TYPES.get(file.others, ())
            once = layer.shared and not own.is_float
            if own not in (*kinds, CONSTEXPR) or (kernels and own == WEIGHTS8) or once:
                decoded = file.others == WEIGHTS8 and layer.weight.size >= MIN_ELEMENTS
                found[name] = file.others if kernels or decoded else FP32
        return found

    def _matrix_schemes(
        self, layer: str, names: Sequence[str], part: Replacement | None, scheme: Scheme
    ) -> Iterator[tuple[str, Scheme]]:
        """The scheme of each product of a layer, which are `names` in the graph."""
        if part is None:
            return ((name, scheme) for name in names)
        dense = self._layers[layer]
        ops = kind_of(dense).ops(dense, part.structure, 1)
        return ((name, scheme_of(op, scheme)) for name, op in zip(names, ops, strict=True))

    @cached_property
    def _layers(self) -> Mapping[str, Layer]:
        """Those that multiply vectors, by name."""
        from edgepack.backends.onnx.sites import find_sites

        return {site.layer.name: site.layer for site in find_sites(self.model.clone())}

    def read(self, path: Path) -> Contents:
        """What the file holds."""
        from edgepack.backends.onnx.contents import read_contents

        return read_contents(path)

    @cached_property
    def dense_contents(self) -> Contents:
        """What the dense fp32 file holds."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "dense.onnx"
            self.write_dense(path)
            return self.read(path)

    def read_optimized(self, path: Path) -> Contents:
        """What the runtime holds after its own optimisation."""
        from edgepack.backends.onnx.contents import read_contents
        from edgepack.backends.onnx.session import session

        with tempfile.TemporaryDirectory() as folder:
            # Beside the weights of a file that has them apart, whose name stands in the runtime's file too.
            home = path.parent if path.with_name(f"{path.name}.data").is_file() else Path(folder)
            optimized = home / f"{path.name}.optimized"
            try:
                session(path, optimized_path=optimized)
                return read_contents(optimized)
            finally:
                optimized.unlink(missing_ok=True)

    def _write_layers(
        self,
        model: ir.Model,
        scheme: FileScheme,
        out: Path,
        schemes: Mapping[str, Scheme] | None = None,
        weights: Mapping[str, Replacement] | None = None,
        others: Collection[str] | None = None,
    ) -> list[str]:
        """Layers by edgepack, all others by the runtime's quantizer; returns names of all constants.

        Args:
            schemes: of single layers of `model`, by name.
            weights: what is written instead of a layer's own weight, by name.
            others: layers that are written like weights outside of layers; None for those of `_others`.
        """
        from edgepack.backends.onnx.emit import to_schemes
        from edgepack.backends.onnx.file import save
        from edgepack.backends.onnx.rewrite import with_factors
        from edgepack.backends.onnx.sites import find_sites
        from edgepack.backends.onnx.tidy import tidy
        from edgepack.backends.onnx.tied import share, tied_tables
        from edgepack.backends.onnx.values import constant_names

        others = self._others(scheme, schemes or {}) if others is None else others
        left = {name: own for name, own in (schemes or {}).items() if name not in others}
        parts = {name: part for name, part in (weights or {}).items() if name not in others}
        rounded = {name: part for name, part in (weights or {}).items() if name in others}
        seen = self._ranges(model, scheme.layers, left, others)
        complete = self._with_rest(with_factors(model, rounded) if rounded else model, scheme, out, others)
        sites = find_sites(complete)
        left |= {site.layer.name: FP32 for site in sites if site.layer.name in others}
        made = to_schemes(complete, scheme.layers, ranges=seen, qmax=self.qmax, schemes=left, weights=parts)
        integers = not all(one.is_float for one in (*scheme.schemes, *left.values()))
        share(made, {**self._tied, **tied_tables(sites)}, others=integers)
        tidy(made)
        save(made, out)
        return constant_names(made)

    def _with_rest(self, model: ir.Model, scheme: FileScheme, scratch: Path, others: Collection[str]) -> ir.Model:
        """The model with the weights of its other operators in int8, where it has any and the scheme says so; those of
        layers named in `others` as well."""
        from edgepack.backends.onnx import ort_quantizer, other_ops
        from edgepack.backends.onnx.file import read, to_proto
        from edgepack.backends.onnx.matching import mark_as_in

        if not self.has_rest:
            return model
        if scheme.others == WEIGHTS8:
            copy = model.clone()
            for kind in LOOKUPS.values() if scheme.single else ():
                kind.store(copy, dict(scheme.single))
            other_ops.to_int8_weights(copy, _layer_weights(copy, others))
            return copy
        if scheme.others not in REST_OP_TYPES:
            return model
        named = [node.name for node in _layer_nodes(model, others) if node.name]
        ort_quantizer.quantize(
            to_proto(model),
            scratch,
            scheme.others,
            self._feeds,
            op_types=REST_OP_TYPES[scheme.others],
            exclude=named,
            qmax=self.qmax,
        )
        made = read(scratch)
        mark_as_in(model, made)
        return made

    @cached_property
    def has_rest(self) -> bool:
        """Whether weights stand outside of layers, or of layers of kinds that do not have every scheme of a file."""
        from edgepack.backends.onnx.other_ops import has_rest

        copy = self.model.clone()
        some = [name for name, layer in self._layers.items() if not set(SCHEMES) <= set(KINDS[layer.kind].schemes)]
        return has_rest(copy, _layer_weights(copy, some))

    @cached_property
    def _tied(self) -> Mapping[str, tuple[str, ...]]:
        """Tables that are the weight of layers as well, with the names of these."""
        from edgepack.backends.onnx.sites import find_sites
        from edgepack.backends.onnx.tied import tied_tables

        return tied_tables(find_sites(self.model.clone()))

    @cached_property
    def tables(self) -> tuple[tuple[str, Scheme], ...]:
        """See `Writer.tables`."""
        return tuple(
            (layer.name, scheme)
            for kind in LOOKUPS.values()
            for layer in kind.find(self.model)
            for scheme in kind.schemes
            if self.supports(layer, DENSE, scheme) is None
        )

    @cached_property
    def embeddings(self) -> tuple[EmbeddingTable, ...]:
        """See `Writer.embeddings`."""
        from edgepack.backends.onnx.tokens import token_counts

        counts, runs = token_counts(self.model, self._calibration)
        return tuple(
            EmbeddingTable(layer, own, max(1, round(int(own.sum()) / (layer.uses * max(runs, 1)))))
            for kind in LOOKUPS.values()
            for layer in kind.find(self.model)
            if (own := counts.get(layer.name)) is not None
        )

    def _ranges(
        self, model: ir.Model, scheme: Scheme, schemes: Mapping[str, Scheme], others: Collection[str]
    ) -> dict[str, tuple[float, float]] | None:
        """Ranges of the inputs of all static layers that are not in `others`; None where there are none, or no data to
        find them on."""
        from edgepack.backends.onnx.sites import find_sites

        if self._samples is None or not any(own.is_static for own in (scheme, *schemes.values())):
            return None
        layers = [site.layer for site in find_sites(model) if site.layer.name not in others]
        static = [layer for layer in layers if schemes.get(layer.name, scheme).is_static]
        # The vectors of any view hold all elements of the layer's input.
        names = {view_name(layer.name, next(iter(kind_of(layer).views(layer)))): layer.name for layer in static}
        observation = OnnxObservation(model, names)
        seen = ranges(observation.rows(self._samples))
        return {names[view]: seen[joined(key)] for view, key in observation.keys.items() if joined(key) in seen}

    @cached_property
    def _feeds(self) -> list[Mapping[str, Array]]:
        from edgepack.backends.onnx.file import input_specs

        if self._samples is None:
            return []
        return [feed for feed, _ in feeds(self._samples, input_specs(self.model))]
