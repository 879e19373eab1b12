"""Dense layers on integer grids: rounded to nearest by whoever writes the file, or by GPTQ with the inputs in mind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from accuracy.study import LARGEST, Study, moments_of
from edgepack.factorize.whitened import shrunk_covariance
from edgepack.pipeline.onnx_files import OnnxFiles
from edgepack.quantize.bias import corrected_bias
from edgepack.quantize.gptq import gptq
from edgepack.quantize.lattice import grid_of
from edgepack.types import Array, Factors, LinearLayer

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepack.onnxgraph.rewrite import Builder
    from edgepack.onnxgraph.sites import Placement, Site


@dataclass(frozen=True)
class Dense:
    """A weight (out, in) on its grid with the bias that goes with it."""

    weight: Array
    bias: Array | None


def rounded_dense(layer: LinearLayer, form: str) -> Dense:
    """By GPTQ; with the mean output put right where there is a bias, else on the raw second moment.

    Raises:
        ValueError: the form has no integer grid.
    """
    grid = grid_of(form, layer.in_features, largest=LARGEST)
    if grid is None:
        raise ValueError(f"{form} has no integer grid")
    moments = moments_of(layer)
    if layer.bias is None:
        return Dense(gptq(layer.weight, moments.second, grid).weight, None)
    weight = gptq(layer.weight, shrunk_covariance(moments), grid).weight
    return Dense(weight, corrected_bias(layer.bias, layer.weight, weight, moments.mean))


def write_parts(study: Study, parts: Mapping[str, Factors | Dense], forms: Mapping[str, str], rest: str) -> Path:
    """The model with pairs and other dense weights in place, each layer in its own form, all that is left in `rest`."""
    from edgepack.onnxgraph.rewrite import with_factors

    pairs = {name: part for name, part in parts.items() if isinstance(part, Factors)}
    model = with_factors(study.opened.model, pairs) if pairs else study.opened.model.clone()
    names = _names_after(study, model, pairs)
    weights = {names[name][0]: part for name, part in parts.items() if isinstance(part, Dense)}
    _put_weights(model, weights)
    own = {after: forms[name] for name, all_after in _names_after(study, model, pairs).items() for after in all_after}
    files = OnnxFiles(model, study.calibration, largest=LARGEST)
    path = study.work / "candidate.onnx"
    files.write({}, files.rest(rest)[0], path, own)
    return path


def _names_after(study: Study, model: ir.Model, pairs: Mapping[str, Factors]) -> dict[str, tuple[str, ...]]:
    """What each layer is called in the changed model: one name, or those of its two halves, by their order."""
    from edgepack.onnxgraph.sites import find_sites

    after = iter([site.layer.name for site in find_sites(model.clone())])
    return {name: tuple(islice(after, 2 if name in pairs else 1)) for name in study.layers}


def _put_weights(model: ir.Model, weights: Mapping[str, Dense]) -> None:
    from edgepack.onnxgraph.sites import find_sites

    for site in find_sites(model):
        if site.layer.name in weights:
            _replace(model, site, weights[site.layer.name])


def _replace(model: ir.Model, site: Site, dense: Dense) -> None:
    from edgepack.onnxgraph.rewrite import rewrite

    def build(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
        if placement.kind != "rows":
            raise ValueError(f"{site.layer.name}: a layer of kind {placement.kind}")
        weight = builder.constant(np.ascontiguousarray(dense.weight.T), f"{site.layer.name}.weight")
        if dense.bias is None:
            return builder.op("MatMul", [x, weight])
        bias = builder.constant(dense.bias, f"{site.layer.name}.bias")
        if placement.node.op_type == "Gemm":
            return builder.op("Gemm", [x, weight, bias])
        return builder.op("Add", [builder.op("MatMul", [x, weight]), bias])

    rewrite(model, site, build)
