"""ONNX files of one source model: dense, baseline and packed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.calibrate import ranges
from edgepack.data import Samples, feeds
from edgepack.errors import ModelError
from edgepack.formats import FORMS, RESIDUAL_FORMS, Format
from edgepack.pipeline.observe import Observation, joined
from edgepack.types import Array, Coded, Contents, Dense, Factors, Replacement, pairs_of

if TYPE_CHECKING:
    import onnx_ir as ir

RANGE_SAMPLES = 128
"""Samples that activation ranges are taken from, for the packs and the baseline alike."""


DECODED = "+weights"
"""Behind a form: operators other than linear layers keep float arithmetic, on int8 weights decoded at load."""


TABLES = "+tables4"
"""Behind a form: as `DECODED`, but embedding tables in blocks of 4 bits, of which only rows that are looked up are
decoded."""


def split_form(form: str) -> tuple[str, str]:
    """The form of the linear layers, and what becomes of all other weights: `DECODED`, `TABLES` or nothing."""
    own, plus, rest = form.partition("+")
    return own, plus + rest


def _layer_names(model: ir.Model) -> list[str]:
    from edgepack.onnxgraph.sites import find_sites

    return [site.layer.name for site in find_sites(model)]


def _linear_nodes(model: ir.Model) -> frozenset[int]:
    from edgepack.onnxgraph.sites import find_sites

    return frozenset(id(p.node) for site in find_sites(model) for p in site.placements)


def _part_forms(parts: Mapping[str, tuple[str, ...]], name: str, form: str) -> Iterator[tuple[str, str]]:
    """The form of each matrix of a layer: B, A and, beside the two, the base."""
    own = parts.get(name, (name,))
    base, thin = RESIDUAL_FORMS.get(form, (form, form))
    return zip(own, (thin, thin, base), strict=False)


class OnnxFiles:
    """Writes the ONNX files of a build. `model` is the dense fp32 model and is never changed."""

    fmt: Format = "onnx"
    whole_forms: tuple[str, ...] = ()

    def __init__(self, model: ir.Model, calibration: Samples | None, *, largest: int) -> None:
        self.model = model
        self.calibrated = calibration is not None
        self._samples = None if calibration is None else calibration.head(RANGE_SAMPLES)
        self.largest = largest
        self.warnings: list[str] = []

    def layer_forms(self) -> tuple[str, ...]:
        """The forms that a single linear layer of this model can take, by its opset and the data at hand."""
        return tuple(
            form for form in FORMS["onnx"] if self._supports(form) and (form != "int8-static-qdq" or self.calibrated)
        )

    def residual_forms(self) -> tuple[str, ...]:
        """Those of a dense matrix with a pair beside it that the model's opset has operators for."""
        return tuple(form for form, parts in RESIDUAL_FORMS.items() if all(map(self._supports, parts)))

    def rest(self, form: str) -> tuple[str, ...]:
        """The forms of the whole file where its linear layers are in `form`, the one to try first in front.

        Without weights outside of them that is the form alone. Else those weights become int8 and are decoded at load
        ("+weights"), they get integer kernels from the runtime's own quantizer (the static form), or they stay float
        (fp32). Where the layers have 4 bits, embedding tables get them as well if that loses little enough.
        """
        if not self.has_rest:
            return (form,)
        decoded = f"{form}{DECODED}"
        if form == "fp32":
            return decoded, form
        if form == "nbits4" and self.has_tables:
            return f"{form}{TABLES}", decoded
        # ConvInteger and its like are slower than float kernels nearly everywhere: never with dynamic activations.
        return (form, decoded) if form == "int8-static-qdq" else (decoded,)

    def _supports(self, form: str) -> bool:
        from edgepack.emit.onnx import supports

        return supports(form, self.model.opset_imports.get("", 1))

    @property
    def probe_form(self) -> str:
        """The int8 form that needs no calibration and loses least; fp32 where the model's opset is too old for it."""
        return self.rest("int8-dynamic" if self._supports("int8-dynamic") else "fp32")[0]

    def takes(self, factors: Mapping[str, Replacement]) -> dict[str, Replacement]:
        """All of them but layers in code whose operators the model's opset lacks."""
        from edgepack.emit.onnx_coded import least_opset

        opset = self.model.opset_imports.get("", 1)
        return {n: part for n, part in factors.items() if not isinstance(part, Coded) or opset >= least_opset(part)}

    def write_dense(self, out: Path) -> None:
        """The dense fp32 baseline."""
        from edgepack.onnxgraph.files import save

        save(self.model, out)

    def write_baseline(self, form: str, out: Path) -> str:
        """The dense int8 baseline by the format's own quantizer; returns its name.

        The runtime's quantizer of block-wise weights passes over Gemm: those are quantized by edgepack.
        """
        import onnx_ir as ir

        from edgepack.emit import onnx_standard

        if form not in onnx_standard.REST_OP_TYPES:
            self._write_linear(self.model, self.rest(form)[0], out)
            return "edgepack"
        try:
            onnx_standard.quantize(ir.to_proto(self.model), out, form, self._feeds, largest=self.largest)
        except ModelError as err:
            self._warn(f"{err}; the dense int8 baseline has its linear layers quantized by edgepack")
            self._write_linear(self.model, f"{form}{DECODED}", out)
            return "edgepack"
        return "onnxruntime"

    def write(
        self, factors: Mapping[str, Replacement], form: str, out: Path, forms: Mapping[str, str] | None = None
    ) -> None:
        """The model with factors in place, in a form; the layers named in `forms` in their own, both halves alike.

        Weights outside of the linear layers go by `form` alone. A form of `RESIDUAL_FORMS` is for layers whose factors
        have a base.
        """
        from edgepack.onnxgraph.rewrite import names_after, with_factors

        pairs = pairs_of(factors)
        dense = {name: part for name, part in factors.items() if not isinstance(part, Factors)}
        model = with_factors(self.model, pairs) if pairs else self.model
        if pairs and (forms or dense):
            parts = names_after(self.model, model, pairs)
            forms = {part: one for name, own in (forms or {}).items() for part, one in _part_forms(parts, name, own)}
            dense = {parts[name][0]: part for name, part in dense.items()}
        self._write_linear(model, form, out, forms, dense)

    def write_one_layer(self, layer: str, out: Path) -> None:
        """The dense model with a single layer in int8, to see what that layer costs."""
        self.write({}, "fp32", out, {layer: "int8-dynamic"})

    def read(self, path: Path) -> Contents:
        """What the file holds."""
        from edgepack.onnxgraph.contents import read_contents

        return read_contents(path)

    def read_optimized(self, path: Path) -> Contents:
        """What the runtime holds after its own optimisation."""
        from edgepack.onnxgraph.contents import read_contents
        from edgepack.onnxgraph.session import session

        with tempfile.TemporaryDirectory() as folder:
            optimized = Path(folder) / "optimized.onnx"
            session(path, optimized_path=optimized)
            return read_contents(optimized)

    def _write_linear(
        self,
        model: ir.Model,
        form: str,
        out: Path,
        forms: Mapping[str, str] | None = None,
        weights: Mapping[str, Dense | Coded] | None = None,
    ) -> None:
        """Linear layers by edgepack; all other weights as the runtime's quantizer makes them."""
        from edgepack.emit import onnx as emit
        from edgepack.onnxgraph.files import save

        linear_form = split_form(form)[0]
        seen = self._ranges(model, linear_form, forms or {})
        complete = self._with_rest(model, form, out)
        made = emit.to_form(complete, linear_form, ranges=seen, largest=self.largest, forms=forms, weights=weights)
        save(made, out)

    def _with_rest(self, model: ir.Model, form: str, scratch: Path) -> ir.Model:
        """The model with the weights of its other operators in int8, where it has any and the form says so."""
        import onnx_ir as ir

        from edgepack.emit import onnx_rest, onnx_standard, onnx_tables
        from edgepack.onnxgraph.sites import find_sites

        linear_form, rest = split_form(form)
        if not self.has_rest:
            return model
        if rest:
            copy = model.clone()
            if rest == TABLES:
                onnx_tables.to_int4_tables(copy)
            onnx_rest.to_int8_weights(copy, _linear_nodes(copy))
            return copy
        if linear_form not in onnx_standard.REST_OP_TYPES:
            return model
        named = [p.node.name for site in find_sites(model) for p in site.placements if p.node.name]
        onnx_standard.quantize(
            ir.to_proto(model),
            scratch,
            linear_form,
            self._feeds,
            op_types=onnx_standard.REST_OP_TYPES[linear_form],
            exclude=named,
            largest=self.largest,
        )
        return ir.load(scratch)

    @cached_property
    def has_rest(self) -> bool:
        """Whether weights stand outside of the linear layers."""
        from edgepack.emit.onnx_rest import has_rest

        copy = self.model.clone()
        return has_rest(copy, _linear_nodes(copy))

    @cached_property
    def has_tables(self) -> bool:
        """Whether some of them are embedding tables that blocks of 4 bits can hold."""
        from edgepack.emit.onnx_tables import has_tables

        return has_tables(self.model)

    def _ranges(self, model: ir.Model, form: str, forms: Mapping[str, str]) -> dict[str, tuple[float, float]] | None:
        """Ranges of the inputs of all static layers; None where there are none."""
        if "int8-static-qdq" not in (form, *forms.values()):
            return None
        if self._samples is None:
            return {}
        names = [name for name in _layer_names(model) if forms.get(name, form) == "int8-static-qdq"]
        observation = Observation(model, names)
        seen = ranges(observation.rows(self._samples))
        return {name: seen[joined(key)] for name, key in observation.keys.items() if joined(key) in seen}

    @cached_property
    def _feeds(self) -> list[Mapping[str, Array]]:
        from edgepack.onnxgraph.files import input_specs

        if self._samples is None:
            return []
        return [feed for feed, _ in feeds(self._samples, input_specs(self.model))]

    def _warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
