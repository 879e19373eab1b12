"""Weights that a file holds in integers are those of layers, and what a file is then still answers alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.helper import make_node
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader

from edgepack.backends.onnx.integers import already_in_integers
from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, INT8_STATIC, NBITS4, NBITS8, WEIGHTS8
from edgepack.backends.onnx.session import run, session
from edgepack.metrics.values import sqnr_db
from edgepack.model.types import Array
from edgepack.sources.onnx import OnnxSource, open_onnx
from tests.backends.onnx.graph_models import const, info, normal, proto

ROWS, COLUMNS = 6, 20
CODES = np.random.default_rng(0).integers(-100, 100, (COLUMNS, ROWS)).astype(np.int8)
STEPS = np.linspace(0.01, 0.02, ROWS, dtype=np.float32)
ZEROS = np.arange(-3, 3, dtype=np.int8)
PER_COLUMN = (CODES.astype(np.float32) - ZEROS) * STEPS
X, Y = info("x", ["n", COLUMNS]), info("y", ["n", ROWS])
TOP = make_node("MatMul", ["x", "w"], ["y"])


def opened(made: onnx.ModelProto, folder: Path) -> OnnxSource:
    path = folder / "model.onnx"
    onnx.save(made, path)
    return open_onnx(path)


def assert_alike(source: OnnxSource, feed: Mapping[str, Array], least_db: float) -> None:
    own, given = run(session(source.model), None, feed), run(session(source.path), None, feed)
    assert min(sqnr_db(one, other) for one, other in zip(given, own, strict=True)) > least_db


FORMS = {
    "dequantized": ([make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=1)], PER_COLUMN),
    "unsigned": ([make_node("DequantizeLinear", ["u", "one"], ["w"])], (CODES.view(np.uint8)) * np.float32(0.5)),
    "blocks": (
        [make_node("DequantizeLinear", ["q", "blocks"], ["w"], axis=0, block_size=8)],
        CODES * np.repeat(STEPS[:3], 8)[:COLUMNS, None],
    ),
    "scaled": (
        [make_node("Cast", ["q"], ["c"], to=1), make_node("Cast", ["z"], ["zf"], to=1),
         make_node("Sub", ["c", "zf"], ["d"]), make_node("Mul", ["d", "s"], ["w"])],
        PER_COLUMN,
    ),
    "constants": ([const("k", CODES), make_node("DequantizeLinear", ["k", "one"], ["w"])], CODES * np.float32(0.5)),
}  # fmt: skip
KNOWN: Mapping[str, Array] = {
    "q": CODES, "u": CODES.view(np.uint8), "s": STEPS, "z": ZEROS, "one": np.array(0.5, np.float32),
    "blocks": np.repeat(STEPS[:3, None], ROWS, axis=1),
}  # fmt: skip


def used(nodes: Sequence[onnx.NodeProto]) -> dict[str, Array]:
    names = {name for node in nodes for name in node.input}
    return {name: value for name, value in KNOWN.items() if name in names}


@pytest.mark.parametrize("form", FORMS)
def test_weights_behind_what_decodes_them_are_layers(form: str, tmp_path: Path) -> None:
    nodes, expected = FORMS[form]
    made = proto([*nodes, TOP], [X], [Y], used(nodes), opset=21, ir_version=10)
    source = opened(made, tmp_path)
    (layer,) = source.layers
    np.testing.assert_allclose(layer.weight, expected.T, rtol=1e-6)
    assert layer.name in ("q", "u", "k")
    assert (source.given, source.folded) == (WEIGHTS8, True)
    assert_alike(source, {"x": normal(4, COLUMNS)}, 40)  # the runtime may round the inputs of such products


def test_two_operators_share_what_is_decoded_once(tmp_path: Path) -> None:
    nodes = [*FORMS["dequantized"][0], make_node("MatMul", ["x", "w"], ["a"]), make_node("MatMul", ["x", "w"], ["b"])]
    made = proto([*nodes, make_node("Add", ["a", "b"], ["y"])], [X], [Y], used(nodes))
    (layer,) = opened(made, tmp_path).layers
    assert layer.uses == 2


@pytest.mark.parametrize("weight_type", [QuantType.QInt8, QuantType.QUInt8])
def test_what_rounds_its_inputs_at_every_inference(weight_type: QuantType, tmp_path: Path) -> None:
    cells = 4
    nodes = [
        make_node("Conv", ["x", "k"], ["a"], name="conv", pads=[1, 1], strides=[2]),
        make_node("Transpose", ["a"], ["t"], perm=[2, 0, 1]),
        make_node("LSTM", ["t", "w", "r", "b"], ["h", ""], name="lstm", hidden_size=cells),
        make_node("MatMul", ["h", "fc"], ["y"], name="fc"),
    ]
    weights = {
        "k": normal(5, 3, 3), "w": normal(1, 4 * cells, 5), "r": normal(1, 4 * cells, cells),
        "b": normal(1, 8 * cells), "fc": normal(cells, 2),
    }  # fmt: skip
    float_path = tmp_path / "float.onnx"
    onnx.save(proto(nodes, [info("x", [1, 3, 8])], [info("y", [4, 1, 1, 2])], weights), float_path)
    path = tmp_path / "model.onnx"
    quantize_dynamic(float_path, path, weight_type=weight_type, op_types_to_quantize=["Conv", "LSTM", "MatMul"])
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert {"ConvInteger", "MatMulInteger", "DynamicQuantizeLSTM"} <= kinds
    source = open_onnx(path)
    assert [layer.geometry.operator for layer in source.layers] == ["Conv", "LSTM", "MatMul"]
    assert source.given == INT8_DYNAMIC
    assert_alike(source, {"x": normal(1, 3, 8)}, 20)
    for layer, known in zip(source.layers, (weights["k"], weights["w"], weights["fc"].T), strict=True):
        assert sqnr_db(known.reshape(layer.weight.shape), layer.weight) > 30


def test_a_bias_that_is_added_before_the_sums_are_scaled(tmp_path: Path) -> None:
    nodes = [
        make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        make_node("ConvInteger", ["xq", "k", "xz", "kz"], ["i"], pads=[1, 1]),
        make_node("Mul", ["xs", "ks"], ["steps"]),
        make_node("Div", ["b", "steps"], ["scaled"]),
        make_node("Floor", ["scaled"], ["floor"]),
        make_node("Cast", ["floor"], ["whole"], to=6),
        make_node("Reshape", ["whole", "shape"], ["along"]),
        make_node("Add", ["i", "along"], ["sum"]),
        make_node("Cast", ["sum"], ["c"], to=1),
        make_node("Mul", ["c", "steps"], ["y"]),
    ]
    weights = {
        "k": CODES[:5, :6].reshape(5, 2, 3).view(np.uint8), "kz": np.array(90, np.uint8),
        "ks": np.array(0.01, np.float32), "b": normal(5), "shape": np.array([1, 5, 1]),
    }  # fmt: skip
    source = opened(proto(nodes, [info("x", [1, 2, 9])], [info("y", [1, 5, 9])], weights), tmp_path)
    (layer,) = source.layers
    np.testing.assert_array_equal(layer.bias, weights["b"])
    assert_alike(source, {"x": normal(1, 2, 9)}, 30)


def blocks(bits: int, zero: Array | None, **changed: int) -> onnx.ModelProto:
    """MatMulNBits over 20 columns in blocks of 16."""
    size = 16 * bits // 8
    weights = {
        "q": np.random.default_rng(1).integers(0, 256, (ROWS, 2, size)).astype(np.uint8),
        "s": normal(ROWS * 2) / 10,
    } | ({} if zero is None else {"z": zero})
    attributes = {"N": ROWS, "K": COLUMNS, "bits": bits, "block_size": 16} | changed
    node = make_node(
        "MatMulNBits", ["x", "q", "s", *weights.keys() & {"z"}], ["y"], domain="com.microsoft", **attributes
    )
    return proto([node], [X], [Y], weights, domains=["com.microsoft"])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_blocks_are_decoded(bits: int, zeros: bool, tmp_path: Path) -> None:
    zero = np.random.default_rng(2).integers(0, 256, (ROWS, 2 * bits // 8)).astype(np.uint8) if zeros else None
    source = opened(blocks(bits, zero), tmp_path)
    (layer,) = source.layers
    assert layer.weight.shape == (ROWS, COLUMNS)
    assert source.given == {4: NBITS4, 8: NBITS8}[bits]
    assert_alike(source, {"x": normal(4, COLUMNS)}, 60)


WIDE = [make_node("Cast", ["x"], ["xi"], to=3), make_node("MatMulInteger", ["xi", "q"], ["i"]),
        make_node("Cast", ["i"], ["y"], to=1)]  # fmt: skip


@pytest.mark.parametrize(
    "made",
    [proto(WIDE, [X], [Y], used(WIDE)), blocks(4, None, K=COLUMNS * 4),
     blocks(4, None, block_size=0), blocks(4, np.zeros(1, np.uint8)), blocks(2, None)],
    ids=["integers without a scale", "columns", "no block", "zero points", "bits"],
)  # fmt: skip
def test_what_cannot_be_told_apart_stays(made: onnx.ModelProto, tmp_path: Path) -> None:
    source = opened(made, tmp_path)
    assert source.layers == ()
    assert (source.given, source.folded) == (FP32, False)


def integer_chain(gemm: bool, *, per_column: bool = True) -> onnx.ModelProto:
    """QuantizeLinear, two products in integers, DequantizeLinear; the second product gives floats where it is QGemm.

    No codes whose sums a CPU without VNNI cuts off."""
    rng = np.random.default_rng(5)
    wide = rng.integers(-64, 65, (ROWS, 9)).astype(np.int8)
    held: dict[str, Array] = {
        "xs": np.array(0.03, np.float32), "xz": np.array(120, np.uint8), "q": CODES // 2,
        "s": STEPS if per_column else np.array([0.015], np.float32),
        "z": ZEROS if per_column else np.array([2], np.int8),
        "hs": np.array([0.2], np.float32), "hz": np.array([128], np.uint8),
        "v": wide.T if gemm else wide, "vs": np.array(0.01, np.float32), "vz": np.array(0, np.int8),
        "ys": np.array(0.1, np.float32), "yz": np.array(7, np.uint8),
    }  # fmt: skip
    nodes = [make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"])]
    if gemm:
        held |= {"c": rng.integers(-900, 900, ROWS).astype(np.int32)}
        first = ["xq", "xs", "xz", "q", "s", "z", "c", "hs", "hz"]
        second = ["h", "hs", "hz", "v", "vs", "vz"]
        nodes += [
            make_node("QGemm", first, ["h"], "first", domain="com.microsoft", alpha=0.5),
            make_node("QGemm", second, ["y"], "second", domain="com.microsoft", transB=1),
        ]
    else:
        nodes += [
            make_node("QLinearMatMul", ["xq", "xs", "xz", "q", "s", "z", "hs", "hz"], ["h"], "first"),
            make_node("QLinearMatMul", ["h", "hs", "hz", "v", "vs", "vz", "ys", "yz"], ["yq"], "second"),
            make_node("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
        ]
    used_names = {name for node in nodes for name in node.input}
    known = {name: value for name, value in held.items() if name in used_names}
    return proto(nodes, [X], [info("y", ["n", 9])], known, domains=["com.microsoft"])


@pytest.mark.parametrize("per_column", [True, False])
@pytest.mark.parametrize("gemm", [False, True])
def test_products_that_take_and_give_integers(gemm: bool, per_column: bool, tmp_path: Path) -> None:
    source = opened(integer_chain(gemm, per_column=per_column), tmp_path)
    first, second = source.layers
    codes = (CODES // 2).astype(np.float32)
    expected = (codes - ZEROS) * STEPS if per_column else (codes - 2) * np.float32(0.015)
    np.testing.assert_allclose(first.weight, expected.T * (0.5 if gemm else 1), rtol=1e-6)  # QGemm's alpha
    assert (first.name, second.name) == ("q", "v")
    assert source.given == INT8_STATIC
    kinds = [node.op_type for node in source.model.graph]
    assert kinds.count("QuantizeLinear") == (2 if gemm else 3)
    feed = {"x": normal(64, COLUMNS)}
    own, given = run(session(source.model), None, feed)[0], run(session(source.path), None, feed)[0]
    assert np.isclose(own, given, atol=1e-4).mean() > 0.97, "all but where a code lies half-way between two"
    assert sqnr_db(own, given) > 40


def test_products_in_integers_whose_grids_are_computed_stay(tmp_path: Path) -> None:
    made = integer_chain(gemm=False)
    made.graph.node[1].input[1] = "scale"
    made.graph.node.insert(0, make_node("Identity", ["xs"], ["scale"]))
    made.graph.node.insert(0, make_node("ReduceMax", ["x"], ["most"], keepdims=0))
    made.graph.node[1].input[0] = "most"
    source = opened(made, tmp_path)
    assert [layer.name for layer in source.layers] == ["v"]
    assert [node.op_type for node in source.model.graph].count("QLinearMatMul") == 1


@pytest.mark.parametrize("fault", ["bias", "weight", "grid", "transposed"])
def test_products_in_integers_that_do_not_fit_are_left_as_they_are(fault: str, tmp_path: Path) -> None:
    made = integer_chain(gemm=True)
    held = {one.name: one for one in made.graph.initializer}
    if fault == "bias":
        held["c"].CopyFrom(numpy_helper.from_array(np.zeros((2, ROWS), np.int32), "c"))
    elif fault == "weight":
        held["s"].CopyFrom(numpy_helper.from_array(np.ones(ROWS + 1, np.float32), "s"))
    elif fault == "grid":
        held["xs"].CopyFrom(numpy_helper.from_array(np.ones(2, np.float32), "xs"))
    else:
        made.graph.node[1].attribute.append(helper.make_attribute("transA", 1))
    source = opened(made, tmp_path)
    assert [layer.name for layer in source.layers] == ["v"]
    assert [node.op_type for node in source.model.graph].count("QGemm") == 1


def small_net(folder: Path, *, biased: bool = True, grouped: bool = False) -> Path:
    """Two convolutions and a linear layer, in floats."""
    rng = np.random.default_rng(7)
    groups = 4 if grouped else 1
    weights: dict[str, Array] = {
        "k": rng.standard_normal((8, 3, 3, 3)).astype(np.float32) / 5,
        "v": rng.standard_normal((12, 8 // groups, 3, 3)).astype(np.float32) / 8,
        "w": rng.standard_normal((12, 5)).astype(np.float32) / 3,
    }
    weights |= {"kb": normal(8), "vb": normal(12), "wb": normal(5)} if biased else {}
    nodes = [
        make_node("Conv", ["x", "k", *(["kb"] if biased else [])], ["a"], pads=[1] * 4),
        make_node("Relu", ["a"], ["b"]),
        make_node("Conv", ["b", "v", *(["vb"] if biased else [])], ["c"], strides=[2, 2], group=groups),
        make_node("GlobalAveragePool", ["c"], ["d"]), make_node("Flatten", ["d"], ["e"]),
        make_node("Gemm", ["e", "w", "wb"], ["y"]) if biased else make_node("MatMul", ["e", "w"], ["y"]),
    ]  # fmt: skip
    onnx.save(proto(nodes, [info("x", ["n", 3, 9, 9])], [info("y", ["n", 5])], weights), folder / "float.onnx")
    return folder / "float.onnx"


class Pictures(CalibrationDataReader):  # type: ignore[misc]
    """Inputs that the runtime's quantizer takes ranges from."""

    def __init__(self) -> None:
        self.feeds = iter([{"x": normal(1, 3, 9, 9)} for _ in range(20)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def in_integers(folder: Path, form: QuantFormat, per_channel: bool, **net: bool) -> Path:
    """That net by the runtime's quantizer."""
    made = folder / "integers.onnx"
    asked = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": per_channel}
    # codes whose sums a CPU without VNNI does not cut off
    quantize_static(small_net(folder, **net), made, Pictures(), quant_format=form, reduce_range=True, **asked)
    return made


@pytest.mark.parametrize("form", [QuantFormat.QOperator, QuantFormat.QDQ])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_layers_of_nets_in_integers(form: QuantFormat, biased: bool, per_channel: bool, tmp_path: Path) -> None:
    source = open_onnx(in_integers(tmp_path, form, per_channel, biased=biased))
    assert [(layer.name, layer.kind) for layer in source.layers] == [
        ("k_quantized", "conv"), ("v_quantized", "conv"), ("w_quantized", "linear"),
    ]  # fmt: skip
    assert source.given == INT8_STATIC
    floats = open_onnx(tmp_path / "float.onnx").layers
    for layer, own in zip(source.layers, floats, strict=True):
        assert layer.geometry == replace(own.geometry, operator=layer.geometry.operator)
        assert np.abs(layer.weight - own.weight).max() <= np.abs(own.weight).max() / 60
    feed = {"x": normal(64, 3, 9, 9)}
    own, given = run(session(source.model), None, feed)[0], run(session(source.path), None, feed)[0]
    assert np.isclose(own, given, atol=1e-4).mean() > 0.9, "all but where a code lies half-way between two"
    assert sqnr_db(own, given) > 40


def test_the_runtime_rounds_no_weight_of_a_net_in_integers_anew(tmp_path: Path) -> None:
    """Not even of convolutions without a bias, one channel of which is far larger than the others."""
    floats = onnx.load(small_net(tmp_path, biased=False))
    (kernel,) = (one for one in floats.graph.initializer if one.name == "k")
    wide = numpy_helper.to_array(kernel) * np.geomspace(0.01, 1, 8, dtype=np.float32)[:, None, None, None]
    kernel.CopyFrom(numpy_helper.from_array(wide, "k"))
    onnx.save(floats, tmp_path / "wide.onnx")
    asked = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    quantize_static(tmp_path / "wide.onnx", tmp_path / "q.onnx", Pictures(), quant_format=QuantFormat.QDQ, **asked)
    session(open_onnx(tmp_path / "q.onnx").model, optimized_path=tmp_path / "optimized.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert "QLinearConv" not in kinds
    assert kinds.count("Conv") == 2


@pytest.mark.parametrize("form", [QuantFormat.QOperator, QuantFormat.QDQ])
def test_convolutions_of_several_groups_stay_in_integers(form: QuantFormat, tmp_path: Path) -> None:
    source = open_onnx(in_integers(tmp_path, form, True, grouped=True))
    assert [layer.name for layer in source.layers] == ["k_quantized", "w_quantized"]
    assert "1 QLinearConv" in (told := str(already_in_integers(source.model))) or "1 Conv behind" in told
    assert "of several groups" in told
