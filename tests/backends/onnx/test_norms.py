"""Normalizations behind convolutions: folded where that is exact, left alone elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from edgepack.backends.onnx.norms import fold_norms
from edgepack.model.types import Array
from edgepack.sources import open_model
from edgepack.sources.onnx import open_onnx
from tests.backends.onnx.graph_models import assert_same, info, normal, proto

WIDTH = 6
FEED = {"x": normal(2, 4, 7, 7, seed=9)}
HELD: dict[str, Array] = {
    "kernel": normal(WIDTH, 4, 3, 3),
    "bias": normal(WIDTH, seed=1),
    **{f"norm.{name}": normal(WIDTH, seed=seed) for seed, name in enumerate(("scale", "offset", "mean"), start=2)},
    "norm.variance": np.square(normal(WIDTH, seed=5)),
}
NORM = ["norm.scale", "norm.offset", "norm.mean", "norm.variance"]


def conv(y: str, *inputs: str) -> onnx.NodeProto:
    return helper.make_node("Conv", ["x", "kernel", *inputs], [y], pads=[1, 1, 1, 1])


def norm(x: str, y: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node("BatchNormalization", [x, *NORM], [y], **attributes)


def made(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> ir.Model:
    held = {name: array for name, array in HELD.items() if any(name in node.input for node in nodes)}
    whole = proto(list(nodes), [info("x", [2, 4, 7, 7])], [info(name, None) for name in outputs], held)
    return ir.from_proto(whole)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("bias", [(), ("bias",)], ids=["without-bias", "with-bias"])
def test_a_norm_becomes_part_of_the_convolution(bias: tuple[str, ...]) -> None:
    model = made(conv("c", *bias), norm("c", "n", epsilon=0.1), helper.make_node("Relu", ["n"], ["y"]))
    folded = model.clone()
    fold_norms(folded)
    assert operators(folded) == ["Conv", "Relu"]
    assert set(folded.graph.initializers) == {"kernel", "kernel.bias"}
    assert_same(model, folded, FEED)


def test_a_kernel_in_two_places_stays_one() -> None:
    both = helper.make_node("Sub", ["n", "d"], ["y"])
    model = made(conv("c"), norm("c", "n"), conv("d", "bias"), both)
    folded = model.clone()
    assert not fold_norms(folded)
    assert operators(folded) == ["Conv", "BatchNormalization", "Conv", "Sub"]


def test_initializers_that_are_inputs_as_well_leave_nothing_behind() -> None:
    """As exporters write them on demand: a caller may give another value for each."""
    model = made(conv("c", "bias"), norm("c", "y"))
    model.graph.inputs.extend(model.graph.initializers.values())
    folded = model.clone()
    assert fold_norms(folded)
    assert set(folded.graph.initializers) == {"kernel", "kernel.bias"}
    assert [value.name for value in folded.graph.inputs] == ["x"]
    assert_same(model, folded, FEED)


def test_torch_knows_the_layers_of_a_source_by_their_values(tmp_path: Path) -> None:
    from edgepack.torchgraph.flat import flat_module
    from edgepack.torchgraph.from_onnx import onnx_to_program
    from edgepack.torchgraph.match import match_layers

    onnx.save(ir.to_proto(made(conv("c"), norm("c", "y"))), tmp_path / "m.onnx")
    (work := tmp_path / "work").mkdir()
    opened = open_model(str(tmp_path / "m.onnx"), work)
    program = onnx_to_program(opened.files["onnx"], {"x": list(FEED["x"].shape)})
    found = match_layers(flat_module(program), opened.layers)
    assert (set(found.nodes), found.missing) == ({"kernel"}, ())


def test_what_others_take_and_what_is_no_convolution_stays() -> None:
    shared = made(conv("c"), norm("c", "n"), helper.make_node("Add", ["c", "n"], ["y"]))
    given = made(conv("c"), norm("c", "y"), outputs=("y", "c"))
    behind = made(conv("c"), helper.make_node("Relu", ["c"], ["r"]), norm("r", "y"))
    for model in (shared, given, behind):
        folded = model.clone()
        fold_norms(folded)
        assert operators(folded) == operators(model)


def test_a_source_has_them_folded(tmp_path: Path) -> None:
    onnx.save(ir.to_proto(made(conv("c"), norm("c", "y"))), tmp_path / "m.onnx")
    (layer,) = open_onnx(tmp_path / "m.onnx").layers
    factor = HELD["norm.scale"] / np.sqrt(HELD["norm.variance"] + 1e-5)
    np.testing.assert_allclose(layer.weight, HELD["kernel"].reshape(WIDTH, -1) * factor[:, None], rtol=1e-5)
    np.testing.assert_allclose(layer.bias, HELD["norm.offset"] - HELD["norm.mean"] * factor, rtol=1e-4)
