"""ONNX files of one source model: dense, baseline and packed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
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

RANGE_SAMPLES = 256
"""Samples that activation ranges are taken from, for the packs and the baseline alike."""


class OnnxFiles:
    """Writes the ONNX files of a build. `model` is the dense fp32 model and is never changed."""

    fmt: Format = "onnx"

    def __init__(self, model: ir.Model, calibration: Samples | None, *, largest: int) -> None:
        self.model = model
        self.calibrated = calibration is not None
        self._samples = None if calibration is None else calibration.head(RANGE_SAMPLES)
        self._largest = largest
        self.warnings: list[str] = []

    def write_dense(self, out: Path) -> None:
        from edgepack.onnxgraph.files import save

        save(self.model, out)

    def write_baseline(self, form: str, out: Path) -> str:
        from edgepack.emit import onnx_standard

        try:
            onnx_standard.quantize(self._proto(self.model), out, form, self._feeds, largest=self._largest)
        except ModelError as err:
            self._warn(f"{err}; the dense int8 baseline has its linear layers quantized by edgepack")
            self._write_linear(self.model, form, out)
            return "edgepack"
        return "onnxruntime"

    def write(self, factors: Mapping[str, Factors], form: str, out: Path) -> None:
        from edgepack.onnxgraph.rewrite import with_factors

        self._write_linear(with_factors(self.model, factors) if factors else self.model, form, out)

    def read(self, path: Path) -> Contents:
        from edgepack.onnxgraph.contents import read_contents

        return read_contents(path)

    def read_optimized(self, path: Path) -> Contents:
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

        if form == "fp32":
            save(model, out)
            return
        seen = self._ranges(model) if form == "int8-static-qdq" else None
        save(emit.to_form(self._with_rest(model, form, out), form, ranges=seen, largest=self._largest), out)

    def _with_rest(self, model: ir.Model, form: str, scratch: Path) -> ir.Model:
        """The model with the weights of its other operators quantized, where it has any."""
        import onnx_ir as ir

        from edgepack.emit import onnx_standard
        from edgepack.onnxgraph.sites import find_sites

        linear = {id(p.node): p.node.name or "" for site in find_sites(model) for p in site.placements}
        rest = onnx_standard.REST_OP_TYPES[form]
        if not any(n.op_type in rest and id(n) not in linear for n in model.graph):
            return model
        try:
            onnx_standard.quantize(
                self._proto(model),
                scratch,
                form,
                self._feeds,
                op_types=rest,
                exclude=[name for name in linear.values() if name],
                largest=self._largest,
            )
        except ModelError as err:
            self._warn(f"{err}; operators other than linear layers stay fp32")
            return model
        return ir.load(scratch)

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

    def _proto(self, model: ir.Model):  # type: ignore[no-untyped-def]
        import onnx_ir as ir

        return ir.to_proto(model)

    def _warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
