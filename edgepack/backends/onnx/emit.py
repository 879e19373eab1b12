"""Writes the layers of a graph in their schemes, dense and thin ones alike: a pair is simply two layers here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

from edgepack.backends.onnx.constants import note_ranks
from edgepack.backends.onnx.constexpr import least_opset
from edgepack.backends.onnx.kinds import KINDS
from edgepack.backends.onnx.kinds.kind import Ranges, Storing
from edgepack.backends.onnx.rewrite import Build, rewrite
from edgepack.backends.onnx.schemes import CONSTEXPR, SCHEMES
from edgepack.backends.onnx.sites import Site, find_sites
from edgepack.errors import ModelError, UsageError
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.quantize.grids import WEIGHT_MAX

if TYPE_CHECKING:
    import onnx_ir as ir


def supports(scheme: Scheme, opset: int) -> bool:
    """Whether a model of this opset can hold the scheme without being lifted to a newer one."""
    return opset >= scheme.min_version


def to_schemes(
    model: ir.Model,
    scheme: Scheme,
    *,
    ranges: Ranges | None = None,
    qmax: int = WEIGHT_MAX,
    schemes: Mapping[str, Scheme] | None = None,
    weights: Mapping[str, Replacement] | None = None,
) -> ir.Model:
    """A new model with every layer in a scheme; the given one is unchanged.

    Args:
        scheme: of `edgepack.backends.onnx.schemes`.
        ranges: (low, high) of each layer's input by layer name, for the static scheme. A layer that is not in it was
            never seen at work and stays fp32.
        qmax: largest weight code of the int8 schemes; block-wise weights use all of their codes.
        schemes: the schemes of layers that differ from `scheme`, by layer name.
        weights: by layer name, what is written instead of a layer's own weight and bias; a layer stored in code is
            written so whatever its scheme.

    A layer W X with X of unknown rank stays fp32: its two last axes cannot be exchanged.

    Raises:
        UsageError: a scheme of no single matrix in ONNX, one that the model's opset is too old for, or the static one
            without ranges.
        ModelError: `schemes` names a layer that is not there.
    """
    schemes, weights = schemes or {}, weights or {}
    for each in dict.fromkeys((scheme, *schemes.values())):
        _check(each, model.opset_imports.get("", 1), ranges)
    emitted = model.clone()
    constexpr = {name: part for name, part in weights.items() if part.structure.is_constexpr}
    if scheme.is_float and not schemes and not constexpr:
        return emitted
    sites = [_with_weight(site, weights.get(site.layer.name)) for site in find_sites(emitted)]
    _check_names([*schemes, *constexpr], [site.layer.name for site in sites])
    chosen = [(site, schemes.get(site.layer.name, scheme)) for site in sites]
    if any(site.unknown_axes for site, own in chosen if not own.is_float):
        note_ranks(emitted)
    storing = Storing(ranges or {}, qmax, _onto_static_grids(chosen, ranges or {}))
    for site, own in chosen:
        part = constexpr.get(site.layer.name)
        build = None if site.unknown_axes else KINDS[site.layer.kind].stored(site, own, storing)
        if part is not None:
            build = _constexpr(site, part, model.opset_imports.get("", 1))
        if build is not None:
            rewrite(emitted, site, build)
    # A layer in several places may have quantized an input that an earlier node takes as well.
    emitted.graph.sort()
    for function in emitted.functions.values():
        function.sort()
    return emitted


def _onto_static_grids(chosen: Sequence[tuple[Site, Scheme]], ranges: Ranges) -> set[ir.Node]:
    """See `Storing.static`."""
    sites = [site for site, scheme in chosen if scheme.is_static and site.layer.name in ranges]
    return {one.node for site in sites for one in site.placements if one.kind == "rows" and not one.swapped}


def _constexpr(site: Site, part: Replacement, opset: int) -> Build:
    if opset < least_opset(part):
        raise ModelError(
            f"{site.layer.name}: the model has opset {opset}, its code needs {least_opset(part)}",
            hint="export the model with a newer opset",
        )
    if site.unknown_axes:
        raise ModelError(f"{site.layer.name}: stands in a product W X with X of unknown rank, and cannot be in code")
    return KINDS[site.layer.kind].replace(site, part)


def _with_weight(site: Site, part: Replacement | None) -> Site:
    if part is None or part.structure.is_constexpr:
        return site
    bias = site.layer.bias if part.bias is None else part.bias
    return replace(site, layer=site.layer.with_weight(part.weight, bias))


def _check(scheme: Scheme, opset: int, ranges: Ranges | None) -> None:
    if scheme not in (*SCHEMES, CONSTEXPR):
        raise UsageError(
            f"no single matrix of an ONNX file is in {scheme.key}; there are {', '.join(map(str, SCHEMES))}"
        )
    if not supports(scheme, opset):
        raise UsageError(
            f"the model has opset {opset}, the scheme {scheme} needs {scheme.min_version}",
            hint="export the model with a newer opset, or use --precision fp32",
        )
    if scheme.is_static and ranges is None:
        raise UsageError(f"the scheme {scheme} needs calibration data", hint="give --data, or use int8-dynamic")


def _check_names(wanted: Sequence[str], names: Sequence[str]) -> None:
    for name in wanted:
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"its layers are: {', '.join(names) or 'none'}"
            raise ModelError(f"a scheme was given for {name!r}, the model has no such linear layer", hint=hint)
