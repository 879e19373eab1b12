"""Files in which every layer has the scheme that the planner's predicted losses choose for a size of the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from accuracy.dense import rounded_dense
from accuracy.pairs import rounded
from accuracy.study import LARGEST, SEED, Row, Study
from edgepack.backends.onnx.kinds.embedding import OnnxEmbedding
from edgepack.backends.onnx.schemes import INT8_DYNAMIC, NBITS4, TABLES4
from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.cost.sizes import size_bytes
from edgepack.model.kinds.matrix import linear_ops
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.structure import DENSE, Structure, low_rank
from edgepack.model.types import Candidate
from edgepack.pipeline.activations import Covariances, Subject
from edgepack.pipeline.analysis import Analysis
from edgepack.pipeline.gradients import make_sensitivity
from edgepack.pipeline.losses import predict_losses
from edgepack.plan.candidates import rank_choices
from edgepack.plan.loss import Wanted
from edgepack.plan.solve import Bounds, Infeasible, least_loss
from edgepack.workspace import Cache, digest, open_workspace

SCHEMES = (INT8_DYNAMIC, NBITS4)
MIXED = 0
"""Bits of a file whose layers differ."""


def mixed_rows(study: Study, shares: Sequence[float]) -> Iterator[Row]:
    """Files of at most these shares of the dense int8 file, as far as there are any: of dense layers alone and with
    pairs, the embedding tables in int8 and in int4.
    """
    int8_bytes = study.write({}, INT8_DYNAMIC).stat().st_size
    all_candidates = candidates(study)
    made: dict[tuple[str, Candidate], Replacement] = {}
    for tables, own in (("int8", study), ("int4", _with_int4_tables(study))):
        fixed = own.write({}, INT8_DYNAMIC).stat().st_size - sum(
            _dense_int8(layer_candidates).size_bytes for layer_candidates in all_candidates
        )
        for pairs in (False, True):
            offered = [
                [one for one in layer_candidates if pairs or one.structure.is_dense]
                for layer_candidates in all_candidates
            ]
            for share in shares:
                found = least_loss(offered, Bounds(size_bytes=max(share * int8_bytes - fixed, 0.0)))
                if isinstance(found, Infeasible):
                    continue
                picked = [
                    layer_candidates[index] for layer_candidates, index in zip(offered, found.chosen, strict=True)
                ]
                plan = dict(zip(study.layers, picked, strict=True))
                for name, one in plan.items():
                    if (name, one) not in made:
                        made[name, one] = _part(study, name, one)
                parts = {name: made[name, one] for name, one in plan.items()}
                path = own.write(parts, INT8_DYNAMIC, {name: one.scheme for name, one in plan.items()})
                row = own.row(path, f"{'pairs too' if pairs else 'dense'}, {tables} tables", MIXED, share)
                yield {**row, "layers": _kinds(picked)}


def _with_int4_tables(study: Study) -> Study:
    model = study.opened.content.clone()
    kind = OnnxEmbedding()
    kind.store(model, {table.name: TABLES4 for table in kind.find(model)})
    files = OnnxWriter(model, study.calibration, qmax=LARGEST)
    return replace(study, opened=replace(study.opened, content=model), files=files)


def candidates(study: Study) -> list[list[Candidate]]:
    """Of every layer: dense and at every rank worth trying, in 8 and in 4 bits; no latency."""
    layers = list(study.layers.values())
    spectra = {layer.name: study.seen[layer.name] for layer in layers}
    ranks = {layer.name: rank_choices(layer.out_features, layer.in_features) for layer in layers}
    metric = "classes" if study.subject.classes else "cosine"
    key = digest(study.opened.sha256)
    subject = Subject(study.opened, study.calibration, key)
    with open_workspace(Cache(study.work / "cache"), seed=SEED) as workspace:
        analysis = Analysis(
            subject=subject,
            method="whitened",
            spectra=spectra,
            unseen=(),
            covariances=Covariances(subject, workspace),
            gradients=None,
            sensitivity=make_sensitivity(subject, spectra, metric, key, workspace),
            qmax=LARGEST,
            key=key,
        )
        losses = predict_losses(analysis, {name: Wanted(SCHEMES, own) for name, own in ranks.items()}, workspace)
    return [
        [
            _candidate(layer, scheme, structure, losses[layer.name][scheme, structure])
            for scheme in SCHEMES
            for structure in (DENSE, *map(low_rank, ranks[layer.name]))
        ]
        for layer in layers
    ]


def _candidate(layer: View, scheme: Scheme, structure: Structure, loss: float) -> Candidate:
    ops = linear_ops(layer.out_features, layer.in_features, structure, 1)
    return Candidate(scheme, structure, ops, loss, size_bytes(scheme, ops, layer.bias), 0, 0.0)


def _dense_int8(layer_candidates: Sequence[Candidate]) -> Candidate:
    return next(one for one in layer_candidates if one.structure.is_dense and one.scheme == INT8_DYNAMIC)


def _part(study: Study, name: str, one: Candidate) -> Replacement:
    layer = study.layers[name]
    if one.structure.is_dense:
        return rounded_dense(layer, one.scheme)
    return rounded(layer, study.seen[name], one.structure.ranks[0], one.scheme)


def _kinds(picked: Sequence[Candidate]) -> dict[str, int]:
    """How many layers are dense and pairs in each number of bits."""
    kinds = [f"{'dense' if one.structure.is_dense else 'pairs'} int{one.scheme.bits}" for one in picked]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}
