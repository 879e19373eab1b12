"""Kernels that are taken apart, in every format: the files answer like the kernel that the stages come to, and the
runtimes keep the stages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgepack.backends.backend import Writer, WriterData
from edgepack.backends.registry import FORMATS, backend
from edgepack.backends.runtime import load, predict
from edgepack.backends.schemes import DENSE_INT8, FP32
from edgepack.data import Samples
from edgepack.methods.registry import METHODS, compress
from edgepack.metrics.values import sqnr_db
from edgepack.model.kinds import kind_of, views_of
from edgepack.model.kinds.conv import ConvGeometry, conv_layer
from edgepack.model.layer import WEIGHT
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement, dense
from edgepack.model.scheme import FileScheme, Format
from edgepack.model.structure import DENSE, Structure
from edgepack.model.types import LayerPlan
from edgepack.natives import native
from edgepack.natives.onnx import OnnxNative
from edgepack.pipeline.verify import biases_intact, same_outputs, structures_kept, weights_as_planned
from edgepack.plan.candidates import GivenRanks
from edgepack.sources import open_model
from edgepack.workspace import Cache, Workspace
from tests.contracts.test_kinds import normal, replaced

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

SHAPE = (12, 13, 14)
KERNELS = {"half": (16, 12, 3, 3), "wide": (16, 16, 3, 3), "bare": (12, 16, 3, 2)}
ATTRIBUTES = {
    "half": {"pads": [1, 1, 1, 1], "strides": [2, 1]},
    "wide": {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
    "bare": {},
}
STRUCTURES = ("low-rank", "spatial-svd", "input-svd", "tucker-2", "cp")
SHARE = 0.25


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Three convolutions with strides, steps between places, and without paddings; between two of them one over every
    channel by itself, which is no layer."""
    nodes, x, constants = [], "x", {}
    for number, (name, shape) in enumerate(KERNELS.items()):
        constants |= {name: normal(*shape, seed=number) / 8, f"{name}.b": normal(shape[0], seed=number + 9)}
        nodes.append(helper.make_node("Conv", [x, name, f"{name}.b"], [f"c{name}"], **ATTRIBUTES[name]))
        nodes.append(helper.make_node("Relu", [f"c{name}"], [f"r{name}"]))
        x = f"r{name}"
        if name == "half":
            constants["each"] = normal(shape[0], 1, 3, 3, seed=20) / 3
            nodes.append(helper.make_node("Conv", [x, "each"], ["ceach"], group=shape[0], pads=[1, 1, 1, 1]))
            x = "ceach"
    return opened(nodes, SHAPE, constants, tmp_path_factory.mktemp("stages"))


def opened(
    nodes: list[onnx.NodeProto], shape: tuple[int, ...], constants: dict[str, np.ndarray], folder: Path
) -> Model:
    """A model from "x" to what the last node gives."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(made), folder / "network.onnx")
    return open_model(str(folder / "network.onnx"), folder, FORMATS)


@pytest.fixture(scope="module")
def samples() -> Samples:
    return Samples({"x": normal(6, *SHAPE, seed=5)})


@pytest.fixture(scope="module", params=FORMATS)
def files(
    network: Model, samples: Samples, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Writer]:
    folder, found = tmp_path_factory.mktemp("files"), backend(request.param)
    given = WriterData(samples, {"x": np.zeros((1, *SHAPE), np.float32)}, 127)
    with found.engine() as engine:
        yield found.open(network, given, engine, Workspace(Cache(folder / "cache"), folder))


def taken_apart(network: Model, name: str) -> dict[str, Replacement]:
    """Every layer in one structure; those that none is offered by the method of that name."""
    found = {}
    for layer in network.layers:
        kind = kind_of(layer)
        if name in METHODS:
            part = compress(name, views_of([layer])[0], SHARE)
            assert isinstance(part, Replacement)
            found[layer.name] = part
            continue
        own = next(one for one in kind.structures(layer, GivenRanks((6,), ())) if one.name == name)
        found[layer.name] = replaced(kind, layer, own)
    return found


def plan(network: Model, parts: dict[str, Replacement]) -> tuple[LayerPlan, ...]:
    def one(name: str, structure: Structure) -> LayerPlan:
        layer = next(layer for layer in network.layers if layer.name == name)
        whole, ops = (kind_of(layer).ops(layer, each, 1) for each in (DENSE, structure))
        return LayerPlan(name, whole, structure, ops, 0, 0.0, "")

    return tuple(one(layer.name, parts[layer.name].structure) for layer in network.layers)


def answers(fmt: Format, path: Path, samples: Samples) -> np.ndarray:
    return predict(load(path, fmt), samples)


@pytest.mark.parametrize("name", STRUCTURES)
def test_files_answer_like_the_kernels_and_keep_the_stages(
    network: Model, files: Writer, samples: Samples, name: str, tmp_path: Path
) -> None:
    assert [layer.name for layer in network.layers] == [*KERNELS]
    fmt, parts = files.fmt, taken_apart(network, name)
    assert files.takes(parts) == parts
    whole = {
        layer.name: dense(kind_of(layer).effective(layer, parts[layer.name])[WEIGHT], layer.bias)
        for layer in network.layers
    }
    session = OnnxNative().session(network.content, whole, threads=1)
    wanted = np.concatenate([session.run({"x": x[None]})[0] for x in samples.inputs["x"]])
    planned, biases = plan(network, parts), {layer.name: layer.bias for layer in network.layers}
    schemes = [FP32[fmt], *(one for one in files.layer_schemes() if one.bits == 8)]
    schemes = [one for one in schemes if all(files.supports(layer, DENSE, one) is None for layer in network.layers)]
    assert len(schemes) >= 2
    for scheme in (*dict.fromkeys(schemes), *files.file_schemes):
        file, path = FileScheme.of(scheme), tmp_path / f"{scheme}.{fmt}"
        written = files.write(parts, file, path)
        emitted, optimized = files.read(path), files.read_optimized(path)
        proofs = [
            same_outputs(answers(fmt, path, samples), wanted, file),
            structures_kept(emitted, optimized, written, planned),
            weights_as_planned(emitted, files.dense_contents, planned, file),
            biases_intact(emitted, biases),
        ]
        assert all(proof.passed for proof in proofs), (scheme, proofs)
    exact = answers(fmt, tmp_path / f"{FP32[fmt]}.{fmt}", samples)
    assert sqnr_db(exact, wanted) > 90
    sizes = [(tmp_path / f"{scheme}.{fmt}").stat().st_size for scheme in dict.fromkeys(schemes)]
    assert sizes == sorted(sizes, reverse=True)
    assert DENSE_INT8[fmt]


def test_a_file_that_was_written_answers_alike_with_stages_in_place(
    network: Model, files: Writer, samples: Samples, tmp_path: Path
) -> None:
    """Every format is a source as well."""
    files.write_dense(tmp_path / f"dense.{files.fmt}")
    opened = open_model(str(tmp_path / f"dense.{files.fmt}"), tmp_path, (files.fmt,))
    runtime, x = native(opened.native), samples.inputs["x"][:1]
    (given,) = (spec.name for spec in opened.inputs)
    for name in STRUCTURES:
        parts = taken_apart(opened, name)
        whole = {
            layer.name: dense(kind_of(layer).effective(layer, parts[layer.name])[WEIGHT], layer.bias)
            for layer in opened.layers
        }
        found, wanted = (runtime.session(opened.content, each, threads=1).run({given: x})[0] for each in (parts, whole))
        assert sqnr_db(found, wanted) > 90
    assert len(opened.layers) == len(network.layers)


def test_no_side_has_more_directions_than_the_kernel_makes_of_the_other() -> None:
    """A first stage to 8 channels under a kernel of three places gives no more than 24 numbers a place."""
    layer = conv_layer("c", normal(64, 64, 3), None, ConvGeometry("Conv", (3,), (1,), (1,), (1, 1)))
    grid = GivenRanks((8, 16, 40), ())
    found = {one.ranks for one in kind_of(layer).structures(layer, grid) if one.name == "tucker-2"}
    assert found == {(8, 8), (8, 16), (16, 8), (16, 16), (16, 40), (40, 16), (40, 40)}


def test_a_kernel_over_a_single_channel_is_replaced_like_any_other(tmp_path: Path) -> None:
    """Which the TFLite converter writes as one over every channel by itself, with its outputs last."""
    kernel, shape = normal(16, 1, 5, 5, seed=1), (1, 14, 14)
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"], strides=[2, 1], pads=[2, 2, 2, 2])]
    nodes.append(helper.make_node("Relu", ["c"], ["y"]))
    network = opened(nodes, shape, {"w": kernel, "b": normal(16, seed=2)}, tmp_path)
    (layer,) = network.layers
    structure = next(one for one in kind_of(layer).structures(layer, GivenRanks((6,), ())) if one.name == "low-rank")
    parts = [dense(normal(*layer.weight.shape, seed=3), layer.bias), replaced(kind_of(layer), layer, structure)]
    samples = Samples({"x": normal(3, *shape, seed=4)})
    given = WriterData(samples, {"x": samples.inputs["x"][:1]}, 127)
    with backend("tflite").engine() as engine:
        files = backend("tflite").open(network, given, engine, Workspace(Cache(tmp_path / "cache"), tmp_path))
        for number, part in enumerate(parts):
            whole = {layer.name: dense(kind_of(layer).effective(layer, part)[WEIGHT], layer.bias)}
            session = OnnxNative().session(network.content, whole, threads=1)
            wanted = np.concatenate([session.run({"x": x[None]})[0] for x in samples.inputs["x"]])
            path = tmp_path / f"{number}.tflite"
            files.write(files.takes({layer.name: part}), FileScheme.of(FP32["tflite"]), path)
            assert sqnr_db(answers("tflite", path, samples), wanted) > 90
