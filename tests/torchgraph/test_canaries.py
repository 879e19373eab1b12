"""ONNX files whose names and strings are code: whatever becomes of them, none of it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.runtime import load
from edgepack.errors import ModelError
from edgepack.torchgraph.from_onnx import graph_names, onnx_to_program

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

IMPORTED = "torch.importlib.import_module('os').system('touch {canary}')"
PLAIN = "__import__('os').system('touch {canary}')"
# Names that end a string, a line, a call or a statement of the text that a converter might make of them.
NAMES = {
    "triple quotes": 'q=Max("""',
    "triple quotes again": '""", 1)',
    "closed string": f"a'); {PLAIN}; ('",
    "closed double string": f'a"); {PLAIN}; ("',
    "new line": f"a\n        {PLAIN}\n        b",
    "new line and comment": f"a = 1\n        v_b = {IMPORTED} #",
    "carriage return": f"a\r        {PLAIN}\r#",
    "comment": "a #",
    "backslash": "a\\",
    "default argument": f"a={IMPORTED}",
    "annotation": f"a:{IMPORTED}",
    "semicolon": f"a=1;{PLAIN};b",
    "shell": "a; touch {canary}; `touch {canary}`; $(touch {canary}) | touch {canary}",
    "path": "../../a/../b",
    "attribute": "torch.importlib",
    "formats": "%n%s{0}{canary}",
    "converter's own names": "in0",
    "null": "a\0b",
    "not ASCII": "ｅｖａｌ(\u202e\u2028)",
}


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "canary" / "CANARY"
    path.parent.mkdir()
    return path


def armed(text: str, canary: Path) -> str:
    return text.replace("{canary}", str(canary))


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, np.ndarray],
    *,
    inputs: Mapping[str, Sequence[int]],
    outputs: Sequence[str],
    functions: Sequence[onnx.FunctionProto] = (),
    opset: int = 20,
) -> Path:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(list(nodes), "g", ends, results, constants)
    domains = {"": opset, **{function.domain: 1 for function in functions}}
    imports = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    model = helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=9)
    onnx.save(model, str(path))
    return path


def assert_same(path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """The converted program computes what onnxruntime does."""
    program = onnx_to_program(path, shapes)
    arrays = {name: np.random.default_rng(0).normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    want = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, arrays)
    have = program.module(check_guards=False)(*map(torch.from_numpy, arrays.values()))
    for wanted, got in zip(want, [have] if isinstance(have, torch.Tensor) else have, strict=True):
        np.testing.assert_allclose(got.numpy(), wanted, atol=1e-5)


def network(path: Path, named: Callable[[str], str]) -> Path:
    """Two layers, a scalar and a vector beside them, every name given by `named`."""
    rng = np.random.default_rng(1)
    weights = {
        named("w"): rng.normal(size=(4, 6)).astype(np.float32),
        named("v"): rng.normal(size=(6, 3)).astype(np.float32),
        named("b"): rng.normal(size=6).astype(np.float32),
        named("scale"): np.array([0.5], np.float32),
    }
    nodes = [
        helper.make_node("Gemm", [named("x"), named("w"), named("b")], [named("h")], name=named("first")),
        helper.make_node("Relu", [named("h")], [named("r")], name=named("second")),
        helper.make_node("Mul", [named("r"), named("scale")], [named("s")], name=named("third")),
        helper.make_node("MatMul", [named("s"), named("v")], [named("y")], name=named("fourth")),
        helper.make_node("Softmax", [named("y")], [named("z")], name=named("fifth")),
    ]
    return save(path, nodes, weights, inputs={named("x"): [1, 4]}, outputs=[named("y"), named("z")])


@pytest.mark.parametrize("name", NAMES)
def test_strange_names_are_names(tmp_path: Path, canary: Path, name: str) -> None:
    """Of inputs, outputs, weights, results and nodes at once."""
    text = armed(NAMES[name], canary)

    def named(plain: str) -> str:
        return text if plain == "scale" else f"{text}{plain}" if plain in "xwh" else f"{plain}{text}"

    path = network(tmp_path / "m.onnx", named)
    assert_same(path, {named("x"): (1, 4)})
    assert graph_names(path) == ([named("x")], [named("y"), named("z")])
    assert not canary.exists()


def test_names_that_the_converter_gives_itself_do_not_collide(tmp_path: Path) -> None:
    names = dict(
        zip("xwvbhrsyz", ("1", "weight_1", "weight_0", "t1", "steps", "0", "input", "outputs", "2"), strict=True)
    )
    assert_same(network(tmp_path / "m.onnx", lambda plain: names.get(plain, plain)), {"1": (1, 4)})


# What is wrong with an attribute's text, by how it would leave its quotes.
STRINGS = {
    "keyword": "{good}',z=" + IMPORTED + ",w='",
    "bare": IMPORTED,
    "new line": "{good}')\n        " + IMPORTED + "\n        ('",
    "backslash": "{good}\\",
}


def attributes() -> dict[str, tuple[str, list[str], dict[str, np.ndarray], dict[str, object], list[int], str]]:
    """operator.attribute → (operator, inputs, weights, all attributes, shape of x, the attribute)."""
    four, scales = [1, 4, 4, 4], np.array([1, 1, 2, 2], np.float32)
    index = {"i": np.zeros((1, 4), np.int64)}
    grid = {"g": np.zeros((1, 4, 4, 2), np.float32)}
    kernel = {"w": np.ones((4, 4, 3, 3), np.float32)}
    gates = {"w": np.ones((1, 8, 4), np.float32), "r": np.ones((1, 8, 2), np.float32)}
    cells = {"w": np.ones((1, 6, 4), np.float32), "r": np.ones((1, 6, 2), np.float32)}
    boxes = {"o": np.array([[0, 0, 2, 2]], np.float32), "n": np.zeros(1, np.int64)}
    pads = {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    return {
        "Gelu.approximate": ("Gelu", ["x"], {}, {"approximate": "none"}, [1, 4], "approximate"),
        "ScatterElements.reduction": (
            "ScatterElements",
            ["x", "i", "x"],
            index,
            {"reduction": "add"},
            [1, 4],
            "reduction",
        ),
        "ScatterND.reduction": (
            *("ScatterND", ["x", "i", "u"], {"i": np.zeros((1, 1), np.int64), "u": np.ones((1, 4), np.float32)}),
            *({"reduction": "mul"}, [1, 4], "reduction"),
        ),
        "Pad.mode": ("Pad", ["x", "p"], pads, {"mode": "reflect"}, four, "mode"),
        "Resize.mode": ("Resize", ["x", "", "s"], {"s": scales}, {"mode": "nearest"}, four, "mode"),
        "Resize.nearest_mode": (
            "Resize",
            ["x", "", "s"],
            {"s": scales},
            {"nearest_mode": "floor"},
            four,
            "nearest_mode",
        ),
        "Resize.coordinate_transformation_mode": (
            *("Resize", ["x", "", "s"], {"s": scales}, {"coordinate_transformation_mode": "asymmetric"}, four),
            "coordinate_transformation_mode",
        ),
        "Resize.keep_aspect_ratio_policy": (
            *("Resize", ["x", "", "s"], {"s": scales}, {"keep_aspect_ratio_policy": "stretch"}, four),
            "keep_aspect_ratio_policy",
        ),
        "GridSample.mode": ("GridSample", ["x", "g"], grid, {"mode": "linear"}, four, "mode"),
        "GridSample.padding_mode": ("GridSample", ["x", "g"], grid, {"padding_mode": "zeros"}, four, "padding_mode"),
        "Conv.auto_pad": ("Conv", ["x", "w"], kernel, {"auto_pad": "SAME_UPPER"}, four, "auto_pad"),
        "MaxPool.auto_pad": ("MaxPool", ["x"], {}, {"auto_pad": "VALID", "kernel_shape": [2, 2]}, four, "auto_pad"),
        "DepthToSpace.mode": ("DepthToSpace", ["x"], {}, {"mode": "CRD", "blocksize": 2}, four, "mode"),
        "Einsum.equation": ("Einsum", ["x"], {}, {"equation": "ij->ji"}, [1, 4], "equation"),
        "LSTM.direction": (
            "LSTM",
            ["x", "w", "r"],
            gates,
            {"direction": "forward", "hidden_size": 2},
            [3, 1, 4],
            "direction",
        ),
        "GRU.direction": (
            "GRU",
            ["x", "w", "r"],
            cells,
            {"direction": "forward", "hidden_size": 2},
            [3, 1, 4],
            "direction",
        ),
        "RoiAlign.mode": ("RoiAlign", ["x", "o", "n"], boxes, {"mode": "avg"}, four, "mode"),
    }


@pytest.mark.parametrize("how", STRINGS)
@pytest.mark.parametrize("which", attributes())
def test_strings_that_onnx_does_not_define_are_refused(tmp_path: Path, canary: Path, which: str, how: str) -> None:
    operator, inputs, weights, given, shape, attribute = attributes()[which]
    bad = armed(STRINGS[how].replace("{good}", str(given[attribute])), canary)
    node = helper.make_node(operator, inputs, ["y"], **{**given, attribute: bad})
    path = save(tmp_path / "m.onnx", [node], weights, inputs={"x": shape}, outputs=["y"])
    with pytest.raises(ModelError):
        onnx_to_program(path, {"x": shape})
    assert not canary.exists()


@pytest.mark.parametrize(
    ("operator", "says"),
    [
        ("ScatterElements", r"node 'odd' \(ScatterElements\) has reduction='other', one of none, "),
        ("Gelu", r"onnxruntime cannot run it: .*Gelu node\. Name:'odd' .*: other"),
    ],
)
def test_a_node_with_an_unknown_string_is_named(tmp_path: Path, operator: str, says: str) -> None:
    _, inputs, weights, given, shape, attribute = next(a for a in attributes().values() if a[0] == operator)
    node = helper.make_node(operator, inputs, ["y"], name="odd", **{**given, attribute: "other"})
    path = save(tmp_path / "m.onnx", [node], weights, inputs={"x": shape}, outputs=["y"])
    with pytest.raises(ModelError, match=says):
        onnx_to_program(path, {"x": shape})


def test_a_name_and_a_string_together(tmp_path: Path, canary: Path) -> None:
    """The tensor's name opens a string and a call that is allowed, the attribute closes both."""
    evil = armed(f"x',z={IMPORTED},w='", canary)
    name = 'q=Max("""'
    node = helper.make_node("ScatterElements", ["x", name, "x"], ["y"], reduction=evil)
    index = {name: np.zeros((1,), np.int64)}
    path = save(tmp_path / "m.onnx", [node], index, inputs={"x": [1]}, outputs=["y"], opset=16)
    with pytest.raises(ModelError):
        onnx_to_program(path, {"x": (1,)})
    assert not canary.exists()


@pytest.mark.parametrize("name", ["triple quotes", "new line", "closed string", "shell"])
def test_names_of_functions_and_their_domains(tmp_path: Path, canary: Path, name: str) -> None:
    """A local function of a strange name, and one that is named like an operator."""
    text = armed(NAMES[name], canary)
    body = helper.make_node("Relu", [f"a{text}"], [f"b{text}"])
    function = helper.make_function(
        f"d{text}", f"f{text}", [f"a{text}"], [f"b{text}"], [body], [helper.make_opsetid("", 20)]
    )
    node = helper.make_node(f"f{text}", ["x"], ["y"], domain=f"d{text}")
    path = save(tmp_path / "m.onnx", [node], {}, inputs={"x": [1, 4]}, outputs=["y"], functions=[function])
    try:
        onnx_to_program(path, {"x": (1, 4)})
    except ModelError as err:
        assert "onnxruntime cannot load it" in err.message  # noqa: PT017 - it may be refused or inlined
    assert not canary.exists()


@pytest.mark.parametrize("name", ["triple quotes", "new line", "closed string", "shell"])
def test_words_that_nothing_computes_with(tmp_path: Path, canary: Path, name: str) -> None:
    """Metadata, documentation, the producer, the graph's name, symbolic sizes."""
    text = armed(NAMES[name], canary)
    path = network(tmp_path / "m.onnx", str)
    model = onnx.load(str(path))
    model.producer_name = model.producer_version = model.domain = model.doc_string = text
    helper.set_model_props(model, {text: text})
    model.graph.name = model.graph.doc_string = text
    for node in model.graph.node:
        node.doc_string = text
        node.metadata_props.add(key=text, value=text)
    for tensor in model.graph.initializer:
        tensor.doc_string = text
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [text, 6]))
    for value in (*model.graph.input, *model.graph.output):
        value.doc_string = text
        value.type.denotation = text
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = text
    onnx.save(model, str(path))
    assert_same(path, {"x": (1, 4)})
    assert not canary.exists()


@pytest.mark.parametrize("name", ["triple quotes", "new line and comment", "default argument"])
def test_the_file_is_written_with_strange_names(
    emitter: TfliteEmitter, tmp_path: Path, canary: Path, name: str
) -> None:
    """Inputs' and outputs' names go into the TFLite file, and through the converter's own generated code."""
    text = armed(NAMES[name], canary)
    path = network(tmp_path / "m.onnx", lambda plain: f"{plain}{text}")
    loaded = emitter.load_onnx(path, {f"x{text}": (1, 4)})
    assert (loaded.inputs, loaded.outputs) == ((f"x{text}",), (f"y{text}", f"z{text}"))
    emitter.emit(tmp_path / "m.tflite")
    load(tmp_path / "m.tflite", threads=1).run({f"x{text}": np.ones((1, 4), np.float32)})
    assert not canary.exists()
