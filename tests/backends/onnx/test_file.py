from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from edgepack.backends.onnx import file
from edgepack.backends.onnx.file import input_specs, load, load_with_digest, output_specs, save, to_bytes
from edgepack.backends.onnx.session import run as in_session
from edgepack.backends.onnx.session import session
from edgepack.backends.onnx.sites import find_sites
from edgepack.errors import ModelError, OutputError
from tests.backends.onnx.graph_models import const, info, model, normal, proto, run

node = helper.make_node
FLIPS = 400


def dense(seed: int = 0) -> onnx.ModelProto:
    weights = {"W": normal(64, 32, seed=seed), "b": normal(32, seed=seed + 1)}
    return proto([node("Gemm", ["x", "W", "b"], ["y"])], [info("x", ("n", 64))], [info("y", ("n", 32))], weights)


def write(path: Path, made: onnx.ModelProto) -> Path:
    path.write_bytes(made.SerializeToString())
    return path


def write_external(folder: Path, made: onnx.ModelProto, location: str = "w.data") -> Path:
    external_data_helper.convert_model_to_external_data(made, location=location, size_threshold=0)
    onnx.save(made, str(folder / "m.onnx"))
    return folder / "m.onnx"


def refused(path: Path, *parts: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(path)
    for part in parts:
        assert part in caught.value.message
    assert caught.value.exit_code == 3
    return caught.value


def test_round_trip_keeps_everything(tmp_path):
    made = dense()
    made.producer_name, made.producer_version, made.doc_string, made.model_version = "maker", "1.2", "about", 7
    made.metadata_props.add(key="k", value="v")
    made.graph.doc_string = "graph"
    made.graph.node[0].doc_string = "node"
    made.graph.initializer[0].doc_string = "weight"
    made.graph.metadata_props.add(key="g", value="h")
    path = write(tmp_path / "a.onnx", made)
    save(load(path), tmp_path / "b.onnx")
    again = onnx.load(tmp_path / "b.onnx")
    del again.graph.value_info[:]
    assert again == made


def test_typed_and_narrow_tensors_survive(tmp_path):
    tensors = [
        helper.make_tensor("f", TensorProto.FLOAT, [600], np.arange(600, dtype=np.float32)),
        helper.make_tensor("i4", TensorProto.INT4, [3001], [i % 8 for i in range(3001)]),
        helper.make_tensor("bf", TensorProto.BFLOAT16, [2000], np.ones(2000, np.float32)),
        helper.make_tensor("s", TensorProto.STRING, [2], [b"one", b"two"]),
        numpy_helper.from_array(normal(700).astype(np.float16), "h"),
    ]
    outputs = [info(f"{t.name}_out", list(t.dims), t.data_type) for t in tensors]
    made = proto([node("Identity", [t.name], [f"{t.name}_out"]) for t in tensors], [], outputs, opset=21, ir_version=10)
    made.graph.initializer.extend(tensors)
    save(load(write(tmp_path / "a.onnx", made)), tmp_path / "b.onnx")
    again = {t.name: t for t in onnx.load(tmp_path / "b.onnx").graph.initializer}
    for tensor in tensors:
        found, expected = numpy_helper.to_array(again[tensor.name]), numpy_helper.to_array(tensor)
        assert found.dtype == expected.dtype
        assert (found == expected).all()


def test_saving_is_deterministic_and_leaves_nothing_behind(tmp_path):
    made = load(write(tmp_path / "a.onnx", dense()))
    for name in ("b.onnx", "c.onnx"):
        save(made, tmp_path / name)
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes() == to_bytes(made)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "b.onnx", "c.onnx"]


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = write(tmp_path / "a.onnx", dense())
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        save(load(path), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


def test_save_into_a_missing_folder(tmp_path):
    made = load(write(tmp_path / "a.onnx", dense()))
    with pytest.raises(OutputError, match="cannot write"):
        save(made, tmp_path / "no" / "b.onnx")


def test_large_model_goes_to_external_data(tmp_path, monkeypatch):
    made = load(write(tmp_path / "a.onnx", dense()))
    monkeypatch.setattr(file, "EXTERNAL_BYTES", 1000)
    with pytest.raises(ModelError, match="bytes of weights"):
        to_bytes(made)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save(made, tmp_path / name / "m.onnx")
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["m.onnx", "m.onnx.data"]
    for name in ("m.onnx", "m.onnx.data"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    monkeypatch.undo()
    assert to_bytes(load(tmp_path / "one" / "m.onnx")) == to_bytes(made)


def test_external_data_is_loaded_and_part_of_the_digest(tmp_path):
    plain = load(write(tmp_path / "a.onnx", dense()))
    path = write_external(tmp_path, dense())
    loaded, first = load_with_digest(path)
    feed = {"x": normal(2, 64)}
    np.testing.assert_array_equal(run(loaded, feed)[0], run(plain, feed)[0])
    data = tmp_path / "w.data"
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    assert load_with_digest(path)[1] != first
    data.unlink()
    np.testing.assert_array_equal(run(loaded, feed)[0], run(plain, feed)[0])


def test_missing_and_short_external_data(tmp_path):
    path = write_external(tmp_path, dense())
    data = tmp_path / "w.data"
    data.write_bytes(data.read_bytes()[:-10])
    assert "copy it again" in (refused(path, "external data", "expected").hint or "")
    data.unlink()
    assert "beside the model" in (refused(path, "'w.data' is missing").hint or "")


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/hostname", "sub/../../secret", "link", "", ".", "a\0b", "x" * 5000]
)
def test_external_data_outside_of_the_folder(tmp_path, location):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(64 * 32 * 4))
    (folder / "link").symlink_to(tmp_path / "secret")
    made = dense()
    for tensor in made.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
    refused(write(folder / "m.onnx", made), "external data of 'W'")


def test_external_data_that_is_no_file(tmp_path):
    made = dense()
    os.mkfifo(tmp_path / "pipe")
    for tensor in made.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="pipe")
    refused(write(tmp_path / "m.onnx", made), "missing")


@pytest.mark.parametrize(("key", "value"), [("offset", "-5"), ("offset", "x"), ("length", "12"), ("offset", "9" * 25)])
def test_external_data_with_wrong_numbers(tmp_path, key, value):
    path = write_external(tmp_path, dense())
    made = onnx.load(path, load_external_data=False)
    for entry in made.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = value
    refused(write(path, made))


def test_no_file_at_all(tmp_path):
    assert refused(tmp_path / "m.onnx", "no such file").hint
    refused(tmp_path, "a folder")
    (tmp_path / "empty.onnx").touch()
    refused(tmp_path / "empty.onnx", "empty")
    os.mkfifo(tmp_path / "pipe.onnx")
    refused(tmp_path / "pipe.onnx", "not a regular file")


@pytest.mark.parametrize(
    "content", [b"hello, I am text\n" * 9, b"PK\x03\x04" + bytes(50), b"\x1c\0\0\0TFL3" + bytes(50), bytes(99)]
)
def test_other_formats(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    assert refused(tmp_path / "m.onnx").hint


def test_truncated_file(tmp_path):
    whole = dense().SerializeToString()
    path = tmp_path / "m.onnx"
    for size in (1, 10, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path)


def test_damaged_bytes_never_crash(tmp_path):
    """A flipped byte gives a model or a ModelError, never anything else."""
    whole = proto(
        [const("W", normal(4, 4)), node("MatMul", ["x", "W"], ["h"]), node("Softmax", ["h"], ["y"], axis=-1)],
        [info("x", ("n", 4))],
        [info("y", ("n", 4))],
    ).SerializeToString()
    path, luck = tmp_path / "m.onnx", random.Random(0)
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(FLIPS):
        content = bytearray(whole)
        for _ in range(luck.randint(1, 3)):
            content[luck.randrange(len(content))] = luck.randrange(256)
        path.write_bytes(content)
        try:
            load(path)
            outcomes["loaded"] += 1
        except ModelError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["initializer", "constant", "bias"])
def test_non_finite_weights_are_named(tmp_path, bad, where):
    w, b = normal(64, 32), normal(32)
    (b if where == "bias" else w).flat[7] = bad
    nodes = [node("Gemm", ["x", "W", "b"], ["y"])]
    weights = {"W": w, "b": b}
    if where == "constant":
        nodes, weights = [const("W", w), *nodes], {"b": b}
    path = write(tmp_path / "m.onnx", proto(nodes, [info("x", (1, 64))], [info("y", (1, 32))], weights))
    name = "'b'" if where == "bias" else "'W'"
    refused(path, name, "NaN" if np.isnan(bad) else "infinity")


def test_masks_of_minus_infinity_are_no_damage(tmp_path):
    mask = np.triu(np.full((8, 8), -np.inf, np.float32), 1)
    nodes = [
        node("Unsqueeze", ["mask", "ax"], ["m2"]),
        node("Add", ["x", "m2"], ["y"]),
        node("Max", ["y", "low"], ["z"]),
    ]
    weights = {"mask": mask, "ax": np.array([0]), "low": np.float32(-np.inf).reshape(())}
    made = proto(nodes, [info("x", (1, 8, 8))], [info("z", (1, 8, 8))], weights)
    load(write(tmp_path / "m.onnx", made))


@pytest.mark.parametrize(
    "damage",
    [
        "circle",
        "duplicate",
        "unknown op",
        "future opset",
        "future ir",
        "no opset",
        "wrong size",
        "negative",
        "sparse",
    ],
)
def test_invalid_graphs(tmp_path, damage):
    made = dense()
    if damage == "circle":
        made.graph.node.extend([node("Relu", ["z"], ["a"]), node("Relu", ["a"], ["z"])])
    elif damage == "duplicate":
        made.graph.node.append(node("Relu", ["x"], ["y"]))
    elif damage == "unknown op":
        made.graph.node[0].op_type = "Gehm"
    elif damage == "future opset":
        made.opset_import[0].version = 999
    elif damage == "future ir":
        made.ir_version = 999
    elif damage == "no opset":
        del made.opset_import[:]
    elif damage == "wrong size":
        made.graph.initializer[0].dims[0] = 63
    elif damage == "negative":
        made.graph.initializer[0].dims[:] = [-64, -32]
    else:
        values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
        indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
        made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    refused(write(tmp_path / "m.onnx", made))


def test_nodes_in_any_order_are_sorted(tmp_path):
    """Runtimes take them so, and converters to float16 write them."""
    made = dense()
    made.graph.node.insert(0, node("Relu", ["y"], ["z"]))
    made.graph.output.append(info("z", ("n", 32)))
    path = write(tmp_path / "m.onnx", made)
    found = load(path)
    assert [each.op_type for each in found.graph] == ["Gemm", "Relu"]
    feed = {"x": normal(2, 64)}
    for given, own in zip(in_session(session(path), None, feed), in_session(session(found), None, feed), strict=True):
        np.testing.assert_array_equal(given, own)


def test_custom_operators_pass_the_door(tmp_path):
    made = proto(
        [node("Strange", ["x"], ["y"], domain="mine", k=3)], [info("x", (1,))], [info("y", (1,))], domains=["mine"]
    )
    save(load(write(tmp_path / "a.onnx", made)), tmp_path / "b.onnx")
    assert onnx.load(tmp_path / "b.onnx") == made


def test_specs():
    inputs = [
        info("ids", ("batch", 16), TensorProto.INT64),
        info("W", (4, 4)),
        info("h", (2, None), TensorProto.FLOAT16),
    ]
    nodes = [node("Cast", ["ids"], ["f"], to=1), node("Identity", ["h"], ["g"]), node("Identity", ["W"], ["V"])]
    outputs = [info("f", ("batch", 16)), info("g", None, TensorProto.FLOAT16), info("V", (4, 4))]
    made = model(nodes, inputs, outputs, {"W": normal(4, 4)})
    assert [(s.name, s.shape, s.dtype) for s in input_specs(made)] == [
        ("ids", (None, 16), np.dtype(np.int64)),
        ("h", (2, None), np.dtype(np.float16)),
    ]
    assert [(s.name, s.shape) for s in output_specs(made)] == [("f", (None, 16)), ("g", ()), ("V", (4, 4))]


def test_specs_of_what_is_no_tensor():
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [2])
    made = model([node("SequenceAt", ["s", "i"], ["y"])], [sequence], [info("y", None)], {"i": np.array(0)})
    with pytest.raises(ModelError, match="expected a tensor"):
        input_specs(made)
    shapeless = model([node("Relu", ["x"], ["y"])], [info("x", None)], [info("y", None)])
    with pytest.raises(ModelError, match="does not state its shape"):
        input_specs(shapeless)


def test_an_output_that_holds_maps_keeps_its_type(tmp_path: Path) -> None:
    """As classifiers of scikit-learn are exported."""
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    shares = helper.make_value_info(
        "shares",
        helper.make_sequence_type_proto(
            helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
        ),
    )
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["scores"]),
            helper.make_node("Add", ["scores", "b"], ["moved"]),
            helper.make_node("Softmax", ["moved"], ["p"]),
            helper.make_node("ZipMap", ["p"], ["shares"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
        ],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [shares],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.ones(3, np.float32), "b")],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    (site,) = find_sites(model)
    assert site.layer.bias is not None, "the rank is known, so that the Add is the bias"
    assert [(spec.name, spec.dtype) for spec in output_specs(model)] == [("shares", np.float32)]
    save(model.clone(), tmp_path / "again.onnx")
    again = onnx.load(tmp_path / "again.onnx")
    onnx.checker.check_model(again)
    assert list(again.graph.output) == [shares]
    feed = {"x": np.ones((1, 4), np.float32)}
    answers = [in_session(session(tmp_path / name), ["shares"], feed)[0] for name in ("m.onnx", "again.onnx")]
    np.testing.assert_array_equal(*answers)
    assert answers[0].shape == (1, 3)
