"""ONNX files of one source model: dense, baseline and packed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.calibrate import ranges
from edgepack.data import Samples, feeds
from edgepack.errors import ModelError
from edgepack.pipeline.observe import Observation, joined
from edgepack.types import Array, Contents, Factors, Format

if TYPE_CHECKING:
    import onnx_ir as ir

RANGE_SAMPLES = 128
"""Samples that activation ranges are taken from, for the packs and the baseline alike."""


DECODED = "+weights"
"""Behind a form: operators other than linear layers keep float arithmetic, on int8 weights decoded at load."""


def split_form(form: str) -> tuple[str, bool]:
    """The form of the linear layers, and whether all other weights are decoded at load."""
    return form.removesuffix(DECODED), form.endswith(DECODED)


def _linear_nodes(model: ir.Model) -> frozenset[int]:
    from edgepack.onnxgraph.sites import find_sites

    return frozenset(id(p.node) for site in find_sites(model) for p in site.placements)


class OnnxFiles:
    """Writes the ONNX files of a build. `model` is the dense fp32 model and is never changed."""

    fmt: Format = "onnx"

    def __init__(self, model: ir.Model, calibration: Samples | None, *, largest: int) -> None:
        self.model = model
        self.calibrated = calibration is not None
        self._samples = None if calibration is None else calibration.head(RANGE_SAMPLES)
        self.largest = largest
        self.warnings: list[str] = []

    def forms(self, preferred: Sequence[str]) -> tuple[str, ...]:
        """The forms to try for this model, fastest first."""
        from edgepack.emit.onnx import supports

        opset = self.model.opset_imports.get("", 1)
        usable = [form for form in preferred if supports(form, opset)]
        if not self.has_rest:
            return tuple(usable)
        # ConvInteger and its like are slower than float kernels nearly everywhere: never with dynamic activations.
        expanded = [
            (form, f"{form}{DECODED}") if form == "int8-static-qdq" else (f"{form}{DECODED}",) for form in usable
        ]
        return tuple(form for forms in expanded for form in forms)

    @property
    def fp32_forms(self) -> tuple[str, ...]:
        """Float linear layers; other weights in int8 first, where there are any."""
        return (f"fp32{DECODED}", "fp32") if self.has_rest else ("fp32",)

    @property
    def probe_form(self) -> str:
        """The int8 form that a search for ranks emits: it needs no calibration and loses least."""
        return f"int8-dynamic{DECODED}" if self.has_rest else "int8-dynamic"

    def write_dense(self, out: Path) -> None:
        """The dense fp32 baseline."""
        from edgepack.onnxgraph.files import save

        save(self.model, out)

    def write_baseline(self, form: str, out: Path) -> str:
        """The dense int8 baseline by the format's own quantizer; returns its name."""
        import onnx_ir as ir

        from edgepack.emit import onnx_standard

        try:
            onnx_standard.quantize(ir.to_proto(self.model), out, form, self._feeds, largest=self.largest)
        except ModelError as err:
            self._warn(f"{err}; the dense int8 baseline has its linear layers quantized by edgepack")
            self._write_linear(self.model, f"{form}{DECODED}", out)
            return "edgepack"
        return "onnxruntime"

    def write(self, factors: Mapping[str, Factors], form: str, out: Path) -> None:
        """The model with factors in place, in a form."""
        from edgepack.onnxgraph.rewrite import with_factors

        self._write_linear(with_factors(self.model, factors) if factors else self.model, form, out)

    def write_one_layer(self, layer: str, out: Path) -> None:
        """The dense model with a single layer in int8, to see what that layer costs."""
        from edgepack.emit import onnx as emit
        from edgepack.onnxgraph.files import save

        save(emit.to_form(self.model, "int8-dynamic", largest=self.largest, only=[layer]), out)

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

    def _write_linear(self, model: ir.Model, form: str, out: Path) -> None:
        """Linear layers by edgepack; all other weights as the runtime's quantizer makes them."""
        from edgepack.emit import onnx as emit
        from edgepack.onnxgraph.files import save

        linear_form = split_form(form)[0]
        seen = self._ranges(model) if linear_form == "int8-static-qdq" else None
        save(emit.to_form(self._with_rest(model, form, out), linear_form, ranges=seen, largest=self.largest), out)

    def _with_rest(self, model: ir.Model, form: str, scratch: Path) -> ir.Model:
        """The model with the weights of its other operators in int8, where it has any."""
        import onnx_ir as ir

        from edgepack.emit import onnx_rest, onnx_standard
        from edgepack.onnxgraph.sites import find_sites

        linear_form, decoded = split_form(form)
        if not self.has_rest or form == "fp32":
            return model
        if decoded:
            copy = model.clone()
            onnx_rest.to_int8_weights(copy, _linear_nodes(copy))
            return copy
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

    def _ranges(self, model: ir.Model) -> dict[str, tuple[float, float]]:
        from edgepack.onnxgraph.sites import find_sites

        if self._samples is None:
            return {}
        observation = Observation(model, [site.layer.name for site in find_sites(model)])
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
