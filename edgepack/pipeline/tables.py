"""What each embedding table of a model could become in one format: candidates beside those of the layers.

A table's rows are stored in 8 bits or in 4, and are those of the table or of low-rank factors in its place, with a
product in float behind them. What that loses is the share of what rows tell apart. Where the losses of layers are in
the unit of the model's answer, files with a table changed and nothing else say how far that share moves it: that of a
smaller rank further than that of rounding, for errors of rounding differ from row to row and make up for each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgepack.backends.backend import THREADS, Writer
from edgepack.backends.registry import TOOLS
from edgepack.backends.runtime import answers, load
from edgepack.backends.schemes import FP32
from edgepack.backends.tables import EmbeddingTable
from edgepack.cost.sizes import resident_bytes, size_bytes
from edgepack.model.kinds import kind_of
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.model.structure import DENSE, Structure, low_rank
from edgepack.model.types import Array, Candidate, LayerPlan
from edgepack.pipeline.analysis import Analysis
from edgepack.pipeline.candidates import LayerCandidates
from edgepack.pipeline.gradients import CURVE_SAMPLES, gradient_kind
from edgepack.pipeline.latency_estimates import LatencyEstimates
from edgepack.plan.candidates import GivenRanks, break_even_rank
from edgepack.quantize.grids import BLOCK
from edgepack.torchgraph.draws import SMALLEST_SHARE, Kind, are_shares, shares_of
from edgepack.workspace import Keyed, Step, Workspace

MOST_RANKS = 12
"""Per table, in whole blocks of 4 bits."""

TRIAL_SHARE = 0.05
"""What a table is to lose, roughly, in the file that says how far that moves the answer: within what a plan may."""


def table_candidates(
    files: Writer, analysis: Analysis, estimates: LatencyEstimates, metric: str, workspace: Workspace
) -> tuple[LayerCandidates, ...]:
    """The candidates of each table that the format can plan.

    Args:
        metric: that answers are compared by.
    """
    all_candidates = []
    for table in files.embeddings:
        task = _TableToTry(files, table, analysis, metric, workspace)
        units = task.units() if analysis.sensitivity.known else _Units(1.0, 1.0)
        all_candidates.append(LayerCandidates(table.layer, tuple(_candidates(files, table, estimates, units)), None))
    return tuple(all_candidates)


@dataclass(frozen=True)
class _Units:
    """What a lost share of 1 loses in the unit of layers, by what it is lost to."""

    rank: float
    rounding: float


def _candidates(
    files: Writer, table: EmbeddingTable, estimates: LatencyEstimates, units: _Units
) -> Iterator[Candidate]:
    wide, *_ = files.table_schemes
    layer, kind = table.layer, kind_of(table.layer)
    for structure in kind.structures(layer, GivenRanks(_ranks(table), ())):
        rows, *products = kind.ops(layer, structure, table.vectors)
        part = None if structure.rank is None else table.factors(structure.rank)
        cut = table.lost_share(structure, FP32[files.fmt], part)
        latency_s = 0.0
        if products:
            estimate = estimates.of_product(FP32[files.fmt], products[0])
            if estimate is None:
                continue
            latency_s = layer.uses * estimate.latency_s
        held = layer.with_weight(layer.weight[:, : structure.rank], None)
        for scheme in files.table_schemes:
            if scheme != wide and files.supports(held, DENSE, scheme) is not None:
                continue
            size = size_bytes(scheme, (rows,), None) + size_bytes(wide, products, layer.weight[0] if products else None)
            yield Candidate(
                scheme=scheme,
                structure=structure,
                ops=(rows, *products),
                loss=units.rank * cut + units.rounding * max(table.lost_share(structure, scheme, part) - cut, 0.0),
                size_bytes=size,
                ram_bytes=resident_bytes(files.table_schemes[-1], size),
                latency_s=latency_s,
                source=estimates.source_name(files.fmt),
            )


def _ranks(table: EmbeddingTable) -> tuple[int, ...]:
    """In whole blocks, so that rows can have 4 bits; a lookup is free, so that only bytes say which pay."""
    most = break_even_rank(*table.layer.weight.shape) // BLOCK
    return tuple(int(BLOCK * one) for one in np.unique(np.linspace(1, most, min(most, MOST_RANKS)).astype(int)))


@dataclass(frozen=True)
class _TableToTry:
    """A table that is factored by itself, in a file that is in float32 otherwise."""

    files: Writer
    table: EmbeddingTable
    analysis: Analysis
    metric: str
    workspace: Workspace

    def units(self) -> _Units:
        """How far the answer moves for a lost share of 1: twice the second-order rise of the model's loss, as of
        layers (`layer_losses`)."""
        fp32, narrow = FP32[self.files.fmt], self.files.table_schemes[-1]
        alone, rest = FileScheme.of(fp32), self.files.rest(fp32)[0]
        layer, by_rank = self.table.layer, 0.0
        if ranks := _ranks(self.table):
            lost = self.table.spectrum.lost_share()[list(ranks)]
            thin = low_rank(ranks[int(np.abs(lost - TRIAL_SHARE).argmin())])
            _, product = kind_of(layer).ops(layer, thin, 1)
            by_rank = self._moved(alone, replace(alone, factored=((layer.name, product),)), thin, fp32)
        if self.files.supports(layer, DENSE, narrow) is not None:
            return _Units(by_rank, by_rank)
        return _Units(by_rank, self._moved(rest, replace(rest, single=((layer.name, narrow),)), DENSE, narrow))

    def _moved(self, before: FileScheme, after: FileScheme, structure: Structure, scheme: Scheme) -> float:
        key = [self.analysis.key, self.files.fmt, self.table.layer.weight, str(before), str(after), after.single]
        rise = self.workspace.cached(MOVED, Keyed(key, lambda: self._rise(before, after)))
        share = self.table.lost_share(structure, scheme, seen=True)
        return rise / share if share > 0 else 0.0

    def _rise(self, before: FileScheme, after: FileScheme) -> _Rise:
        calibration = self.analysis.subject.calibration
        if calibration is None:
            raise ValueError("nothing is known of the answers without data")
        samples, fmt = calibration.head(CURVE_SAMPLES), self.files.fmt
        path = self.workspace.folder / f"table.{fmt}"
        found = []
        for scheme in (before, after):
            self.files.write({}, scheme, path)
            found.append(answers(load(path, fmt, threads=THREADS), samples)[0])
        path.unlink()
        return _Rise(found[0], found[1], gradient_kind(self.metric))


@dataclass(frozen=True)
class _Rise:
    """The first output of a model, and of one that differs a little."""

    reference: Array
    other: Array
    kind: Kind


def _risen(task: _Rise) -> float:
    """See `edgepack.torchgraph.draws`: the square error, or that of scores of classes by the Fisher matrix."""
    reference, change = task.reference.astype(np.float64), task.other.astype(np.float64) - task.reference
    samples = len(reference)
    if task.kind == "vector" or reference.ndim < 2:
        return float(np.square(change).sum()) / samples
    if are_shares(reference):
        return float((np.square(change) / np.maximum(reference, SMALLEST_SHARE)).sum()) / samples
    shares = shares_of(reference)
    mean = (shares * change).sum(axis=-1)
    return float(((shares * np.square(change)).sum(axis=-1) - np.square(mean)).sum()) / samples


MOVED: Step[_Rise, float] = Step("table-rise", 1, _risen, tools=TOOLS)


def as_stored(way: FileScheme, tables: Sequence[LayerPlan]) -> FileScheme:
    """A file's scheme with tables as they are planned."""
    single = tuple((one.layer, one.scheme) for one in tables if one.scheme not in (None, way.others))
    return replace(way, single=single, factored=tuple((one.layer, one.ops[1]) for one in tables if one.structure.ranks))
