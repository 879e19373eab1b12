"""What a layer could become: schemes by precision, ranks by request, and only what the source of costs knows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgepack.backends.onnx import schemes as onnx
from edgepack.backends.schemes import CORRECTED, FP32, SCHEMES
from edgepack.backends.tflite import schemes as tflite
from edgepack.backends.tflite.kinds import refuses
from edgepack.cost.model import LatencyEstimate
from edgepack.cost.roofline import roofline
from edgepack.cost.sizes import resident_bytes, size_bytes
from edgepack.errors import UsageError
from edgepack.model.kinds.conv import ConvGeometry, conv_layer
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.kinds.matrix import linear_ops
from edgepack.model.layer import Layer
from edgepack.model.point import Point
from edgepack.model.scheme import Format, Scheme
from edgepack.model.structure import DENSE, Structure
from edgepack.model.types import Candidate
from edgepack.pipeline.candidates import NO_DATA_LOST_SHARE, LayerCandidates, Offer, make_candidates, offered
from edgepack.pipeline.latency_estimates import LatencyEstimates, Uses
from edgepack.pipeline.method_fits import NOTHING
from edgepack.pipeline.options import BuildOptions
from edgepack.plan.candidates import break_even_rank, rank_choices
from edgepack.targets.file import get_target
from tests.linear_plans import structure_at

TFLITE_LAYER_SCHEMES = (tflite.FP32, tflite.WEIGHTS8, tflite.INT8_DYNAMIC, tflite.INT4_DYNAMIC)


def layer(name: str = "fc", out: int = 96, inn: int = 64, op: str = "Gemm") -> Layer:
    return linear_layer(name, np.zeros((out, inn), np.float32), np.zeros(out, np.float32), op)


class Source:
    """A microsecond per thousand weights; nothing on the schemes that it lacks."""

    name = "test table"

    def __init__(self, lacks: Collection[Scheme]) -> None:
        self.lacks = lacks

    def estimates(self, points: Sequence[Point]) -> list[LatencyEstimate | None]:
        return [LatencyEstimate(p.weights * 1e-9, self.name, 0.0) if self.has(p) else None for p in points]

    def has(self, point: Point) -> bool:
        schemes = {point.scheme, *([point.scheme.correction] if point.structure.is_correction else [])}
        return not schemes & set(self.lacks)

    def call_s(self, fmt: Format) -> float:
        return 0.0

    def knows(self, scheme: Scheme) -> bool:
        return True


def all_candidates(
    *layers: Layer,
    fmt: Format = "onnx",
    lacks: Collection[Scheme] = (),
    unseen: Collection[str] = (),
    has_data: bool = True,
    losses: Mapping[tuple[Scheme, Structure], float] | None = None,
    corrections: bool = False,
    **given: Any,
) -> tuple[LayerCandidates, ...]:
    chosen = BuildOptions("m.onnx", get_target("rpi4"), formats=(fmt,), **given)
    asked = offered(layers, chosen, unseen)
    schemes = onnx.SCHEMES if fmt == "onnx" else TFLITE_LAYER_SCHEMES
    both = CORRECTED[fmt] if corrections else ()
    files: Any = SimpleNamespace(
        fmt=fmt,
        kept_scheme=FP32[fmt],
        layer_schemes=lambda: schemes,
        corrected_schemes=lambda: both,
        supports=supports,
    )
    own: dict[str, dict[tuple[Scheme, Structure], float]] = {}
    for one in layers:
        corrected = [way for way in asked[one.name].structures if way.is_correction]
        plain = [way for way in asked[one.name].structures if not way.is_correction]
        own[one.name] = dict(losses or {(f, way): loss_of(way) for f in SCHEMES[fmt] for way in plain})
        own[one.name] |= {(f, way): 1e-4 for f in both for way in corrected}
    uses = {one.name: Uses(1, 1) for one in layers}
    estimates = LatencyEstimates(
        {fmt: Source(lacks)}, roofline(get_target("rpi4")), uses, {one.name: one for one in layers}
    )
    return make_candidates(files, layers, Offer(asked, NOTHING, own, unseen, has_data), estimates, chosen)


def supports(layer: Layer, structure: Structure, scheme: Scheme) -> str | None:
    """Of the writers: only TFLite files ask more of a layer than that its scheme is among those they have."""
    return refuses(layer, structure, scheme) if scheme.backend == "tflite" else None


def loss_of(way: Structure) -> float:
    return 1e-3 * (1 + (way.rank or 0))


def kernel() -> Layer:
    geometry = ConvGeometry("Conv", (3, 3), (1, 1), (1, 1), (1,) * 4)
    return conv_layer("k", np.zeros((32, 24, 3, 3), np.float32), None, geometry)


def schemes_of(layer_candidates: LayerCandidates) -> set[Scheme]:
    return {one.scheme for one in layer_candidates.candidates}


def ranks_in(layer_candidates: LayerCandidates) -> set[int | None]:
    return {one.structure.rank for one in layer_candidates.candidates}


def corrected_in(layer_candidates: LayerCandidates) -> list[Candidate]:
    return [one for one in layer_candidates.candidates if one.structure.is_correction]


@pytest.mark.parametrize(
    ("precision", "in_onnx", "in_tflite"),
    [
        ("auto", set(onnx.SCHEMES), set(TFLITE_LAYER_SCHEMES)),
        ("fp32", {onnx.FP32}, {tflite.FP32}),
        (
            "int8",
            {onnx.WEIGHTS8, onnx.INT8_DYNAMIC, onnx.INT8_STATIC, onnx.NBITS8},
            {tflite.WEIGHTS8, tflite.INT8_DYNAMIC},
        ),
        ("int4", {onnx.WEIGHTS4, onnx.NBITS4}, {tflite.INT4_DYNAMIC}),
    ],
)
def test_schemes_by_precision(precision: str, in_onnx: set[Scheme], in_tflite: set[Scheme]) -> None:
    for fmt, expected in (("onnx", in_onnx), ("tflite", in_tflite)):
        (layer_candidates,) = all_candidates(layer(), fmt=fmt, precision=precision)  # type: ignore[arg-type]
        assert schemes_of(layer_candidates) == expected
        assert ranks_in(layer_candidates) == {None, 8, 16, 24}
        assert len(layer_candidates.candidates) == len(expected) * 4


def test_a_candidate_carries_the_figures_of_its_place() -> None:
    (layer_candidates,) = all_candidates(layer())
    for one in layer_candidates.candidates:
        rank = one.structure.rank
        ops = linear_ops(96, 64, one.structure, 1)
        size = size_bytes(one.scheme, ops, np.zeros(96, np.float32))
        weights = 96 * 64 if rank is None else rank * 160
        ram = resident_bytes(one.scheme, size)
        assert one.latency_s == pytest.approx(weights * 1e-9)
        loss = 0.0 if rank is None and one.scheme == onnx.FP32 else loss_of(one.structure)  # that is what was given
        assert one == Candidate(one.scheme, structure_at(rank), ops, loss, size, ram, one.latency_s, "test table")


def test_ranks_are_the_multiples_that_pay() -> None:
    (layer_candidates,) = all_candidates(layer(out=512, inn=784), precision="int8")
    assert ranks_in(layer_candidates) == {None, *rank_choices(512, 784)}
    assert layer_candidates.why_dense is None


def test_factors_of_a_tied_weight_take_the_table_as_well() -> None:
    plain = layer(out=300)
    (alone,), (tied,) = all_candidates(plain), all_candidates(replace(plain, tied=True))
    more = {
        (one.scheme, one.structure): one.size_bytes - other.size_bytes
        for one, other in zip(tied.candidates, alone.candidates, strict=True)
    }
    assert all(extra == 0 for (_, structure), extra in more.items() if structure.is_dense)
    assert {extra > plain.weight.size for (_, structure), extra in more.items() if structure.ranks} == {True}


def test_a_layer_too_small_for_a_pair_says_so() -> None:
    (layer_candidates,) = all_candidates(layer(out=10, inn=512))
    assert ranks_in(layer_candidates) == {None}
    assert (
        layer_candidates.why_dense == f"rank 8 saves too little, as the break-even rank is {break_even_rank(10, 512)}"
    )


@pytest.mark.parametrize(("rank", "expected"), [(5, 5), (0.5, 19), (0.25, 9)])
def test_a_fixed_rank_or_share_is_the_only_one(rank: int | float, expected: int) -> None:
    """96x64 has 6144 weights, a pair 160 per rank."""
    (layer_candidates,) = all_candidates(layer(), rank=rank)
    assert ranks_in(layer_candidates) == {expected}
    assert schemes_of(layer_candidates) == set(onnx.SCHEMES)


@pytest.mark.parametrize(
    ("rank", "why"),
    [(40, "rank 40 is above its break-even rank 38"), (0.001, "a share of 0.001 of its weights is less than rank 1")],
)
def test_a_rank_that_does_not_fit_leaves_the_layer_dense(rank: int | float, why: str) -> None:
    (layer_candidates,) = all_candidates(layer(), rank=rank)
    assert ranks_in(layer_candidates) == {None}
    assert layer_candidates.why_dense == why


def test_layers_that_the_data_never_reach_stay_dense_and_are_never_static() -> None:
    """An auto search must not factor what no sample reaches, and there is no range for a static grid."""
    seen, unseen = all_candidates(layer("seen"), layer("unseen"), unseen=["unseen"])
    assert None in ranks_in(seen)
    assert len(ranks_in(seen)) > 1
    assert onnx.INT8_STATIC in schemes_of(seen)
    assert ranks_in(unseen) == {None}
    assert schemes_of(unseen) == set(onnx.SCHEMES) - {onnx.INT8_STATIC}
    assert unseen.why_dense == "the data never reach it"


def test_an_unseen_layer_is_factored_where_the_user_says_the_rank() -> None:
    (layer_candidates,) = all_candidates(layer(), unseen=["fc"], rank=8)
    assert ranks_in(layer_candidates) == {8}
    assert onnx.INT8_STATIC not in schemes_of(layer_candidates)


LOSSES = {
    (scheme, structure_at(rank)): (0.0 if rank is None else {8: 0.5, 16: 0.02, 24: 0.009}[rank])
    + (0.02 if scheme.bits == 4 else 0.0)
    for scheme in onnx.SCHEMES
    for rank in (None, 8, 16, 24)
}


def test_without_data_a_layer_loses_at_most_a_hundredth() -> None:
    (layer_candidates,) = all_candidates(layer(), has_data=False, losses=LOSSES)
    assert {(one.scheme, one.structure.rank) for one in layer_candidates.candidates} == {
        (scheme, rank) for scheme in onnx.SCHEMES if scheme.bits > 4 for rank in (None, 24)
    }
    assert max(one.loss for one in layer_candidates.candidates) <= NO_DATA_LOST_SHARE


def test_without_data_what_was_asked_for_is_done_as_well_as_it_can_be() -> None:
    (fixed,) = all_candidates(layer(), has_data=False, losses=LOSSES, rank=8)
    assert ranks_in(fixed) == {8}
    (int4,) = all_candidates(layer(), has_data=False, losses=LOSSES, precision="int4")
    assert [(one.scheme, one.structure.rank, one.loss) for one in int4.candidates] == [(onnx.WEIGHTS4, None, 0.02)]


@pytest.mark.parametrize(
    ("one", "ranks"),
    [(layer(), {None, 8, 16, 24}), (layer(inn=63), set()), (layer(op="Conv"), set())],
    ids=["even", "odd", "convolution"],
)
def test_tflite_int4_only_where_it_has_a_kernel(one: Layer, ranks: set[int | None]) -> None:
    (layer_candidates,) = all_candidates(one, fmt="tflite")
    assert {c.structure.rank for c in layer_candidates.candidates if c.scheme == tflite.INT4_DYNAMIC} == ranks
    assert schemes_of(layer_candidates) >= {tflite.FP32, tflite.INT8_DYNAMIC}


@pytest.mark.parametrize("one", [layer(inn=63), layer(op="Conv")], ids=["odd", "convolution"])
def test_int4_that_has_no_kernel_leaves_the_layer_in_int8(one: Layer) -> None:
    """The runtime would unpack four bits at every inference."""
    other, odd = all_candidates(layer("even"), one, fmt="tflite", precision="int4")
    assert schemes_of(other) == {tflite.INT4_DYNAMIC}
    assert schemes_of(odd) == {tflite.WEIGHTS8, tflite.INT8_DYNAMIC}


def test_an_odd_rank_asked_for_in_int4() -> None:
    (layer_candidates,) = all_candidates(layer(), fmt="tflite", precision="int4", rank=7)
    assert ranks_in(layer_candidates) == {7}
    assert schemes_of(layer_candidates) == {tflite.WEIGHTS8, tflite.INT8_DYNAMIC}


def test_schemes_without_a_price_are_absent() -> None:
    (layer_candidates,) = all_candidates(layer(), lacks=[onnx.NBITS8, onnx.NBITS4])
    assert schemes_of(layer_candidates) == {
        onnx.FP32,
        onnx.WEIGHTS8,
        onnx.WEIGHTS4,
        onnx.INT8_DYNAMIC,
        onnx.INT8_STATIC,
    }


def test_a_precision_without_any_price_is_refused() -> None:
    with pytest.raises(UsageError, match=r"int4.*test table"):
        all_candidates(layer(), lacks=[onnx.WEIGHTS4, onnx.NBITS4], precision="int4")


@pytest.mark.parametrize("rank", ["auto", 16, 0.25], ids=str)
def test_a_layer_whose_factors_the_format_cannot_hold_stays_dense(monkeypatch: pytest.MonkeyPatch, rank: Any) -> None:
    def only_dense(one: Layer, structure: Structure, scheme: Scheme) -> str | None:
        return None if structure.is_dense else "there is no room for its factors"

    monkeypatch.setattr("tests.pipeline.test_candidates.supports", only_dense)
    (found,) = all_candidates(layer(out=512, inn=384), rank=rank)
    assert {one.structure for one in found.candidates} == {DENSE}
    assert found.why_dense == "there is no room for its factors"


def test_every_layer_gets_a_menu_in_order() -> None:
    made = all_candidates(layer("a"), layer("b", 10, 512), layer("c", 256, 256))
    assert [layer_candidates.layer.name for layer_candidates in made] == ["a", "b", "c"]
    assert all(layer_candidates.candidates for layer_candidates in made)


@pytest.mark.parametrize(
    ("asked", "ranks"),
    [
        ({}, {8, 16, 32}),
        ({"precision": "int4"}, {8, 16, 32}),
        ({"precision": "int8"}, set()),
        ({"precision": "fp32"}, set()),
        ({"rank": 16}, set()),
        ({"unseen": ["fc"]}, set()),
        ({"lacks": [onnx.NBITS8]}, set()),
        ({"lacks": [onnx.NBITS4]}, set()),
        ({"fmt": "tflite"}, set()),
    ],
    ids=str,
)
def test_a_pair_beside_the_dense_matrix(asked: dict[str, Any], ranks: set[int]) -> None:
    """Where 4 bits are allowed and nobody says which rank; a source that lacks one half of it has no estimate."""
    (layer_candidates,) = all_candidates(layer(out=512, inn=384), corrections=True, **asked)
    found = corrected_in(layer_candidates)
    assert {one.structure.rank for one in found} == ranks
    for one in found:
        assert one.scheme in CORRECTED["onnx"]
        ops = linear_ops(512, 384, one.structure, 1)
        assert one.size_bytes == size_bytes(one.scheme, ops, np.zeros(512, np.float32))
        assert one.latency_s == pytest.approx((512 * 384 + (one.structure.rank or 0) * (512 + 384)) * 1e-9)


def test_no_pair_beside_a_small_layer() -> None:
    """The pair would take half of what 4 bits save, or more."""
    (layer_candidates,) = all_candidates(layer(out=10, inn=512), corrections=True)
    assert not corrected_in(layer_candidates)
    (layer_candidates,) = all_candidates(layer(out=64, inn=64), corrections=True)
    assert {one.structure.rank for one in corrected_in(layer_candidates)} == {8}


def test_at_an_asked_share_a_kernel_has_the_structure_that_loses_least() -> None:
    one = kernel()
    structures = offered([one], BuildOptions("m.onnx", get_target("rpi4"), rank=0.3), ())["k"].in_place
    assert len(structures) == 4
    for best in structures:
        losses = {(f, way): 0.1 if way == best else 0.2 for f in onnx.SCHEMES for way in (DENSE, *structures)}
        (layer_candidates,) = all_candidates(one, rank=0.3, losses=losses)
        assert {candidate.structure for candidate in layer_candidates.candidates} == {best}
