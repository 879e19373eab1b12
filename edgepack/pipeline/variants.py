"""The ways to write the file of a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from edgepack.backends.backend import Writer
from edgepack.backends.schemes import FP32
from edgepack.model.kinds.linear import NAME as LINEAR
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.model.types import LayerPlan
from edgepack.pipeline import limits
from edgepack.pipeline.evaluator import Evaluator
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.pareto import LayerPlans, Step
from edgepack.pipeline.tables import as_stored
from edgepack.plan.candidates import base_scheme


def variants(
    evaluator: Evaluator, files: Writer, step: Step, rival: Scheme | None
) -> Iterator[tuple[FileScheme, LayerPlans]]:
    """With its other weights, and as a whole in schemes that may be faster than the estimates say: those that only
    whole files have, and that of dense int8 where there are other layers than linear ones, which alone were measured.

    Args:
        rival: the scheme of dense int8, where files are measured on this machine.
    """
    written = written_schemes(evaluator, files, step.layers, step.tables)
    yield from ((file, step.layers) for file in written)
    small = evaluator.aim == "size" or evaluator.options.max_size_bytes is not None
    chosen = evaluator.options.precision == "auto" and not step.tables
    estimated = any(layer.kind != LINEAR or layer.geometry.operator == "Conv" for layer in evaluator.layers)
    rivals = (rival,) if rival is not None and chosen and estimated and rival not in files.file_schemes else ()
    for scheme in (*files.file_schemes, *rivals):
        own = {layer.scheme or scheme for layer in step.layers}
        # Such a file may be the fastest of a plan in fewer bits as well, in more bytes than were planned.
        least, most = scheme.bits if small else 0, FP32[scheme.backend].bits if scheme in rivals else scheme.bits
        if not all(least <= each.bits <= most and not each.is_constexpr for each in own):
            continue
        if scheme in files.file_schemes:
            yield FileScheme.of(scheme), tuple(replace(layer, scheme=scheme) for layer in step.layers)
            continue
        layers = tuple(_in_scheme(evaluator, files, layer, scheme) for layer in step.layers)
        if layers != step.layers:
            yield files.rest(scheme)[0], layers


def _in_scheme(evaluator: Evaluator, files: Writer, plan: LayerPlan, scheme: Scheme) -> LayerPlan:
    """As it was planned, where it cannot be written in this one."""
    layer = next(one for one in evaluator.layers if one.name == plan.layer)
    return plan if files.supports(layer, plan.structure, scheme) is not None else replace(plan, scheme=scheme)


def written_schemes(
    evaluator: Evaluator, files: Writer, layers: LayerPlans, tables: LayerPlans = ()
) -> tuple[FileScheme, ...]:
    """The ways to write the file of a plan, the one to try first in front: as `plain_ways`, before them with embedding
    tables as they are planned; where they are not, in 4 bits where there are data to measure the accuracy on or 4 bits
    were asked for. Tables are so where they are in integers."""
    ways, precision = plain_ways(evaluator.options, files, layers), evaluator.options.precision
    if tables:
        planned = [as_stored(way, tables) for way in ways if _has_integer_rows(way)]
        return tuple(dict.fromkeys((*planned, *ways)))
    if precision == "int4" or (precision == "auto" and evaluator.file_evaluator.validation.has_data):
        narrow = [way for way in ways if _has_integer_rows(way)][:1]
        return (*(replace(way, single=files.tables) for way in narrow if files.tables), *ways)
    return ways


def _has_integer_rows(way: FileScheme) -> bool:
    return not (way.others.is_float or way.others.is_static)


def plain_ways(options: BuildOptions, files: Writer, layers: LayerPlans) -> tuple[FileScheme, ...]:
    """With its other weights in 8 bits or as they are, by the scheme of its layers; where fp32 was asked for every
    weight is so."""
    plain = limits.plain_scheme(options, files)
    return (plain,) if options.precision == "fp32" else files.rest(base_scheme(layers, plain.layers))


def trial_scheme(options: BuildOptions, files: Writer, layers: LayerPlans, tables: LayerPlans = ()) -> FileScheme:
    """The one of `plain_ways` that a plan is tried in: weights beside linear layers in int8, decoded at load, where
    there are any, and tables as they are planned.

    Where they are not, tables in 4 bits are tried with the file that is written.
    """
    schemes = plain_ways(options, files, layers)
    found = next((scheme for scheme in reversed(schemes) if scheme.others != scheme.layers), schemes[0])
    return as_stored(found, tables) if tables and _has_integer_rows(found) else found
