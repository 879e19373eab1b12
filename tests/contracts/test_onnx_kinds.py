"""What every kind of layer keeps within ONNX. A new kind adds an example to `EXAMPLES`, and nothing else here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends.observation import joined
from edgepack.backends.onnx.contents import read_contents
from edgepack.backends.onnx.emit import to_schemes
from edgepack.backends.onnx.file import save
from edgepack.backends.onnx.kinds import KINDS, LOOKUPS, refuses
from edgepack.backends.onnx.observation import OnnxObservation
from edgepack.backends.onnx.rewrite import names_after, with_factors
from edgepack.backends.onnx.schemes import CONSTEXPR, SCHEMES, TABLES
from edgepack.backends.onnx.sites import Site, find_sites
from edgepack.data import Samples
from edgepack.errors import ModelError
from edgepack.metrics.values import sqnr_db
from edgepack.model import kinds
from edgepack.model.kinds import conv, embedding, kind_of, linear, recurrent, view_name
from edgepack.model.layer import Array
from edgepack.model.replacement import Replacement, dense
from edgepack.model.structure import DENSE
from edgepack.plan.candidates import GivenRanks
from tests.backends.onnx.graph_models import assert_same, run
from tests.contracts.test_kinds import normal, replaced

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def model(node: str, x: tuple[int, ...], weight: Array, bias: Array, **attributes: object) -> ir.Model:
    """One node `y = node(x, w, b)`."""
    constants = [numpy_helper.from_array(weight, "block.weight"), numpy_helper.from_array(bias, "block.bias")]
    graph = helper.make_graph(
        [helper.make_node(node, ["x", "block.weight", "block.bias"], ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ir.from_proto(made)


def gemm() -> ir.Model:
    return model("Gemm", (5, 40), normal(48, 40), normal(48, seed=2), transB=1)


def pointwise() -> ir.Model:
    return model("Conv", (2, 32, 4, 3), normal(56, 32, 1, 1, seed=5), normal(56, seed=7))


def strided() -> ir.Model:
    return model(
        "Conv",
        (2, 6, 7, 6),
        normal(24, 6, 3, 3),
        normal(24, seed=2),
        strides=[2, 1],
        pads=[1, 0, 0, 2],
        kernel_shape=[3, 3],
    )


def dilated_along_one_axis() -> ir.Model:
    return model("Conv", (3, 16, 11), normal(40, 16, 5, seed=1), normal(40, seed=3), dilations=[2], pads=[4, 4])


def skipping() -> ir.Model:
    return model("Conv", (1, 32, 5, 4), normal(56, 32, 1, 1, seed=5), normal(56, seed=7), strides=[2, 2])


def padded_by_name(auto_pad: str) -> ir.Model:
    kernel, bias = normal(24, 6, 3, 2, seed=4), normal(24, seed=8)
    return model("Conv", (2, 6, 8, 7), kernel, bias, strides=[2, 3], auto_pad=auto_pad)


def same_upper() -> ir.Model:
    return padded_by_name("SAME_UPPER")


def same_lower() -> ir.Model:
    return padded_by_name("SAME_LOWER")


def without_pads() -> ir.Model:
    return padded_by_name("VALID")


def cells(
    operator: str, gates: int, *outputs: str, directions: int = 1, state: float = 0.25, **attributes: object
) -> ir.Model:
    """One recurrent operator of 16 units on (7, 2, 40); `state`: size of all that does not belong to the inputs."""
    units, names = 16, ("block.weight", "block.state", "block.bias")
    weight = normal(directions, gates * units, 40) / 4
    of_state = state * normal(directions, gates * units, units, seed=1)
    biases = np.concatenate([normal(directions, gates * units, seed=seed) for seed in (2, 3)], axis=1)
    biases[:, gates * units :] *= state
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", *names], [*outputs], hidden_size=units, **attributes)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [7, 2, 40])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs if name],
        [numpy_helper.from_array(array, name) for array, name in zip((weight, of_state, biases), names, strict=True)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ir.from_proto(made)


def lstm() -> ir.Model:
    return cells("LSTM", 4, "y", "last", "cell")


def lstm_of_both_directions() -> ir.Model:
    return cells("LSTM", 4, "", "last", directions=2, direction="bidirectional")


def gru() -> ir.Model:
    return cells("GRU", 3, "y", "last", linear_before_reset=1)


def products_alone() -> ir.Model:
    """Cells without a state and without a curve: their answers are the products of the layer."""
    line = {"activations": ["Affine"], "activation_alpha": [1.0], "activation_beta": [0.0]}
    return cells("RNN", 1, "y", state=0.0, **line)


EXAMPLES: Mapping[str, tuple[Callable[[], ir.Model], ...]] = {
    linear.NAME: (gemm, pointwise),
    conv.NAME: (strided, dilated_along_one_axis, skipping, same_upper, same_lower, without_pads),
    recurrent.NAME: (products_alone, lstm, lstm_of_both_directions, gru),
}
CURVED = (lstm, lstm_of_both_directions, gru)
"""Examples whose answers are no longer the products of the layer."""
MAKERS = [pytest.param(name, make, id=f"{name}-{make.__name__}") for name, own in EXAMPLES.items() for make in own]
every = pytest.mark.parametrize(("name", "make"), MAKERS)


def feed_of(source: ir.Model) -> dict[str, Array]:
    (x,) = source.graph.inputs
    assert x.shape is not None
    return {"x": normal(*map(int, x.shape.numpy()), seed=11)}


def only_site(source: ir.Model) -> Site:
    (site,) = find_sites(source)
    return site


def parts(site: Site, ranks: GivenRanks) -> list[Replacement]:
    """The layer in each structure with factors of these ranks."""
    layer, kind = site.layer, kind_of(site.layer)
    return [replaced(kind, layer, structure) for structure in kind.structures(layer, ranks) if structure.ranks]


def test_every_kind_has_a_room() -> None:
    assert {*KINDS, *LOOKUPS} == set(kinds.KINDS)
    assert set(EXAMPLES) == set(KINDS)
    assert not set(KINDS) & set(LOOKUPS)


@every
def test_a_layer_is_found_and_its_matrix_read_back(name: str, make: Callable[[], ir.Model], tmp_path: Path) -> None:
    source = make()
    layer = only_site(source).layer
    assert (layer.name, layer.kind, layer.uses) == ("block.weight", name, 1)
    assert layer.bias is not None
    assert layer.bias.shape == (layer.out_features,)
    save(source, tmp_path / "m.onnx")
    (op,) = kind_of(layer).ops(layer, DENSE, 1)
    (product,) = read_contents(tmp_path / "m.onnx").products
    assert product.sides == tuple(sorted((op.rows, op.inputs)))


@every
def test_vectors_are_those_that_the_views_multiply(name: str, make: Callable[[], ir.Model]) -> None:
    source = make()
    layer, kind = only_site(source.clone()).layer, kind_of(only_site(source.clone()).layer)
    names = [view_name(layer.name, view) for view in kind.views(layer)]
    watched, feed = OnnxObservation(source, names), feed_of(source)
    assert set(watched.keys) == set(names)
    (rows,) = watched.rows(Samples(feed))
    layout = feed["x"] if name == recurrent.NAME or feed["x"].ndim == 2 else np.moveaxis(feed["x"], 1, -1)
    for view, matrix in kind.views(layer).items():
        found = rows[joined(watched.keys[view_name(layer.name, view)])]
        assert found.shape[1] == matrix.shape[1]
        np.testing.assert_array_equal(found, kind.rows(layer, view)(layout))
        assert layer.bias is not None
        if make in CURVED:
            continue
        (answer,) = run(source, feed)
        answers = np.moveaxis(answer, 1, -1).reshape(len(found), -1)
        np.testing.assert_allclose(found @ matrix.T + layer.bias, answers, rtol=1e-4, atol=1e-4)


@every
def test_products_in_its_place_answer_alike_and_are_layers_again(
    name: str, make: Callable[[], ir.Model], tmp_path: Path
) -> None:
    source = make()
    layer = only_site(source.clone()).layer
    kind = kind_of(layer)
    rank = min(min(matrix.shape) for matrix in kind.views(layer).values())
    for part in parts(only_site(source.clone()), GivenRanks((rank,), (rank,))):
        thin = with_factors(source, {layer.name: part})
        assert_same(source, thin, feed_of(source))
        ops = kind.ops(layer, part.structure, 1)
        assert names_after(source, thin, {layer.name: part}) == {
            layer.name: tuple(f"{layer.name}.{op.role}" for op in ops)
        }
        save(thin, tmp_path / "m.onnx")
        found = Counter(product.sides for product in read_contents(tmp_path / "m.onnx").products)
        assert found == Counter(tuple(sorted((op.rows, op.inputs))) for op in ops)


@pytest.mark.parametrize("make", EXAMPLES[conv.NAME], ids=lambda make: make.__name__)
def test_convolutions_in_a_row_answer_like_the_kernel_that_they_come_to(make: Callable[[], ir.Model]) -> None:
    source = make()
    site = only_site(source.clone())
    layer, kind = site.layer, kind_of(site.layer)
    found = parts(site, GivenRanks((3, 4), ()))
    for part in found:
        (weight,) = kind.effective(layer, part).values()
        same = with_factors(source, {layer.name: dense(weight, layer.bias)})
        assert_same(same, with_factors(source, {layer.name: part}), feed_of(source))


@every
def test_every_scheme_answers_within_its_tolerance(name: str, make: Callable[[], ir.Model]) -> None:
    source = make()
    feed = feed_of(source)
    site = only_site(source.clone())
    low, high = float(feed["x"].min()), float(feed["x"].max())
    thin = [with_factors(source, {site.layer.name: part}) for part in parts(site, GivenRanks((8,), ()))]
    for one in (source, *thin):
        wanted = run(one, feed)
        ranges = dict.fromkeys([each.layer.name for each in find_sites(one.clone())], (2 * low, 2 * high))
        for scheme in KINDS[name].schemes:
            if scheme != CONSTEXPR:
                found = run(to_schemes(one, scheme, ranges=ranges), feed)
                for each, original in zip(found, wanted, strict=True):
                    assert each.shape == original.shape
                    assert sqnr_db(each, original) > scheme.min_sqnr_db


@every
def test_schemes_of_other_kinds_are_refused(name: str, make: Callable[[], ir.Model]) -> None:
    layer = only_site(make()).layer
    for scheme in (*SCHEMES, *TABLES, CONSTEXPR):
        reason = refuses(layer, scheme)
        if scheme in KINDS[name].schemes:
            assert reason is None or layer.geometry.operator in reason
        else:
            assert reason is not None
            assert name in reason


@every
def test_factors_of_another_layer_are_refused(name: str, make: Callable[[], ir.Model]) -> None:
    source = make()
    site = only_site(source.clone())
    for part in parts(site, GivenRanks((4,), ())):
        wrong = Replacement(part.structure, {role: tensor[:, :-1] for role, tensor in part.tensors.items()}, part.bias)
        with pytest.raises(ModelError, match=site.layer.name):
            with_factors(source, {site.layer.name: wrong})


def test_lookups_are_found_and_stored_smaller() -> None:
    assert set(LOOKUPS) == {embedding.NAME}
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        "one",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(normal(50, 64), "table")],
    )
    source = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    (kind,) = LOOKUPS.values()
    (layer,) = kind.find(source)
    assert (layer.name, layer.kind) == ("table", embedding.NAME)
    for scheme in kind.schemes:
        assert kind.refuses(layer, scheme) is None
        stored = source.clone()
        kind.store(stored, {"table": scheme, "another kind's": scheme})
        values = [value.const_value for value in stored.graph.initializers.values() if value.const_value is not None]
        assert sum(value.nbytes for value in values) < layer.weight.nbytes
        (found,), (wanted,) = (run(one, {"ids": np.array([3, 49, 0])}) for one in (stored, source))
        assert sqnr_db(found, wanted) > scheme.min_sqnr_db
    full = min(layer.weight.shape)
    (part,) = (
        replaced(kind_of(layer), layer, one)
        for one in kind_of(layer).structures(layer, GivenRanks((full,), ()))
        if one.ranks
    )
    thin = source.clone()
    rows, product = kind.replace(thin, {"table": part, "another kind's": part})["table"]
    assert_same(source, thin, {"ids": np.array([3, 49, 0])})
    assert [one.name for one in kind.find(thin)] == [rows]
    assert only_site(thin).root.name == product
