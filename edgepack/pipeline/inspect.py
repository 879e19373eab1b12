"""`edgepack inspect`: what there is to gain in a model, in seconds, without building anything."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepack.cache import Cache, digest
from edgepack.data import Samples, example
from edgepack.errors import ModelError
from edgepack.factorize import needs_gradients
from edgepack.model.kinds import views_of
from edgepack.model.layer import Layer
from edgepack.pipeline.guarding import choose_method, load_data, make_guard
from edgepack.pipeline.observe import Observation, joined
from edgepack.pipeline.opened import Opened, open_model
from edgepack.pipeline.output_gradients import weighed
from edgepack.pipeline.statistics import decompose
from edgepack.plan.candidates import break_even_rank
from edgepack.progress import Progress, silent
from edgepack.types import Spectrum


@dataclass(frozen=True)
class LayerReport:
    """One linear layer.

    Attributes:
        rows: rows it multiplies in one inference of the example inputs; None where its input was never seen.
        bytes_share: of all weight bytes of the model.
        macs_share: of the multiplications of all linear layers; None where a layer's rows are unknown.
        break_even: largest rank at which a pair has fewer weights and multiplications than the dense layer of the same
            precision, fp32 or int8.
        break_even_int8_int4: likewise for an int8 pair in bytes against a dense int4 layer.
        rank_90, rank_99: ranks that keep 90 % and 99 % of the output energy.
    """

    name: str
    op: str
    out_features: int
    in_features: int
    uses: int
    rows: int | None
    weight_bytes: int
    bytes_share: float
    macs_share: float | None
    break_even: int
    break_even_int8_int4: int
    rank_90: int
    rank_99: int


@dataclass(frozen=True)
class ModelReport:
    """The whole model. `method` says what the ranks are by: output energy on data, or weight energy without."""

    model: str
    weight_bytes: int
    linear_bytes: int
    method: str
    layers: tuple[LayerReport, ...]


def inspect(
    model: str,
    *,
    data: Path | None = None,
    method: str | None = None,
    seed: int = 0,
    fresh: bool = False,
    cache: Cache | None = None,
    progress: Progress = silent,
) -> ModelReport:
    """Report every linear layer of a model.

    Args:
        model, data, method, seed, fresh: as for `build`.

    Raises:
        UsageError, InputError: bad arguments, model or data.
    """
    cache = cache or Cache(fresh=fresh)
    with tempfile.TemporaryDirectory(prefix="edgepack-") as folder:
        progress("open model")
        opened = open_model(model, Path(folder))
        if not opened.layers:
            raise ModelError(f"{model}: no linear layer found; there is nothing to factor")
        loaded = load_data(data, opened, model, seed)
        chosen = choose_method(method, loaded)
        key = digest(opened.sha256, loaded.digest())
        gradients = None
        if needs_gradients(chosen):
            metric = make_guard(None, loaded, opened.onnx_path, exact=False).metric
            work = Path(folder)
            _, gradients = weighed(opened, chosen, loaded.calibration, metric, seed, key, cache, work, progress)
        spectra, _ = decompose(
            *(opened.model, views_of(opened.layers), chosen, loaded.calibration, key, cache, progress),
            gradients=gradients,
        )
        progress("count rows")
        return _report(opened, chosen, spectra, _rows(opened, loaded.calibration, seed))


def _rows(opened: Opened, samples: Samples | None, seed: int) -> dict[str, int]:
    """Rows that one inference multiplies, by layer; empty where the model does not run on stand-in inputs."""
    try:
        observation = Observation(opened.model, [layer.name for layer in opened.layers])
        counts = observation.row_counts(example(samples, opened.inputs, seed))
    except ModelError:
        if samples is not None:
            raise
        return {}
    return {name: counts[joined(key)] for name, key in observation.keys.items()}


def _report(opened: Opened, method: str, spectra: tuple[Spectrum, ...], rows: dict[str, int]) -> ModelReport:
    from edgepack.onnxgraph.tensors import weight_bytes

    total = weight_bytes(opened.model)
    macs = {layer.name: rows[layer.name] * layer.weight.size for layer in opened.layers if layer.name in rows}
    known = len(macs) == len(opened.layers) and sum(macs.values()) > 0
    reports = tuple(
        _layer(layer, spectrum, total, rows.get(layer.name), macs[layer.name] / sum(macs.values()) if known else None)
        for layer, spectrum in zip(opened.layers, spectra, strict=True)
    )
    return ModelReport(opened.name, total, sum(r.weight_bytes for r in reports), method, reports)


def _layer(layer: Layer, spectrum: Spectrum, total: int, rows: int | None, macs_share: float | None) -> LayerReport:
    m, n = layer.out_features, layer.in_features
    lost = spectrum.lost_share()
    size = m * n * 4
    return LayerReport(
        name=layer.name,
        op=layer.geometry.operator,
        out_features=m,
        in_features=n,
        uses=layer.uses,
        rows=rows,
        weight_bytes=size,
        bytes_share=size / total if total else 0.0,
        macs_share=macs_share,
        break_even=break_even_rank(m, n),
        break_even_int8_int4=(m * n - 1) // (2 * (m + n)),
        rank_90=int(np.argmax(lost <= 0.10)),
        rank_99=int(np.argmax(lost <= 0.01)),
    )
