"""Segments of real files, in the real runtime: the whole model's answers from the whole model's kernels."""

from __future__ import annotations

import importlib.util
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from edgepack.backends.onnx import file
from edgepack.backends.onnx import split as split_module
from edgepack.backends.onnx.emit import to_schemes
from edgepack.backends.onnx.file import load, save
from edgepack.backends.onnx.ort_quantizer import quantize
from edgepack.backends.onnx.rewrite import with_factors
from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, INT8_STATIC
from edgepack.backends.onnx.session import session
from edgepack.backends.onnx.sites import find_sites
from edgepack.backends.onnx.split import split_onnx
from edgepack.backends.segments import LayerShape, Segment
from edgepack.errors import ModelError
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array
from tests.backends.onnx.graph_models import const, info, model, normal, proto

D = 32
X86 = platform.machine() in ("x86_64", "AMD64")
SCHEMES = [FP32, INT8_DYNAMIC, INT8_STATIC]
node = helper.make_node


def mlp() -> onnx.ModelProto:
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
        node("Relu", ["h"], ["r"]),
        node("Gemm", ["r", "w2", "b2"], ["g"], transB=1),
        node("Sigmoid", ["g"], ["s"]),
        node("Gemm", ["s", "w3", "b3"], ["y"], transB=1),
    ]
    weights = {"w1": normal(48, D), "b1": normal(48), "w2": normal(24, 48), "b2": normal(24)}
    weights |= {"w3": normal(8, 24), "b3": normal(8)}
    return proto(nodes, [info("x", (1, D))], [info("y", (1, 8))], weights)


def encoder() -> onnx.ModelProto:
    """One attention block with skip connections, as exporters write it; 5 tokens."""
    weights = {f"w{name}": normal(D, D, seed=i) / 6 for i, name in enumerate("qkvo")}
    weights |= {"wu": normal(D, 2 * D) / 6, "wd": normal(2 * D, D) / 8, "bu": normal(2 * D), "bd": normal(D)}
    weights |= {f"b{name}": normal(D, seed=9) for name in "qkvo"}
    weights |= {"g1": normal(D), "n1": normal(D), "g2": normal(D), "n2": normal(D)}
    weights |= {"split": np.array([1, 5, 4, 8]), "join": np.array([1, 5, D])}
    nodes = [node("LayerNormalization", ["x", "g1", "n1"], ["n"])]
    for name, perm in (("q", (0, 2, 1, 3)), ("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3))):
        nodes += [
            node("MatMul", ["n", f"w{name}"], [f"{name}1"], name=name),
            node("Add", [f"{name}1", f"b{name}"], [f"{name}2"]),
            node("Reshape", [f"{name}2", "split"], [f"{name}3"]),
            node("Transpose", [f"{name}3"], [f"{name}4"], perm=perm),
        ]
    nodes += [
        node("MatMul", ["q4", "k4"], ["scores"]),
        node("Softmax", ["scores"], ["shares"]),
        node("MatMul", ["shares", "v4"], ["mixed"]),
        node("Transpose", ["mixed"], ["turned"], perm=(0, 2, 1, 3)),
        node("Reshape", ["turned", "join"], ["joined"]),
        node("MatMul", ["joined", "wo"], ["o1"], name="o"),
        node("Add", ["o1", "bo"], ["o2"]),
        node("Add", ["o2", "x"], ["skip"]),
        node("LayerNormalization", ["skip", "g2", "n2"], ["m"]),
        node("MatMul", ["m", "wu"], ["u1"], name="up"),
        node("Add", ["u1", "bu"], ["u2"]),
        node("Gelu", ["u2"], ["u3"]),
        node("MatMul", ["u3", "wd"], ["d1"], name="down"),
        node("Add", ["d1", "bd"], ["d2"]),
        node("Add", ["d2", "skip"], ["y"]),
    ]
    return proto(nodes, [info("x", (1, 5, D))], [info("y", (1, 5, D))], weights, opset=20, ir_version=9)


MODELS = {"mlp": (mlp, (1, D)), "encoder": (encoder, (1, 5, D))}


def layers_of(source: ir.Model, factors: Mapping[str, Replacement] | None = None) -> list[LayerShape]:
    known = {} if factors is None else factors
    return [
        LayerShape(s.layer.name, s.layer.out_features, s.layer.in_features, known[s.layer.name].rank)
        if s.layer.name in known
        else LayerShape(s.layer.name, s.layer.out_features, s.layer.in_features, None)
        for s in find_sites(source)
    ]


def every_other_factored(source: ir.Model) -> dict[str, Replacement]:
    factors = {}
    for site in find_sites(source)[::2]:
        u, s, v = np.linalg.svd(site.layer.weight, full_matrices=False)
        rank = len(s) // 4
        factors[site.layer.name] = low_rank(u[:, :rank] * s[:rank], v[:rank], site.layer.bias)
    return factors


def kernels(path: Path) -> Counter[str]:
    """What the runtime makes of a file."""
    out = path.with_suffix(".optimized")
    session(path, optimized_path=out)
    return Counter(n.op_type for n in onnx.load(out, load_external_data=False).graph.node)


def chained(segments: Sequence[Segment], feed: Mapping[str, Array]) -> dict[str, Array]:
    values = dict(feed)
    for segment in segments:
        opened = session(segment.path)
        inputs = {i.name: values[i.name] for i in opened.get_inputs()}
        names = [output.name for output in opened.get_outputs()]
        values |= dict(zip(names, opened.run(names, inputs), strict=True))
    return values


def assert_whole(path: Path, segments: Sequence[Segment], feed: Mapping[str, Array]) -> None:
    opened = session(path)
    values = chained(segments, feed)
    for output, expected in zip(opened.get_outputs(), opened.run(None, dict(feed)), strict=True):
        np.testing.assert_array_equal(values[output.name], expected)


def assert_same_kernels(path: Path, segments: Sequence[Segment]) -> None:
    assert sum((kernels(segment.path) for segment in segments), Counter()) == kernels(path)


def split(source: onnx.ModelProto, folder: Path, layers: Sequence[LayerShape] | None = None) -> list[Segment]:
    onnx.save(source, folder / "whole.onnx")
    (folder / "parts").mkdir()
    if layers is None:
        layers = layers_of(load(folder / "whole.onnx"))
    return list(split_onnx(folder / "whole.onnx", layers, folder / "parts"))


@pytest.mark.parametrize("thin", [True, False], ids=["pairs", "dense"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_every_scheme_runs_with_the_kernels_of_the_whole(name: str, scheme: Scheme, thin: bool, tmp_path: Path) -> None:
    make, shape = MODELS[name]
    source = ir.serde.deserialize_model(make())
    factors = every_other_factored(source) if thin else {}
    layers = layers_of(source, factors)
    emitted = with_factors(source, factors) if factors else source
    ranges = {site.layer.name: (-4.0, 4.0) for site in find_sites(emitted)}
    path = tmp_path / "whole.onnx"
    save(to_schemes(emitted, scheme, ranges=ranges), path)
    segments = split_onnx(path, layers, tmp_path, unsigned=X86)
    assert [s.name for s in segments if s.layer] == [layer.name for layer in layers]
    assert_whole(path, segments, {"x": normal(*shape, seed=5)})
    assert_same_kernels(path, segments)


@pytest.mark.parametrize("scheme", SCHEMES[1:], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_the_runtimes_own_quantizer(name: str, scheme: Scheme, tmp_path: Path) -> None:
    make, shape = MODELS[name]
    layers = layers_of(ir.serde.deserialize_model(make()))
    path, feed = tmp_path / "whole.onnx", {"x": normal(*shape, seed=5)}
    quantize(make(), path, scheme, [feed])
    segments = split_onnx(path, layers, tmp_path, unsigned=X86)
    assert [s.name for s in segments if s.layer] == [layer.name for layer in layers]
    assert_whole(path, segments, feed)
    assert_same_kernels(path, segments)


def test_a_layer_holds_its_own_nodes_and_no_others(tmp_path: Path) -> None:
    source = ir.serde.deserialize_model(mlp())
    save(to_schemes(source, INT8_STATIC, ranges={f"w{i}": (-4.0, 4.0) for i in (1, 2, 3)}), tmp_path / "m.onnx")
    segments = split_onnx(tmp_path / "m.onnx", layers_of(source), tmp_path)
    assert [(s.name, s.layer) for s in segments] == [("w1", True), ("w2", True), ("w3", True)]
    ends = []
    for segment in segments:
        part = onnx.load(segment.path)
        onnx.checker.check_model(part)
        assert sum(n.op_type == "Gemm" for n in part.graph.node) == 1
        ends.append((part.graph.node[-1].op_type, part.graph.output[0].type.tensor_type.elem_type))
    assert ends == [
        ("QuantizeLinear", TensorProto.INT8),  # Gemm, Relu and QuantizeLinear are one kernel
        ("Sigmoid", TensorProto.FLOAT),  # Sigmoid is not: the QuantizeLinear is the next layer's
        ("Gemm", TensorProto.FLOAT),
    ]


def test_a_shared_weight_gives_two_segments_of_one_name(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Softmax", ["a"], ["s"]),
        node("MatMul", ["s", "w"], ["y"]),
    ]
    source = proto(nodes, [info("x", (2, D))], [info("y", (2, D))], {"w": normal(D, D)})
    segments = split(source, tmp_path)
    assert [(s.name, s.layer) for s in segments] == [("w", True), ("between w and w", False), ("w", True)]
    assert_whole(tmp_path / "whole.onnx", segments, {"x": normal(2, D)})


def test_constants_left_out_inputs_and_unused_outputs(tmp_path: Path) -> None:
    """Constant nodes and initializers that several segments share, empty names, outputs that nobody reads."""
    nodes = [
        const("c", normal(D)),
        node("Identity", ["c"], ["same"]),
        node("Add", ["x", "same"], ["x1"]),
        node("MatMul", ["x1", "w1"], ["a"], name="first"),
        node("Add", ["a", "same"], ["a1"]),
        node("Clip", ["a1", "", "top"], ["a2"]),
        node("TopK", ["a2", "k"], ["best", "places"]),
        node("Dropout", ["a2"], ["kept", ""]),
        node("Exp", ["a2"], ["nobody"]),
        node("Mul", ["kept", "shared"], ["k2"]),
        node("MatMul", ["k2", "w2"], ["b"], name="second"),
        node("Mul", ["b", "shared"], ["b2"]),
        node("ReduceSum", ["b2", ""], ["sum"], keepdims=1),
        node("Add", ["sum", "best"], ["y"]),
    ]
    weights = {"w1": normal(D, D), "w2": normal(D, 8), "shared": normal(1), "top": np.float32(3), "k": np.array([1])}
    outputs = [info("y", (2, 1)), info("a2", (2, D)), info("shared", (1,))]
    source = proto(nodes, [info("x", (2, D))], outputs, weights)
    segments = split(source, tmp_path)
    assert [s.name for s in segments] == ["before w1", "w1", "between w1 and w2", "w2", "after w2"]
    assert_whole(tmp_path / "whole.onnx", segments, {"x": normal(2, D)})
    left = {name for s in segments for n in onnx.load(s.path).graph.node for name in n.output}
    assert "nobody" not in left
    held = [{i.name for i in onnx.load(s.path).graph.initializer} for s in segments]
    assert [names & {"w1", "w2"} for names in held] == [set(), {"w1"}, set(), {"w2"}, set()]


@pytest.mark.parametrize("ir_version", [3, 8])
def test_initializers_that_are_inputs_too(ir_version: int, tmp_path: Path) -> None:
    source = mlp()
    source.ir_version = ir_version
    for tensor in source.graph.initializer:
        source.graph.input.append(info(tensor.name, tensor.dims))
    segments = split(source, tmp_path)
    assert [s.name for s in segments] == ["w1", "w2", "w3"]
    assert_whole(tmp_path / "whole.onnx", segments, {"x": normal(1, D)})
    assert [i.name for i in session(segments[0].path).get_inputs()] == ["x"]


def test_inputs_that_are_outputs_and_dynamic_axes(tmp_path: Path) -> None:
    source = mlp()
    for value in (source.graph.input[0], source.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    source.graph.output.append(info("x", ("batch", D)))
    segments = split(source, tmp_path)
    for batch in (1, 4):
        assert_whole(tmp_path / "whole.onnx", segments, {"x": normal(batch, D)})


def test_float16_between_float32_products(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w1"], ["a"]), node("Relu", ["a"], ["b"]), node("MatMul", ["b", "w2"], ["y"])]
    weights = {"w1": normal(D, D, dtype=np.float16), "w2": normal(D, 8, dtype=np.float16)}
    half = TensorProto.FLOAT16
    source = model(nodes, [info("x", (2, D), half)], [info("y", (2, 8), half)], weights)
    save(to_schemes(source, INT8_DYNAMIC), tmp_path / "m.onnx")
    segments = split_onnx(tmp_path / "m.onnx", layers_of(source), tmp_path)
    assert [s.name for s in segments if s.layer] == ["w1", "w2"]
    feed = {"x": normal(2, D, dtype=np.float16)}
    (expected,) = session(tmp_path / "m.onnx").run(None, feed)  # the runtime leaves out the rounding between the layers
    np.testing.assert_allclose(chained(segments, feed)["y"], expected, atol=0.1)


def test_no_layer_matches(tmp_path: Path) -> None:
    segments = split(mlp(), tmp_path, [LayerShape("elsewhere", 7, 7, None)])
    assert [(s.name, s.layer) for s in segments] == [("whole", False)]
    assert_whole(tmp_path / "whole.onnx", segments, {"x": normal(1, D)})


def test_external_data_and_more_than_one_message_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (file, split_module):
        monkeypatch.setattr(module, "EXTERNAL_BYTES", 1000)
    source = tmp_path / "m.onnx"
    onnx.save(mlp(), source, save_as_external_data=True, location="m.data", size_threshold=100)
    segments = split_onnx(source, layers_of(load(source)), tmp_path)
    assert (tmp_path / "000.onnx.data").exists()
    assert_whole(source, segments, {"x": normal(1, D)})
    assert_same_kernels(source, segments)


def test_magika(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("magika")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "models" / "standard_v3_3" / "model.onnx"
    layers = layers_of(load(path))
    segments = split_onnx(path, layers, tmp_path)
    assert [s.name for s in segments if s.layer] == [layer.name for layer in layers]
    assert len(segments) == 7
    assert_whole(path, segments, {"bytes": np.arange(2048, dtype=np.int32)[None] % 257})
    assert_same_kernels(path, segments)


def test_what_cannot_be_split_says_so(tmp_path: Path) -> None:
    branch = helper.make_graph([node("Identity", ["x"], ["z"])], "b", [], [info("z", (1, D))])
    loops = proto(
        [node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)],
        [info("x", (1, D))],
        [info("y", (1, D))],
        {"yes": np.array(True)},
    )
    function = helper.make_function(
        "mine", "F", ["a"], ["b"], [node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    calls = proto(
        [node("F", ["x"], ["y"], domain="mine")],
        [info("x", (1, D))],
        [info("y", (1, D))],
        functions=[function],
        domains=["mine"],
    )
    constant = proto([const("y", normal(2))], [info("x", (1, D))], [info("x", (1, D))])
    sequence = proto(
        [
            node("SplitToSequence", ["x"], ["s"], axis=1),
            node("MatMul", ["x", "w"], ["a"]),
            node("Relu", ["a"], ["r"]),
            node("SequenceInsert", ["s", "r"], ["t"]),
            node("ConcatFromSequence", ["t"], ["y"], axis=1),
        ],
        [info("x", (1, D))],
        [info("y", (1, None))],
        {"w": normal(D, D)},
    )
    cases = {"control flow": loops, "functions": calls, "nothing to split": constant, "expected a tensor": sequence}
    for index, (message, source) in enumerate(cases.items()):
        folder = tmp_path / str(index)
        folder.mkdir()
        with pytest.raises(ModelError, match=message):
            split(source, folder)
