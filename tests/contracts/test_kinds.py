"""What every kind of layer keeps. A new kind adds an example to `EXAMPLES`, and nothing else here."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from edgepack.factorize import svd
from edgepack.model.kinds import KINDS, kind_of, views_of
from edgepack.model.kinds.conv import ConvGeometry, conv_layer
from edgepack.model.kinds.embedding import embedding_layer
from edgepack.model.kinds.kind import LayerKind
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.kinds.recurrent import RecurrentGeometry, recurrent_layer
from edgepack.model.kinds.stages import behind_first, put_in_front
from edgepack.model.layer import WEIGHT, Array, Layer, View
from edgepack.model.replacement import (
    Instruction,
    Replacement,
    constexpr,
    dense,
    low_rank,
    low_rank_correction,
)
from edgepack.model.serialize import packed_part, unpacked_part
from edgepack.model.structure import CONSTEXPR, DENSE, Op, Structure, structure_of
from edgepack.model.structure import low_rank as low_rank_of
from edgepack.model.structure import low_rank_correction as correction_of
from edgepack.pipeline.stages import StageFit
from edgepack.plan.candidates import GivenRanks, WorthwhileRanks


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Example:
    """A layer of some kind at work.

    Attributes:
        layer: with more weights than factors of rank 8 have.
        activations: what it takes, features on the last axis.
        answers: by view, what its vectors come to, bias left out: (vectors, out).
    """

    layer: Layer
    activations: Array
    answers: Mapping[str, Array]


def gemm() -> Example:
    weight, x = normal(48, 40), normal(5, 40, seed=1)
    layer = linear_layer("encoder.fc1", weight, normal(48, seed=2))
    return Example(layer, x, {WEIGHT: np.einsum("ni,oi->no", x, weight)})


def sequence_without_bias() -> Example:
    weight, x = normal(40, 64, seed=3), normal(2, 3, 64, seed=4)
    layer = linear_layer("attention.q", weight, None, "MatMul", uses=2)
    return Example(layer, x, {WEIGHT: np.einsum("bti,oi->bto", x, weight).reshape(6, 40)})


def pointwise() -> Example:
    weight, x = normal(56, 32, seed=5), normal(2, 4, 3, 32, seed=6)
    layer = linear_layer("stage.conv", weight, normal(56, seed=7), "Conv")
    return Example(layer, x, {WEIGHT: np.einsum("nhwi,oi->nhwo", x, weight).reshape(24, 56)})


def convolved(x: Array, kernel: Array, geometry: ConvGeometry, sizes: tuple[int, ...]) -> Array:
    """(positions, out) of an input (images, *axes, in) that gives so many patches along each axis, place by place."""
    axes = len(sizes)
    before, behind = geometry.pads[:axes], geometry.pads[axes:]
    padded = np.pad(x, [(0, 0), *zip(before, behind, strict=True), (0, 0)])
    total = np.zeros((len(x), *sizes, len(kernel)), np.float32)
    for place in np.ndindex(*geometry.kernel):
        firsts = [step * one for step, one in zip(geometry.dilations, place, strict=True)]
        spans = zip(firsts, sizes, geometry.strides, strict=True)
        taken = padded[
            (slice(None), *(slice(first, first + (size - 1) * step + 1, step) for first, size, step in spans))
        ]
        total += np.einsum("...i,oi->...o", taken, kernel[(slice(None), slice(None), *place)])
    return total.reshape(-1, len(kernel))


def conv(x: Array, kernel: Array, geometry: ConvGeometry, sizes: tuple[int, ...], bias: Array | None) -> Example:
    layer = conv_layer("stage.conv", kernel, bias, geometry)
    return Example(layer, x, {WEIGHT: convolved(x, kernel, geometry, sizes)})


def strided() -> Example:
    geometry = ConvGeometry("Conv", (3, 3), (2, 1), (1, 1), (1, 0, 0, 2))
    return conv(normal(2, 7, 6, 6, seed=9), normal(24, 6, 3, 3), geometry, (3, 6), normal(24, seed=2))


def dilated_along_one_axis() -> Example:
    geometry = ConvGeometry("Conv", (5,), (1,), (2,), (4, 4))
    return conv(normal(3, 11, 16, seed=10), normal(40, 16, 5, seed=1), geometry, (11,), None)


def skipping() -> Example:
    geometry = ConvGeometry("Conv", (1, 1), (2, 2), (1, 1), (0, 0, 0, 0))
    return conv(normal(1, 5, 4, 32, seed=11), normal(56, 32, 1, 1, seed=5), geometry, (3, 2), normal(56, seed=7))


def recurrent() -> Example:
    weight, x = normal(2 * 4 * 8, 40, seed=12), normal(6, 2, 40, seed=13)
    layer = recurrent_layer("encoder.lstm", weight, normal(64, seed=14), RecurrentGeometry("LSTM", 8))
    return Example(layer, x, {WEIGHT: np.einsum("tbi,oi->tbo", x, weight).reshape(12, 64)})


def table() -> Example:
    weight, tokens = normal(50, 64, seed=8), np.array([[3, 49], [0, 3]])
    return Example(embedding_layer("tokens", weight, uses=2), tokens, {"rows": weight[tokens].reshape(4, 64)})


EXAMPLES: Mapping[str, tuple[Callable[[], Example], ...]] = {
    "linear": (gemm, sequence_without_bias, pointwise),
    "conv": (strided, dilated_along_one_axis, skipping),
    "recurrent": (recurrent,),
    "embedding": (table,),
}
MAKERS = [make for makers in EXAMPLES.values() for make in makers]
FACTORED = [make for make in MAKERS if views_of([make().layer])]
MATRICES = [make for make in FACTORED if set(kind_of(make().layer).views(make().layer)) == {WEIGHT}]


def only(makers: list[Callable[[], Example]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("example", makers, ids=lambda make: make.__name__, indirect=True, scope="module")


with_views = only(FACTORED)
"""For what is true of layers with matrices that multiply vectors."""
matrices = only(MATRICES)
"""For what is true of layers that are one matrix, and so can be whatever a matrix can be."""

GRID = GivenRanks(own=(4, 8, 16), beside=(2, 6))


@pytest.fixture(
    scope="module",
    params=[pytest.param(make, id=f"{kind}-{make.__name__}") for kind, all_ in EXAMPLES.items() for make in all_],
)
def example(request: pytest.FixtureRequest) -> Example:
    return request.param()


@pytest.fixture(scope="module")
def layer(example: Example) -> Layer:
    return example.layer


@pytest.fixture(scope="module")
def kind(layer: Layer) -> LayerKind:
    return kind_of(layer)


@pytest.fixture(scope="module")
def structures(kind: LayerKind, layer: Layer) -> tuple[Structure, ...]:
    return tuple(kind.structures(layer, GRID))


def truncated(matrix: Array, rank: int) -> tuple[Array, Array]:
    u, s, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]).astype(np.float32), v[:rank].astype(np.float32)


def coarse(matrix: Array) -> Array:
    """On a grid of halves."""
    return np.asarray(np.rint(2 * matrix) / 2, np.float32)


def decomposed(matrix: Array, bias: Array | None, structure: Structure) -> Replacement:
    """The best that a structure can be for one matrix."""
    if structure.is_dense:
        return dense(matrix, bias)
    if structure.is_constexpr:
        program = (Instruction("matmul", ("x", "w"), "y", {}),)
        return constexpr({"w": np.ascontiguousarray(matrix.T)}, program, matrix, bias)
    assert structure.rank is not None
    if structure.is_low_rank:
        A, B = truncated(matrix, structure.rank)
        return low_rank(A, B, bias)
    A, B = truncated(matrix - coarse(matrix), structure.rank)
    return low_rank_correction(A, B, bias, coarse(matrix))


def taken_apart(view: View, structure: Structure) -> Replacement:
    """Convolutions in a row, without data."""
    fit = StageFit(view, svd.spectrum(view), None, "svd", None, 0)
    first = fit.first(structure)
    rest = fit.behind(structure, first).view
    return put_in_front(structure, first, decomposed(rest.weight, rest.bias, behind_first(structure)))


def decompositions(kind: LayerKind, layer: Layer, structure: Structure) -> dict[str, Replacement]:
    """Of each view that a structure is made of."""
    views = dict(zip(kind.views(layer), views_of([layer]), strict=True))
    return {
        name: decomposed(views[name].weight, layer.bias, part) if part.of_a_matrix else taken_apart(views[name], part)
        for name, part in kind.parts(layer, structure).items()
    }


def replaced(kind: LayerKind, layer: Layer, structure: Structure) -> Replacement:
    return kind.replace(layer, structure, decompositions(kind, layer, structure))


def lost(kind: LayerKind, layer: Layer, structure: Structure) -> float:
    """Square error of all views."""
    found = kind.effective(layer, replaced(kind, layer, structure))
    return float(sum(np.square(found[n].astype(float) - m).sum() for n, m in kind.views(layer).items()))


def given(op: Op) -> int:
    """Width of what a product gives: a lookup gives rows of its matrix."""
    return op.columns if op.kind == "gather" else op.rows


def weights(ops: tuple[Op, ...]) -> int:
    return sum(op.weights for op in ops)


def test_every_kind_has_examples() -> None:
    assert set(EXAMPLES) == set(KINDS)
    for name, makers in EXAMPLES.items():
        assert makers
        assert {make().layer.kind for make in makers} == {name}


@with_views
def test_views_are_finite_float32_matrices_of_the_layer(kind: LayerKind, layer: Layer) -> None:
    views = kind.views(layer)
    assert views
    for matrix in views.values():
        assert (matrix.ndim, matrix.dtype) == (2, np.float32)
        assert np.isfinite(matrix).all()
    if WEIGHT in views:
        assert views[WEIGHT].shape == (layer.out_features, layer.in_features)


@with_views
def test_rows_times_a_view_is_what_the_layer_computes(kind: LayerKind, example: Example) -> None:
    views = kind.views(example.layer)
    assert set(example.answers) == set(views)
    for name, matrix in views.items():
        way = kind.rows(example.layer, name)
        rows = way(example.activations)
        assert rows.shape == (len(example.answers[name]), matrix.shape[1])
        assert way.count(example.activations) == len(rows)
        again = pickle.loads(pickle.dumps(way))  # noqa: S301 - ours
        assert (again, hash(again)) == (way, hash(kind.rows(example.layer, name)))
        np.testing.assert_allclose(rows @ matrix.T, example.answers[name], rtol=1e-4, atol=1e-4)


def test_the_layer_as_it_is_comes_first_and_ranks_rise(structures: tuple[Structure, ...]) -> None:
    assert structures[0] == DENSE
    assert len(set(structures)) == len(structures)
    for name in {each.name for each in structures} - {DENSE.name}:
        ranks = [each.ranks for each in structures if each.name == name]
        assert ranks == sorted(ranks)
        assert {rank for each in ranks for rank in each} <= {*GRID.own, *GRID.beside}


@with_views
def test_the_grid_says_which_ranks_are_offered(kind: LayerKind, layer: Layer) -> None:
    assert tuple(kind.structures(layer, GivenRanks((), ()))) == (DENSE,)
    dense_one, *thin = kind.structures(layer, GivenRanks((5, 7), ()))
    assert dense_one == DENSE
    assert thin
    assert {rank for one in thin for rank in one.ranks} == {5, 7}


@matrices
def test_a_matrix_is_offered_factors_of_those_ranks(kind: LayerKind, layer: Layer) -> None:
    thin = tuple(kind.structures(layer, GivenRanks((5, 7), ())))
    assert tuple(one for one in thin if one.of_a_matrix) == (DENSE, low_rank_of(5), low_rank_of(7))


def test_a_structure_is_made_of_views_as_matrices_can_be(
    kind: LayerKind, layer: Layer, structures: tuple[Structure, ...]
) -> None:
    views = kind.views(layer)
    for structure in structures:
        parts = kind.parts(layer, structure)
        assert set(parts) <= set(views)
        assert all(part.of_a_matrix or views_of([layer])[0].kernel for part in parts.values())
        if structure.is_dense:
            assert set(parts.values()) <= {DENSE}
        elif structure.ranks:
            assert sorted(rank for part in parts.values() for rank in part.ranks) == sorted(structure.ranks)
            for name, part in parts.items():
                assert max(part.ranks, default=0) <= min(views[name].shape)


def test_dense_products_have_the_layers_weights(kind: LayerKind, layer: Layer) -> None:
    ops = kind.ops(layer, DENSE, 3)
    assert weights(ops) == sum(matrix.size for matrix in layer.weights.values())
    assert not any(op.corrects for op in ops)


@with_views
def test_what_is_offered_in_the_layers_place_has_fewer_weights(kind: LayerKind, layer: Layer) -> None:
    full = weights(kind.ops(layer, DENSE, 1))
    offered = [one for one in kind.structures(layer, WorthwhileRanks()) if one.ranks and not one.is_correction]
    assert offered
    for name in {one.name for one in offered}:
        own = [one for one in offered if one.name == name]
        sizes = [weights(kind.ops(layer, one, 1)) for one in own]
        assert max(sizes) < full
        if all(len(one.ranks) == 1 for one in own):
            assert sizes == sorted(set(sizes))


def test_factors_beside_a_matrix_are_added_to_its_weights(
    kind: LayerKind, layer: Layer, structures: tuple[Structure, ...]
) -> None:
    full = kind.ops(layer, DENSE, 1)
    for structure in (each for each in structures if each.is_correction):
        assert structure.rank is not None
        ops = kind.ops(layer, structure, 1)
        beside = tuple(op for op in ops if op.corrects)
        assert weights(ops) - weights(beside) == weights(full)
        assert beside == tuple(replace(op, corrects=True) for op in kind.ops(layer, low_rank_of(structure.rank), 1)), (
            "the same two products as in the layer's place"
        )


def test_products_chain(kind: LayerKind, layer: Layer, structures: tuple[Structure, ...]) -> None:
    full = kind.ops(layer, DENSE, 1)
    for structure in structures:
        ops = kind.ops(layer, structure, 1)
        thin = [op for op in ops if op.corrects or (structure.ranks and not structure.is_correction)]
        assert [given(op) for op in thin[:-1]] == list(structure.ranks)
        assert [op.columns for op in thin[1:]] == list(structure.ranks)
        assert given(ops[-1]) == given(full[-1])
        if thin and thin[0].kind != "gather":
            assert thin[0].columns == full[0].columns
        assert len({op.role for op in ops}) == len(ops)


def test_work_rises_with_the_vectors_and_weights_do_not(
    kind: LayerKind, layer: Layer, structures: tuple[Structure, ...]
) -> None:
    for structure in structures:
        one, seven = kind.ops(layer, structure, 1), kind.ops(layer, structure, 7)
        assert [op.vectors for op in seven] == [7 * op.vectors for op in one]
        assert sum(op.macs for op in seven) == 7 * sum(op.macs for op in one)
        assert weights(one) == weights(seven)


def test_what_is_written_has_a_tensor_for_each_product(
    kind: LayerKind, layer: Layer, structures: tuple[Structure, ...]
) -> None:
    for structure in structures:
        written = replaced(kind, layer, structure)
        assert written.structure == structure
        ops = {op.role: op for op in kind.ops(layer, structure, 1)}
        assert set(written.tensors) == set(ops)
        for role, tensor in written.tensors.items():
            op = ops[role]
            assert (len(tensor), tensor.size) == (op.rows, op.weights)
            assert op.kernel or tensor.shape == (op.rows, op.columns)


def test_the_bias_is_kept(kind: LayerKind, layer: Layer, structures: tuple[Structure, ...]) -> None:
    for structure in structures:
        bias = replaced(kind, layer, structure).bias
        assert (bias is None) == (layer.bias is None)
        if bias is not None and layer.bias is not None:
            np.testing.assert_array_equal(bias, layer.bias)


def test_effective_has_every_view_in_its_shape(
    kind: LayerKind, layer: Layer, structures: tuple[Structure, ...]
) -> None:
    views = kind.views(layer)
    for structure in structures:
        found = kind.effective(layer, replaced(kind, layer, structure))
        assert {name: matrix.shape for name, matrix in found.items()} == {n: m.shape for n, m in views.items()}
        assert all(matrix.dtype == np.float32 and np.isfinite(matrix).all() for matrix in found.values())


@with_views
def test_full_rank_loses_nothing(kind: LayerKind, layer: Layer) -> None:
    rank = min(min(matrix.shape) for matrix in kind.views(layer).values())
    energy = sum(float(np.square(matrix.astype(float)).sum()) for matrix in kind.views(layer).values())
    assert lost(kind, layer, DENSE) == 0
    for structure in kind.structures(layer, GivenRanks((rank,), (rank,))):
        assert lost(kind, layer, structure) < 1e-10 * energy


@with_views
def test_lower_ranks_lose_more(kind: LayerKind, layer: Layer) -> None:
    _, *offered = kind.structures(layer, GivenRanks((1, 4, 12), (1, 4, 12)))
    for name in {one.name for one in offered}:
        found = [lost(kind, layer, one) for one in offered if one.name == name]
        assert found[0] > found[-1] > 0
        if all(len(one.ranks) == 1 for one in offered if one.name == name):
            assert found == sorted(found, reverse=True)


@matrices
def test_constants_and_both_structures_of_full_rank_lose_nothing(kind: LayerKind, layer: Layer) -> None:
    rank, energy = min(layer.weight.shape), float(np.square(layer.weight.astype(float)).sum())
    assert lost(kind, layer, CONSTEXPR) == 0
    for structure in (low_rank_of(rank), correction_of(rank)):
        assert lost(kind, layer, structure) < 1e-10 * energy


@matrices
def test_lower_ranks_lose_what_the_singular_values_say(kind: LayerKind, layer: Layer) -> None:
    for make, rest in ((low_rank_of, lambda m: m), (correction_of, lambda m: m - coarse(m))):
        values = [np.linalg.svd(rest(m).astype(float), compute_uv=False) for m in kind.views(layer).values()]
        found = [lost(kind, layer, make(rank)) for rank in (1, 4, 12)]
        wanted = [sum(float(np.square(s[rank:]).sum()) for s in values) for rank in (1, 4, 12)]
        np.testing.assert_allclose(found, wanted, rtol=1e-4)
        assert found[0] > found[1] > found[2] > 0


@matrices
@pytest.mark.parametrize("wanted", [DENSE, low_rank_of(4), correction_of(4)], ids=str)
@pytest.mark.parametrize("found", [DENSE, CONSTEXPR, low_rank_of(4), low_rank_of(5), correction_of(4)], ids=str)
def test_what_does_not_fit_the_structure_is_refused(
    kind: LayerKind, layer: Layer, wanted: Structure, found: Structure
) -> None:
    parts = {name: decomposed(matrix, layer.bias, found) for name, matrix in kind.views(layer).items()}
    if found == wanted:
        assert kind.replace(layer, wanted, parts).structure == wanted
        return
    with pytest.raises(ValueError, match=layer.name):
        kind.replace(layer, wanted, parts)


@with_views
def test_parts_of_another_structure_are_refused(
    kind: LayerKind, layer: Layer, structures: tuple[Structure, ...]
) -> None:
    for wanted in structures:
        for other in structures:
            if other != wanted:
                found = decompositions(kind, layer, other)
                with pytest.raises(ValueError, match=layer.name):
                    kind.replace(layer, wanted, found)


@with_views
def test_a_view_that_nothing_was_found_for_is_refused(kind: LayerKind, layer: Layer) -> None:
    with pytest.raises(ValueError, match=layer.name):
        kind.replace(layer, DENSE, {})


@pytest.mark.parametrize(
    "structure", [Structure("spectral"), Structure("spectral", (4,)), Structure("low-rank")], ids=str
)
def test_a_structure_that_no_kind_knows_is_refused(kind: LayerKind, layer: Layer, structure: Structure) -> None:
    with pytest.raises(ValueError, match=structure.name):
        kind.ops(layer, structure, 1)


@matrices
def test_weights_from_constants_are_no_products_and_come_to_their_matrix(kind: LayerKind, layer: Layer) -> None:
    assert kind.ops(layer, CONSTEXPR, 1) == ()
    found = kind.effective(layer, replaced(kind, layer, CONSTEXPR))
    for name, matrix in kind.views(layer).items():
        np.testing.assert_array_equal(found[name], matrix)


@with_views
def test_replacements_come_back_from_the_cache(
    kind: LayerKind, layer: Layer, structures: tuple[Structure, ...], tmp_path: Path
) -> None:
    constexpr = [CONSTEXPR] if set(kind.views(layer)) == {WEIGHT} else []
    for structure in (*structures, *constexpr):
        part = replaced(kind, layer, structure)
        np.savez(tmp_path / "part.npz", **packed_part(part))
        with np.load(tmp_path / "part.npz", allow_pickle=False) as stored:
            back = unpacked_part(dict(stored))
        assert (back.structure, back.program, set(back.tensors)) == (part.structure, part.program, set(part.tensors))
        for role, tensor in part.tensors.items():
            np.testing.assert_array_equal(back.tensors[role], tensor)
            assert back.tensors[role].dtype == tensor.dtype
        assert (back.bias is None) == (part.bias is None)
        if back.bias is not None and part.bias is not None:
            np.testing.assert_array_equal(back.bias, part.bias)
        want, got = kind.effective(layer, part), kind.effective(layer, back)
        for name in want:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-6, atol=1e-6)


def test_values_are_frozen_and_structures_and_products_are_keys(
    kind: LayerKind, layer: Layer, structures: tuple[Structure, ...]
) -> None:
    for structure in structures:
        same = Structure(structure.name, structure.ranks)
        assert not structure.of_a_matrix or structure_of(structure.name, structure.rank) == structure
        ops = kind.ops(layer, structure, 2)
        assert {structure: ops}[same] == kind.ops(layer, structure, 2)
        assert len({ops, kind.ops(layer, structure, 2)}) == 1
        for value, field in ((structure, "name"), (ops[0], "rows"), (replaced(kind, layer, structure), "bias")):
            with pytest.raises(FrozenInstanceError):
                setattr(value, field, None)
    with pytest.raises(FrozenInstanceError):
        setattr(layer, "name", "other")  # noqa: B010 - what the type checker forbids is what is tested


def test_views_have_names_of_their_own(kind: LayerKind, layer: Layer) -> None:
    other = replace(layer, name=f"{layer.name}.2")
    views = views_of([layer, other])
    assert len({view.name for view in views}) == len(views) == 2 * len(kind.views(layer))
    for view, matrix in zip(views, (*kind.views(layer).values(), *kind.views(other).values()), strict=True):
        assert view.name.startswith(layer.name)
        assert np.shares_memory(view.weight, matrix)
        np.testing.assert_array_equal(view.weight, matrix)
        assert (view.out_features, view.in_features) == matrix.shape


def test_a_layer_is_only_read(kind: LayerKind, example: Example, structures: tuple[Structure, ...]) -> None:
    layer = example.layer
    before = {name: array.copy() for name, array in layer.weights.items()}
    bias, activations = None if layer.bias is None else layer.bias.copy(), example.activations.copy()
    for name in kind.views(layer):
        kind.rows(layer, name)(example.activations)
    for structure in structures:
        kind.effective(layer, replaced(kind, layer, structure))
    for name, array in before.items():
        np.testing.assert_array_equal(layer.weights[name], array)
    np.testing.assert_array_equal(example.activations, activations)
    if bias is not None:
        np.testing.assert_array_equal(layer.bias, bias)
