"""ONNX graphs, with ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.backends.backend import Session
from edgepack.backends.onnx.observation import OnnxObservation
from edgepack.backends.onnx.runtime import load
from edgepack.backends.onnx.schemes import CONSTEXPR, FP32
from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.backends.tables import EmbeddingTable
from edgepack.data import Samples
from edgepack.model.constexpr import plain
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import FileScheme
from edgepack.model.types import Array
from edgepack.quantize.grids import WEIGHT_MAX

if TYPE_CHECKING:
    import onnx_ir as ir


class OnnxNative:
    """See `Native`. A model in memory is an `onnx_ir.Model`."""

    def session(
        self, model: ir.Model, parts: Mapping[str, Replacement], *, threads: int, exact: bool = True
    ) -> Session:
        """See `Native.session`."""
        writer = OnnxWriter(model, None, qmax=WEIGHT_MAX)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            if parts:
                dense = {n: plain(part.weight, part.bias) for n, part in parts.items() if not part.structure.ranks}
                writer.write({**parts, **dense}, FileScheme.of(FP32), path, dict.fromkeys(dense, CONSTEXPR))
            else:
                writer.write_dense(path)
            return load(path, threads=threads, exact=exact)

    def observe(self, model: ir.Model, views: Iterable[str], *, threads: int) -> OnnxObservation:
        """See `Native.observe`."""
        return OnnxObservation(model, views, threads=threads)

    def depths(self, model: ir.Model, layers: Collection[str]) -> Mapping[str, int]:
        """See `Native.depths`."""
        from edgepack.backends.onnx.depth import depths

        return depths(model, layers)

    def with_factors(
        self, model: ir.Model, factors: Mapping[str, Replacement]
    ) -> tuple[ir.Model, Mapping[str, tuple[str, ...]]]:
        """See `Native.with_factors`."""
        from edgepack.backends.onnx.rewrite import names_after, with_factors

        made = with_factors(model, factors)
        return made, names_after(model, made, factors)

    def tables(self, model: ir.Model, samples: Samples | None) -> tuple[EmbeddingTable, ...]:
        """See `Native.tables`."""
        return OnnxWriter(model, samples, qmax=WEIGHT_MAX).embeddings

    def weight_bytes(self, model: ir.Model) -> int:
        """See `Native.weight_bytes`."""
        from edgepack.backends.onnx.tensors import weight_bytes

        return weight_bytes(model)

    def macs(self, model: ir.Model, feed: Mapping[str, Array]) -> int | None:
        """See `Native.macs`."""
        from edgepack.backends.onnx.macs import macs

        return macs(model, feed)
