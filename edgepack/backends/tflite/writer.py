"""TFLite files of one source model. Conversions take seconds, so they are kept in the cache."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from edgepack.backends.backend import WriterData
from edgepack.backends.shared import in_one_scheme, refuses_shared, without_shared
from edgepack.backends.tables import EmbeddingTable
from edgepack.backends.tflite.batch import open_batch
from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.facts import TOOLS
from edgepack.backends.tflite.kinds import refuses
from edgepack.backends.tflite.origin import Conversion, Given, Origin
from edgepack.backends.tflite.quantizer import LAYER_SCHEMES, check_mixture
from edgepack.backends.tflite.read import TfliteLinear, linear_ops
from edgepack.backends.tflite.rewrite import Places, find_places
from edgepack.backends.tflite.schemes import CONSTEXPR, FP32, INT4_DYNAMIC, INT8_DYNAMIC, INT8_STATIC, TABLES4, WEIGHTS8
from edgepack.backends.tflite.tables import Lookup, embedding_tables, grouped, takes_int4, with_factors
from edgepack.backends.tflite.tidy import tidy
from edgepack.data import feeds, first_runs, rename
from edgepack.errors import LayerError, ModelError
from edgepack.model.layer import Layer
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement, in_place, of_structure
from edgepack.model.scheme import FileScheme, Format, Scheme
from edgepack.model.structure import Structure
from edgepack.model.types import Array, Contents, Product, Written
from edgepack.workspace import FileStep, Keyed, Step, Workspace, digest

RANGE_SAMPLES = 128
LEAST_GAIN = 0.99
"""Of a file's bytes, what is left of it where something is gained by storing other weights in 8 bits."""
NO_CORRECTION = "there are no low-rank factors beside a matrix in TFLite files"


@dataclass(frozen=True)
class _Float:
    """A float32 file in the working folder.

    Attributes:
        key: of its content.
        operators: by layer name, what its operators write; None until somebody asks.
    """

    key: str
    path: Path
    factors: Mapping[str, Replacement]
    operators: Mapping[str, Sequence[str]] | None


class TfliteWriter:
    """Writes the TFLite files of one model.

    Only the dense model is converted. Thin layers are put into that file, which takes a fraction of a second where a
    conversion takes up to half a minute; a model in which that would not be exact is converted for every plan.
    """

    fmt: Format = "tflite"

    def __init__(
        self,
        converter: TfliteEmitter | None,
        opened: Model,
        data: WriterData,
        workspace: Workspace,
    ) -> None:
        """Nothing is converted yet.

        Args:
            converter: serves one model at a time. It starts to import when it is warmed up. None for a model that is a
                TFLite file.

        Raises:
            ValueError: there is no converter for another model.
        """
        self.calibrated = data.calibration is not None
        self.qmax = data.qmax
        self._opened = opened
        self._samples = None if data.calibration is None else data.calibration.head(RANGE_SAMPLES)
        self._shapes = {name: list(array.shape) for name, array in data.example.items()}
        self._example = data.example
        self._key = [opened.sha256, opened.kind, self._shapes]
        self._workspace = workspace
        self._origin = self._made_by(converter)
        self._last: _Float | None = None
        self._keeps_others = False

    table_schemes: tuple[Scheme, ...] = (INT8_DYNAMIC, TABLES4)

    @property
    def trial_scheme(self) -> FileScheme:
        """See `Writer.trial_scheme`."""
        return FileScheme.of(INT8_STATIC if self._opened.in_integers else INT8_DYNAMIC)

    def with_qmax(self, qmax: int) -> TfliteWriter:
        """This one: no scheme of the format saturates."""
        return self

    def with_others_kept(self) -> TfliteWriter:
        """See `Writer.with_others_kept`."""
        made = copy.copy(self)
        made._keeps_others = True
        return made

    def write_others(self, out: Path) -> bool:
        """See `Writer.write_others`: kernels of convolutions that are no layers, above all."""
        if self._opened.in_integers or not any(layer.geometry.operator == "Conv" for layer in self._opened.layers):
            return False
        self.write({}, FileScheme.of(WEIGHTS8), out, {layer.name: FP32 for layer in self._opened.layers})
        return out.stat().st_size < LEAST_GAIN * self._source.stat().st_size

    def begin(self) -> None:
        """See `Writer.begin`: a conversion that is not in the cache."""
        if not self._workspace.has_file(CONVERTED, Keyed(self._key, lambda: partial(self._origin.write, {}))):
            self._origin.begin()

    def layer_schemes(self) -> tuple[Scheme, ...]:
        """The schemes that single layers of one file can take."""
        return (INT8_STATIC,) if self._opened.in_integers else LAYER_SCHEMES

    def supports(self, layer: Layer, structure: Structure, scheme: Scheme) -> str | None:
        """None where a layer can be written so, else why not."""
        if structure.is_correction:
            return NO_CORRECTION
        if scheme == TABLES4:
            return None if layer.in_features % 2 == 0 else "rows in 4 bits are whole bytes"
        if self._opened.in_integers and scheme != INT8_STATIC:
            return "the model computes in integers"
        if scheme.is_static and not self.calibrated:
            return "there are no calibration data"
        return refuses(layer, structure, scheme) or refuses_shared(layer, structure, scheme)

    def corrected_schemes(self) -> tuple[Scheme, ...]:
        """None: nothing here puts two products on one input into the converted graph."""
        return ()

    def shares(self, layers: Sequence[str]) -> bool:
        """See `Writer.shares`."""
        return self._places.shares(layers)

    def rest(self, scheme: Scheme) -> tuple[FileScheme, ...]:
        """The ways to write a file whose linear layers are in `scheme`."""
        return (FileScheme.of(scheme),)

    @property
    def file_schemes(self) -> tuple[Scheme, ...]:
        """Schemes that only a whole file has."""
        return (INT8_STATIC,) if self.calibrated and not self._opened.in_integers else ()

    def takes(self, factors: Mapping[str, Replacement]) -> dict[str, Replacement]:
        """All pairs in the place of a layer; and other weights and code of layers whose operators are fully understood,
        where the pairs are put into the dense file as well. `refuses` says why a part is not among them."""
        factors = without_shared(factors, self._opened.layers)
        factors = {name: part for name, part in factors.items() if not part.structure.is_correction}
        pairs = in_place(factors)
        if len(pairs) == len(factors) or not self._places.takes(pairs):
            return {**pairs}
        return {name: part for name, part in factors.items() if name in pairs or self._places.takes({name: part})}

    def refuses(self, name: str, part: Replacement) -> str | None:
        """Why a layer cannot be written like this beside pairs that are put into the dense file; None if it can."""
        if part.structure.is_correction:
            return NO_CORRECTION
        return None if part.structure.ranks else self._places.refuses(name, part)

    def write_dense(self, out: Path) -> None:
        """The dense fp32 baseline: the source itself, where that is a TFLite file."""
        shutil.copyfile(self._source, out)

    @property
    def given_scheme(self) -> Scheme:
        """See `Writer.given_scheme`."""
        return INT8_STATIC if self._opened.in_integers else FP32

    @property
    def kept_scheme(self) -> Scheme:
        """See `Writer.kept_scheme`."""
        return self.given_scheme

    def write_baseline(self, scheme: Scheme, out: Path) -> str:
        """The dense int8 baseline by the format's own quantizer; returns its name. A model in integers is its own."""
        if self._opened.in_integers:
            self.write_dense(out)
            return "the source's own"
        plain = copy.copy(self)
        plain._keeps_others = False
        plain.write({}, FileScheme.of(scheme), out)
        return "litert-quantizer"

    def write(
        self,
        factors: Mapping[str, Replacement],
        scheme: FileScheme,
        out: Path,
        schemes: Mapping[str, Scheme] | None = None,
    ) -> Written:
        """The model with factors in place, in a scheme.

        Args:
            factors: by layer name, as `takes` leaves them; all other layers stay as they are.
            scheme: of every layer that is not in `schemes`, and of all other operators.
            out: where to write.
            schemes: of single layers, by name: some of `layer_schemes()`; beside `INT8_STATIC` only `FP32`, beside
                which factors of a model in integers may be `INT8_STATIC`. Both halves of a factored layer take its
                scheme, and all places of a layer that is used in several. Layers in code are `CONSTEXPR` beside any
                scheme, named here or not; no other layer is.

        Returns:
            The schemes of single layers that the file has: a layer without an operator of its own in the converted
            graph takes that of the file, and one without a fast kernel for its scheme a wider one.

        Raises:
            ModelError: the model cannot be converted, or a layer in code cannot be written, or factors stand beside a
                matrix.
            ValueError: a scheme in `schemes` that cannot stand beside `scheme`.
        """
        if beside := of_structure(factors, "low-rank-correction"):
            raise LayerError(dict.fromkeys(beside, NO_CORRECTION))
        constexpr = {name for name, part in factors.items() if part.structure.is_constexpr}
        base = scheme.layers
        schemes = in_one_scheme(schemes or {}, self._opened.layers, base)
        self._check_constexpr(constexpr, factors, schemes)
        if self._keeps_others and not base.is_static:
            own = dict.fromkeys((layer.name for layer in self._opened.layers if layer.name not in constexpr), base)
            base, schemes = FP32, {**own, **schemes}
        others = {name: own for name, own in sorted(schemes.items()) if own != base and name not in constexpr}
        if not self._opened.in_integers:
            check_mixture(base, others.values())
        self._check_names(others)
        key = digest(self._key, factors)
        placed = self._placed(key, factors)
        others = {name: each for name, each in others.items() if name in placed}
        in_code = dict.fromkeys(sorted(constexpr), CONSTEXPR)
        if self._opened.in_integers and not factors:
            self.write_dense(out)
            return Written({**dict.fromkeys(placed, base), **others}, {})
        tabled = digest(key, scheme.factored)
        if base == FP32 and not others and not scheme.single:
            self._finish(self._with_tables(tabled, self._float(key, factors).path, scheme)[0], out, factors)
            return _written(out, placed, factors, {**dict.fromkeys(placed, FP32), **in_code})
        samples = self._quantizer_samples() if INT8_STATIC in (base, *others.values()) else None

        def quantize(path: Path) -> None:
            source, tables = self._with_tables(tabled, self._float(key, factors).path, scheme)
            wide = {name: FP32 for name in sorted(constexpr) if base != FP32}
            single = {operator: each for name, each in {**others, **wide}.items() for operator in placed[name]}
            self._origin.quantize(source, path, base, samples, single | tables)
            self._finish(path, path, factors)

        entry = [key, base, others, samples, scheme.single, scheme.factored, sorted(self._opened.open_batch)]
        self._workspace.file(QUANTIZED, Keyed(entry, lambda: quantize), out)
        return _written(out, placed, factors, {**dict.fromkeys(placed, base), **others, **in_code})

    def _with_tables(self, key: str, source: Path, scheme: FileScheme) -> tuple[Path, dict[str, Scheme]]:
        """A float file with low-rank factors in the place of tables, and the schemes of lookups and of the products
        behind them, by what they write. These compute in float, as in ONNX."""
        outputs = {name: tuple(one.output for one in own) for name, own in self._lookups.items()}
        rows, path = dict(outputs), source
        if scheme.factored:
            held = {table.layer.name: table for table in self.embeddings}
            path = self._workspace.folder / f"{key[:16]}.tables.tflite"
            rows |= with_factors(source, path, {n: held[n].factors(op.columns) for n, op in scheme.factored})
        products = {} if scheme.layers.is_float else {each: WEIGHTS8 for n, _ in scheme.factored for each in outputs[n]}
        schemes = {name: INT4_DYNAMIC if own == TABLES4 else own for name, own in scheme.single}
        return path, {each: own for name, own in schemes.items() for each in rows[name]} | products

    def _finish(self, source: Path, out: Path, factors: Mapping[str, Replacement]) -> None:
        """Put the code of layers in the place of their weights, which the quantizer knows, and leave out the rest."""
        if any(part.structure.is_constexpr for part in factors.values()):
            self._places.encode(source, out, factors)
        elif source != out:
            out.write_bytes(source.read_bytes())
        tidy(out, notes=self._origin.source is not None, halves=self._origin.has_halves)

    def _check_constexpr(
        self, constexpr: Collection[str], factors: Mapping[str, Replacement], schemes: Mapping[str, Scheme]
    ) -> None:
        """Refuse code that would be lost or under another scheme's name."""
        wrong = [name for name, own in sorted(schemes.items()) if own.is_constexpr != (name in constexpr)]
        if wrong:
            raise ValueError(f"the scheme {CONSTEXPR} is that of layers in code and of no others: {', '.join(wrong)}")
        if constexpr and not self._places.takes(factors):
            names = [name for name, part in sorted(factors.items()) if self._places.refuses(name, part) is not None]
            reason = self._places.refuses(names[0], factors[names[0]])
            raise ModelError(f"the TFLite file cannot have code beside {', '.join(names)}: {reason}")

    def read(self, path: Path) -> Contents:
        """What the file holds."""
        from edgepack.backends.tflite.read import constant_vectors, on_other_grids

        ops = linear_ops(path)
        weights = {op.buffer: (min(op.weight.shape), max(op.weight.shape), op.bits) for op in ops}
        products = _products(ops, on_other_grids(path))
        return Contents(tuple(sorted(weights.values())), tuple(constant_vectors(path)), products)

    @cached_property
    def dense_contents(self) -> Contents:
        """What the dense fp32 file holds."""
        return self.read(self._source)

    def read_optimized(self, path: Path) -> Contents:
        """The file's own operators: LiteRT's delegates pack weights but fold no two of them into one."""
        return self.read(path)

    @cached_property
    def _source(self) -> Path:
        """The dense fp32 baseline, in the working folder."""
        path = self._workspace.folder / f"{digest(self._key)[:16]}.source.tflite"
        if self._origin.source is None:
            self.write({}, FileScheme.of(FP32), path)
        else:
            path.write_bytes(self._origin.source)
        return path

    @cached_property
    def _dense(self) -> Path:
        """The dense fp32 file, in the working folder."""
        path = self._workspace.folder / f"{digest(self._key)[:16]}.dense.tflite"
        return self._converted(self._key, {}, path)

    @cached_property
    def tables(self) -> tuple[tuple[str, Scheme], ...]:
        """See `Writer.tables`."""
        return tuple((name, TABLES4) for name, own in self._lookups.items() if takes_int4(own[0]))

    @cached_property
    def embeddings(self) -> tuple[EmbeddingTable, ...]:
        """See `Writer.embeddings`."""
        return embedding_tables(self._dense, self._samples)

    @cached_property
    def _lookups(self) -> dict[str, tuple[Lookup, ...]]:
        return grouped(self._dense)

    @cached_property
    def _places(self) -> Places:
        """Where the layers are in the dense file."""
        return self._origin.places(self._dense)

    def _float(self, key: str, factors: Mapping[str, Replacement]) -> _Float:
        """The fp32 file of a plan; that of the last one is kept, for the other schemes of the same plan."""
        last = self._last
        if last is not None and last.key == key and last.path.is_file():
            return last
        if last is not None and last.path != self._dense:
            last.path.unlink(missing_ok=True)
        self._last = self._made(key, factors)
        return self._last

    def _made(self, key: str, factors: Mapping[str, Replacement]) -> _Float:
        if not factors:
            return _Float(key, self._dense, factors, None)
        path = self._workspace.folder / f"{key[:16]}.fp32.tflite"
        if self._places.takes(factors):
            return _Float(key, path, factors, self._places.replace(path, factors))
        pairs = in_place(factors)
        return _Float(key, self._converted(key, pairs, path), pairs, None)

    def _converted(self, key: object, factors: Mapping[str, Replacement], out: Path) -> Path:
        """Where the model leaves its batch open, so does the file, if its operators let it."""
        path = self._workspace.file(CONVERTED, Keyed(key, lambda: partial(self._origin.write, factors)), out)
        names = self._opened.open_batch
        if names and self._origin.source is None and (reason := open_batch(path, names, self._example)) is not None:
            self._workspace.warn(f"the batch of the TFLite file is fixed, as {reason}")
        return path

    def _placed(self, key: str, factors: Mapping[str, Replacement]) -> dict[str, tuple[str, ...]]:
        """What the operators of each layer write in the float file of a plan; layers without one are absent."""

        def find() -> Mapping[str, Sequence[str]]:
            source = self._float(key, factors)
            if source.operators is not None:
                return source.operators
            pairs = in_place(source.factors)
            if not pairs:
                return self._places.operators
            return find_places(source.path, self._opened.layers, (), pairs).operators

        found = self._workspace.cached(OPERATORS, Keyed(key, lambda: find))
        return {name: tuple(outputs) for name, outputs in found.items()}

    def _check_names(self, schemes: Mapping[str, Scheme]) -> None:
        known = {layer.name for layer in self._opened.layers}
        strangers = [name for name in schemes if name not in known]
        if strangers:
            raise ModelError(f"the model has no layer {', '.join(strangers)}, it has {len(known)} others")

    def _made_by(self, converter: TfliteEmitter | None) -> Origin:
        if self._opened.native == "tflite":
            return Given(self._opened.content)
        if converter is None:
            raise ValueError(f"{self._opened.name}: a converter is needed to make a TFLite file of it")
        samples = [] if self._samples is None else first_runs(self._samples, self._opened.inputs)
        return Conversion(converter, self._opened, self._shapes, samples)

    def _quantizer_samples(self) -> dict[str, Array]:
        """Calibration inputs under the file's own names: (samples, *input shape)."""
        from edgepack.backends.tflite.runtime import signature

        if self._samples is None:
            return {}
        specs = tuple(signature(self._dense)[1].values())
        runs = [feed for feed, _ in feeds(rename(self._samples, specs), specs)]
        return {spec.name: np.stack([run[spec.name] for run in runs]) for spec in specs}


def _written(
    path: Path, placed: Mapping[str, tuple[str, ...]], factors: Collection[str], schemes: Mapping[str, Scheme]
) -> Written:
    """What the layers of a file really got: where four bits have no fast kernel, they are eight."""
    if INT4_DYNAMIC in schemes.values():
        bits = {op.output: op.bits for op in linear_ops(path)}
        wide = {
            name for name, outputs in placed.items() if any(bits.get(each) == INT8_DYNAMIC.bits for each in outputs)
        }
        schemes = {n: INT8_DYNAMIC if n in wide and own == INT4_DYNAMIC else own for n, own in schemes.items()}
    return Written(schemes, {name: placed[name] for name in factors if name in placed})


def _products(ops: Sequence[TfliteLinear], other_grids: Mapping[tuple[int, int], int]) -> tuple[Product, ...]:
    """Every operator with those that write its input, on another grid perhaps: an LSTM in float32 behind a product in
    integers. Views between two of them do not occur in what is emitted."""
    writers = {(op.subgraph, op.output_index): number for number, op in enumerate(ops)}
    taken = ((op.subgraph, other_grids.get((op.subgraph, op.input_index), op.input_index)) for op in ops)
    behind = (writers.get(one) for one in taken)
    return tuple(
        Product(
            op.output,
            (min(op.weight.shape), max(op.weight.shape)),
            op.bits,
            op.output,
            frozenset(() if number is None else (number,)),
        )
        for op, number in zip(ops, behind, strict=True)
    )


def _write(make: Callable[[Path], None], path: Path) -> None:
    make(path)


def _found(find: Callable[[], Mapping[str, Sequence[str]]]) -> Mapping[str, Sequence[str]]:
    return find()


OPERATORS: Step[Callable[[], Mapping[str, Sequence[str]]], Mapping[str, Sequence[str]]] = Step(
    "tflite-operators", 6, _found, tools=TOOLS
)
CONVERTED: FileStep[Callable[[Path], None]] = FileStep("tflite", 9, _write, ".tflite", TOOLS)
QUANTIZED: FileStep[Callable[[Path], None]] = FileStep("tflite-quantized", 10, _write, ".tflite", TOOLS)
