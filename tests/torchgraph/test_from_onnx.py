from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.read import linear_ops
from edgepack.backends.tflite.runtime import load
from edgepack.backends.tflite.schemes import INT8_STATIC
from edgepack.errors import ModelError
from edgepack.sources.torch import export_program, program_to_onnx
from edgepack.torchgraph import find_linears, flat_module, from_onnx
from edgepack.torchgraph.onnx.build import build_module
from edgepack.torchgraph.onnx.node import operator
from edgepack.torchgraph.onnx.registry import OPERATORS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def magika() -> Path:
    spec = importlib.util.find_spec("magika")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "models" / "standard_v3_3" / "model.onnx"


def one_node(path: Path, op: str, domain: str = "", **attributes: object) -> Path:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("x", "y")]
    node = helper.make_node(op, ["x"], ["y"], name="the_node", domain=domain, **attributes)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))
    return path


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (lambda: nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)), {"input": (1, 12)}),
        (lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), {"src": (1, 5, 16)}),
        (
            lambda: nn.MultiheadAttention(16, 2, batch_first=True),
            {"query": (1, 4, 16), "key": (1, 3, 16), "value": (1, 3, 16)},
        ),
    ],
)
def test_exported_models_keep_every_weight(tmp_path: Path, make: object, shapes: dict[str, tuple[int, ...]]) -> None:
    assert callable(make)
    torch.manual_seed(0)
    source = export_program(make(), tuple(torch.randn(s) for s in shapes.values()))
    program_to_onnx(source, tmp_path / "m.onnx")
    program = from_onnx.onnx_to_program(tmp_path / "m.onnx", shapes)
    before, after = (sorted(s.weight.tobytes() for s in find_linears(flat_module(p))) for p in (source, program))
    assert before == after


def test_magika_becomes_a_tflite_file(emitter: TfliteEmitter, tmp_path: Path) -> None:
    loaded = emitter.load_onnx(magika(), {"bytes": (1, 2048)})
    assert (loaded.inputs, loaded.outputs) == (("bytes",), ("target_label",))
    emitter.emit(tmp_path / "m.tflite")
    assert [op.weight.shape for op in linear_ops(tmp_path / "m.tflite")] == [(64, 257), (512, 1280), (214, 512)]
    text = Path(__file__).read_bytes()[:2048]
    values = np.frombuffer(text, np.uint8).astype(np.int32)[None]
    (want,) = ort.InferenceSession(str(magika()), providers=["CPUExecutionProvider"]).run(None, {"bytes": values})
    (have,) = load(tmp_path / "m.tflite", threads=1).run({"bytes": values})
    np.testing.assert_allclose(have, want, atol=1e-5)
    # The int8 kernel of its softmax's division refuses a divisor that rounds to zero.
    samples = {"bytes": np.stack([values] * 4)}
    assert emitter.quantize(tmp_path / "m.tflite", tmp_path / "s.tflite", INT8_STATIC, samples) == ("DIV",)
    (static,) = load(tmp_path / "s.tflite", threads=1).run({"bytes": values})
    assert static.argmax() == want.argmax()


def test_operator_outside_of_onnx_is_named(tmp_path: Path) -> None:
    path = one_node(tmp_path / "m.onnx", "Trilu", "com.microsoft")
    with pytest.raises(ModelError, match=r"node 'the_node' is 'com\.microsoft\.Trilu', which has no counterpart"):
        from_onnx.onnx_to_program(path, {"x": (1, 4)})


def test_control_flow_is_named(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info("z", 1, None)]
    whole, part = (
        helper.make_graph([helper.make_node(kind, ["x"], ["z"], **more)], "b", [], ends)
        for kind, more in (("Identity", {}), ("ReduceSum", {"keepdims": 0}))
    )
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    flag = helper.make_tensor_value_info("flag", TensorProto.INT32, [])
    nodes = [
        helper.make_node("Cast", ["flag"], ["is_on"], to=TensorProto.BOOL),
        helper.make_node("If", ["is_on"], ["y"], name="branching", then_branch=whole, else_branch=part),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x, flag], [helper.make_tensor_value_info("y", 1, None)]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(
        ModelError, match=r"node 'branching' \(If\) has a condition that is computed.*, whose branches give"
    ):
        from_onnx.onnx_to_program(tmp_path / "m.onnx", {"x": (1, 4), "flag": ()})


def test_operator_without_a_counterpart_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="RandomNormalLike"):
        from_onnx.onnx_to_program(one_node(tmp_path / "m.onnx", "RandomNormalLike"), {"x": (1, 4)})


def test_missing_shape_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no shape was given for input 'x'"):
        from_onnx.onnx_to_program(one_node(tmp_path / "m.onnx", "Relu"), {})


def test_the_tail_of_a_sigmoid_is_no_difference(tmp_path: Path) -> None:
    """All answers to random inputs lie where runtimes cut the curve off, each in its own way."""
    model = nn.Sequential(nn.Linear(4, 2), nn.Sigmoid())
    nn.init.constant_(model[0].bias, -12.0)
    source = export_program(model, (torch.randn(1, 4),))
    program_to_onnx(source, tmp_path / "m.onnx")
    assert find_linears(flat_module(from_onnx.onnx_to_program(tmp_path / "m.onnx", {"input": (1, 4)})))


def test_a_wrong_result_is_not_accepted_and_the_first_node_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("x", "y")]
    nodes = [helper.make_node(*each) for each in (("Exp", ["x"], ["e"]), ("Relu", ["e"], ["r"]), ("Erf", ["r"], ["y"]))]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    onnx.save(model, str(tmp_path / "m.onnx"))
    monkeypatch.setitem(OPERATORS[""], "Relu", operator(lambda node, x: torch.relu(x) * 1.1))
    with pytest.raises(ModelError, match=r"output 'y' differs from .* the first .* is that of node 'r' \(Relu\)"):
        from_onnx.onnx_to_program(tmp_path / "m.onnx", {"x": (1, 4)})


def test_outputs_are_compared_on_the_samples_that_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong for negative numbers alone is no difference where there are none."""
    monkeypatch.setitem(OPERATORS[""], "Abs", operator(lambda node, x: x * 1))
    path = one_node(tmp_path / "m.onnx", "Abs")
    with pytest.raises(ModelError, match=r"output 'y' differs .* dB of signal over noise, at least 60 dB"):
        from_onnx.onnx_to_program(path, {"x": (1, 4)})
    from_onnx.onnx_to_program(path, {"x": (1, 4)}, [{"x": np.ones((1, 4), np.float32)}])


def test_tables_may_be_indexed_by_floats(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT32),
        helper.make_node("Gather", ["t", "i"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(*each) for each in (("x", TensorProto.FLOAT, [1, 16]), ("y", 1, None))]
    table = numpy_helper.from_array(np.eye(2, dtype=np.float32), "t")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [table])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(tmp_path / "m.onnx")
    )
    assert from_onnx.onnx_to_program(tmp_path / "m.onnx", {"x": (1, 16)}).graph_signature.user_outputs


def test_integers_masks_and_numbers_go_in_and_all_outputs_come_out_in_order(
    emitter: TfliteEmitter, tmp_path: Path
) -> None:
    """64-bit integers have 32 bits in a TFLite file."""
    ends = (("ids", TensorProto.INT64, [1, 4]), ("mask", TensorProto.BOOL, [1, 4, 1]), ("scale", TensorProto.FLOAT, []))
    gives = (("z", TensorProto.FLOAT), ("best", TensorProto.INT64), ("any", TensorProto.BOOL), ("a", TensorProto.INT64))
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Where", ["mask", "rows", "zero"], ["kept"]),
        helper.make_node("Mul", ["kept", "scale"], ["z"]),
        helper.make_node("ArgMax", ["z"], ["best"], axis=-1),
        helper.make_node("Greater", ["z", "zero"], ["any"]),
        helper.make_node("Add", ["ids", "ids"], ["a"]),
    ]
    table = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*each) for each in ends],
        [helper.make_tensor_value_info(*each, None) for each in gives],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.float32([0]), "zero")],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    loaded = emitter.load_onnx(path, {name: tuple(shape) for name, _, shape in ends})
    assert (loaded.inputs, loaded.outputs) == (("ids", "mask", "scale"), ("z", "best", "any", "a"))
    emitter.emit(tmp_path / "m.tflite")
    feed = {
        "ids": np.array([[1, 2, 3, 9]]),
        "mask": np.array([[[True], [False], [True], [True]]]),
        "scale": np.array(2, np.float32),
    }
    wanted = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed)
    for have, want in zip(load(tmp_path / "m.tflite", threads=1).run(feed), wanted, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-6)


def looked_up(path: Path) -> Path:
    """Places less 3 in a table of 5 rows by every operator that looks some up, and places that cannot be negative."""
    graph = helper.make_graph(
        [
            helper.make_node("Sub", ["places", "three"], ["moved"]),
            helper.make_node("Gather", ["table", "moved"], ["rows"]),
            helper.make_node("Gather", ["table", "moved"], ["columns"], axis=1),
            helper.make_node("Reshape", ["moved", "column"], ["apart"]),
            helper.make_node("GatherElements", ["table", "apart"], ["elements"]),
            helper.make_node("GatherND", ["table", "apart"], ["tuples"]),
            helper.make_node("Gather", ["table", "last"], ["behind"]),
            helper.make_node("Gather", ["table", "places"], ["plain"]),
            helper.make_node("ArgMax", ["rows"], ["largest"], axis=1, keepdims=0),
            helper.make_node("Gather", ["table", "largest"], ["near"]),
        ],
        "g",
        [helper.make_tensor_value_info("places", TensorProto.INT64, [4])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for name in ("rows", "columns", "elements", "tuples", "behind", "plain", "near")
        ],
        [
            numpy_helper.from_array(np.arange(25, dtype=np.float32).reshape(5, 5), "table"),
            *(numpy_helper.from_array(np.array(n, np.int64), name) for name, n in (("three", 3), ("column", [4, 1]))),
            numpy_helper.from_array(np.array([-1, -5], np.int64), "last"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def test_places_are_counted_from_the_end_where_they_may_be_negative(emitter: TfliteEmitter, tmp_path: Path) -> None:
    source, out = looked_up(tmp_path / "m.onnx"), tmp_path / "m.tflite"
    given = {"places": np.array([0, 4, 2, 3], np.int64)}
    emitter.load_onnx(source, {"places": (4,)}, [given])
    emitter.emit(out)
    wanted = ort.InferenceSession(str(source), providers=["CPUExecutionProvider"]).run(None, given)
    for have, want in zip(load(out, threads=1).run(given), wanted, strict=True):
        np.testing.assert_array_equal(have, want)


def test_places_that_are_known_not_to_be_negative_are_taken_as_they_are(tmp_path: Path) -> None:
    model = onnx.load(str(looked_up(tmp_path / "m.onnx")))
    for natural, wrapped in (((), 5), (("places",), 4)):
        module = build_module(model, [torch.tensor([0, 4, 2, 3])], "m.onnx", natural)
        names = [node.target for node in torch.export.export(module, (torch.tensor([0, 4, 2, 3]),)).graph.nodes]
        assert names.count(torch.ops.aten.where.self) == wrapped


def test_a_pipeline_of_scikit_learn_becomes_a_tflite_file(emitter: TfliteEmitter, tmp_path: Path) -> None:
    """Its scaler, and in the place of the maps from class to score the scores."""
    from skl2onnx import to_onnx
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler

    x = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
    network = MLPClassifier((8,), max_iter=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two passes are enough here
        fitted = make_pipeline(StandardScaler(), Normalizer(), network).fit(x, np.arange(60) % 3)
    onnx.save(to_onnx(fitted, x[:1]), tmp_path / "m.onnx")
    loaded = emitter.load_onnx(tmp_path / "m.onnx", {"X": (1, 12)})
    assert loaded.outputs == ("output_label", "output_probability")
    emitter.emit(tmp_path / "m.tflite")
    label, scores = load(tmp_path / "m.tflite", threads=1).run({"X": x[:1]})
    np.testing.assert_allclose(scores, fitted.predict_proba(x[:1]), atol=1e-5)
    assert label == fitted.predict(x[:1])
