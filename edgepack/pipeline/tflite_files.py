"""TFLite files of one source model. Conversions take seconds, so they are kept in the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from edgepack.cache import Cache, digest
from edgepack.data import Samples, feeds
from edgepack.emit.tflite import TfliteEmitter
from edgepack.errors import ModelError
from edgepack.pipeline.opened import Opened
from edgepack.types import Array, Contents, Factors, Format
from edgepack.versions import tool_versions

RANGE_SAMPLES = 128


class TfliteFiles:
    """Writes the TFLite files of a build through one converter process, which starts at once and imports meanwhile."""

    fmt: Format = "tflite"

    def __init__(self, cache: Cache, work: Path) -> None:
        self._cache = cache
        self._work = work
        self._emitter = TfliteEmitter()
        self._emitter.warm_up()
        self._loaded = False
        self._opened: Opened | None = None
        self.calibrated = False

    def __enter__(self) -> TfliteFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._emitter.close()

    def open(self, opened: Opened, calibration: Samples | None, example: Mapping[str, Array]) -> None:
        """Choose the model. Nothing is converted yet.

        Args:
            example: inputs of one run; their shapes are those of the files.
        """
        self._opened = opened
        self.calibrated = calibration is not None
        self._samples = None if calibration is None else calibration.head(RANGE_SAMPLES)
        self._shapes = {name: list(array.shape) for name, array in example.items()}
        self._key = digest(opened.sha256, opened.kind, self._shapes, tool_versions())

    fp32_forms = ("fp32",)
    probe_form = "int8-dynamic-range"

    def forms(self, preferred: Sequence[str]) -> tuple[str, ...]:
        """The forms to try for this model, fastest first."""
        return tuple(preferred)

    def write_dense(self, out: Path) -> None:
        """The dense fp32 baseline."""
        self.write({}, "fp32", out)

    def write_baseline(self, form: str, out: Path) -> str:
        """The dense int8 baseline by the format's own quantizer; returns its name."""
        self.write({}, form, out)
        return "ai-edge-quantizer"

    def write(self, factors: Mapping[str, Factors], form: str, out: Path) -> None:
        """The model with factors in place, in a form."""
        parts = [part for name in sorted(factors) for part in _parts(name, factors[name])]
        key = digest(self._key, *parts)
        source = out if form == "fp32" else self._work / f"{key[:16]}.fp32.tflite"
        if form == "fp32" or not source.is_file():
            self._cache.file("tflite", key, ".tflite", lambda path: self._emit(factors, path), source)
        if form != "fp32":
            samples = self._quantizer_samples(source) if form == "int8-static" else None
            data = [] if samples is None else [a for name in sorted(samples) for a in (name, samples[name])]
            quantized = digest(key, form, *data)

            def quantize(path: Path) -> None:
                self._emitter.quantize(source, path, form, samples)

            self._cache.file("tflite", quantized, ".tflite", quantize, out)

    def read(self, path: Path) -> Contents:
        """What the file holds."""
        from edgepack.tflitegraph import constant_vectors, linear_ops

        weights = [(min(op.weight.shape), max(op.weight.shape), op.bits // 8) for op in linear_ops(path)]
        return Contents(tuple(sorted(weights)), tuple(constant_vectors(path)))

    def read_optimized(self, path: Path) -> Contents:
        """The file's own operators: LiteRT's delegates pack weights but fold no two of them into one."""
        return self.read(path)

    def _emit(self, factors: Mapping[str, Factors], path: Path) -> None:
        opened = self._opened
        if opened is None:
            raise ValueError("open() comes first")
        if not self._loaded:
            if opened.program_path is not None:
                self._emitter.load_program(opened.program_path)
            else:
                self._emitter.load_onnx(opened.onnx_path, self._shapes)
            self._loaded = True
        missing = self._emitter.emit(path, opened.layers, factors or None)
        if missing:
            raise ModelError(f"no counterpart in the torch graph for {', '.join(missing)}")

    def _quantizer_samples(self, source: Path) -> dict[str, Array]:
        """Calibration inputs under the file's own names: (samples, *input shape)."""
        from edgepack.inference import rename
        from edgepack.tfliterun import signature

        if self._samples is None:
            return {}
        specs = tuple(signature(source)[1].values())
        runs = [feed for feed, _ in feeds(rename(self._samples, specs), specs)]
        return {spec.name: np.stack([run[spec.name] for run in runs]) for spec in specs}


def _parts(name: str, factors: Factors) -> list[object]:
    bias = [] if factors.bias is None else [factors.bias]
    return [name, factors.A, factors.B, *bias]
