"""Model files run in this process: inputs by name or order, samples in runs, and answers for each sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends import runtime
from edgepack.backends.backend import Session
from edgepack.backends.runtime import load, predict
from edgepack.data import Samples, rename
from edgepack.errors import ModelError
from edgepack.model.scheme import Format
from edgepack.model.types import Array, TensorSpec

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4) / 7


def linear(path: Path, batch: int | str, *, double: bool = False) -> Path:
    kind = TensorProto.DOUBLE if double else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Neg", ["y"], ["z"])],
        "g",
        [helper.make_tensor_value_info("x", kind, [batch, 3])],
        [helper.make_tensor_value_info(n, kind, [batch, 4]) for n in "yz"],
        [numpy_helper.from_array(WEIGHT.astype(float) if double else WEIGHT, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def samples(count: int) -> Samples:
    return Samples({"x": np.random.default_rng(count).standard_normal((count, 3)).astype(np.float32)})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int | str, Session]:
    folder = tmp_path_factory.mktemp("models")
    return {batch: load(linear(folder / f"{batch}.onnx", batch), "onnx") for batch in (1, 5, "N")}


@settings(max_examples=30)
@given(st.integers(1, 150), st.sampled_from([1, 5, "N"]))
def test_one_answer_per_sample_whatever_the_batch(
    models: dict[int | str, Session], count: int, batch: int | str
) -> None:
    given_samples = samples(count)
    found = predict(models[batch], given_samples)
    assert found.shape == (count, 4)
    np.testing.assert_allclose(found, given_samples.inputs["x"] @ WEIGHT, atol=1e-5)


def test_inputs_are_what_the_file_says(models: dict[int | str, Session], tmp_path: Path) -> None:
    assert models["N"].inputs == (TensorSpec("x", (None, 3), np.dtype("float32")),)
    assert models[5].inputs[0].shape == (5, 3)
    double = load(linear(tmp_path / "d.onnx", "N", double=True), "onnx")
    assert double.inputs[0].dtype == np.float64


def test_run_gives_every_output_in_order(models: dict[int | str, Session]) -> None:
    y, z = models["N"].run({"x": np.ones((2, 3), np.float32)})
    np.testing.assert_array_equal(z, -y)


def test_stacked_samples_get_an_axis_of_their_own(models: dict[int | str, Session]) -> None:
    x = np.random.default_rng(0).standard_normal((7, 5, 3)).astype(np.float32)
    found = predict(models[5], Samples({"x": x}))
    np.testing.assert_allclose(found, x @ WEIGHT, atol=1e-5)


def test_renamed_inputs_go_by_order() -> None:
    specs = (TensorSpec("args_0", (None, 3), np.dtype("f4")), TensorSpec("args_1", (None, 2), np.dtype("f4")))
    a, b = np.zeros((2, 3)), np.ones((2, 2))
    labels = np.array([1, 0])
    found = rename(Samples({"x": a, "mask": b}, labels), specs)
    assert list(found.inputs) == ["args_0", "args_1"]
    assert found.inputs["args_0"] is a
    assert found.labels is labels
    same = Samples({"args_1": b, "args_0": a})
    assert rename(same, specs) is same
    with pytest.raises(ValueError, match="shorter"):
        rename(Samples({"x": a}), specs)


def test_wrong_shapes_are_a_model_error(models: dict[int | str, Session]) -> None:
    with pytest.raises(ModelError, match=r"does not run on inputs of shape x \(2, 9\)"):
        models["N"].run({"x": np.ones((2, 9), np.float32)})


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("content", [None, b"", b"junk"])
def test_files_that_cannot_be_loaded(tmp_path: Path, content: bytes | None, exact: bool) -> None:
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError):
        load(tmp_path / "m.onnx", "onnx", exact=exact)


def shared_int8(path: Path, tied: bool) -> tuple[Path, Array, Array]:
    """Two products with one int8 weight, one of them in a branch; all products are as large as they can be."""
    w = np.full((64, 8), 127, np.int8)
    x = np.full((2, 64), 255, np.uint8)

    def product(name: str) -> onnx.NodeProto:
        return helper.make_node("MatMulInteger", ["x", "w"], [name])

    branch = {
        f"{kind}_branch": helper.make_graph(
            [product(kind)], kind, [], [helper.make_tensor_value_info(kind, TensorProto.INT32, [2, 8])]
        )
        for kind in ("then", "else")
    }
    nodes = [product("a"), product("b")] if tied else [helper.make_node("If", ["yes"], ["a"], **branch)]
    outputs = ["a", "b"] if tied else ["a"]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [2, 64])],
        [helper.make_tensor_value_info(n, TensorProto.INT32, [2, 8]) for n in outputs],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.array(True), "yes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path, x, x.astype(np.int32) @ w


@pytest.mark.parametrize("tied", [True, False], ids=["two uses", "in a branch"])
def test_exact_sums_do_not_saturate(tmp_path: Path, tied: bool) -> None:
    """255 · 127 · 2 overflows the 16 bits that x86 CPUs without VNNI add in."""
    path, x, expected = shared_int8(tmp_path / "m.onnx", tied)
    for output in load(path, "onnx", exact=True).run({"x": x}):
        np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("fmt", ["onnx", "tflite"])
def test_slow_samples_run_beside_each_other_and_answer_in_order(
    fmt: Format, models: dict[int | str, Session], tflite_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two are let in at a time: neither goes on before the other has come."""
    model = models["N"] if fmt == "onnx" else load(tflite_models / "fp32.tflite", "tflite")
    count = 2 * runtime.THREADS + 1
    shape = (count, *model.inputs[0].shape[1:])
    drawn = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    given_samples = Samples({model.inputs[0].name: drawn})
    alone = runtime.answers(replace(model, again=None), given_samples)
    monkeypatch.setattr(runtime, "LONG_S", 0.0)
    monkeypatch.setattr(runtime, "THREADS", 2)
    met = Barrier(2)

    def slow(session: Session) -> Session:
        def run(feed: Mapping[str, Array]) -> list[Array]:
            met.wait(60)
            return session.run(feed)

        return replace(session, run=run)

    assert model.again is not None
    again = model.again
    together = runtime.answers(replace(model, again=lambda: slow(again())), given_samples)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
