from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from edgepack.backends.tflite.batch import open_batch
from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.runtime import interpreter, session
from edgepack.errors import EdgepackError, ModelError, UsageError
from edgepack.sources import open_model
from edgepack.sources.inputs import parse_input
from edgepack.sources.keras import as_torch, example_inputs, export_keras, import_keras, known_inputs, load_keras
from edgepack.torchgraph import flat_module

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
keras: Any
layers: Any


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Keras takes seconds to import: not in every process that only collects these tests."""
    global keras, layers
    keras = import_keras()
    layers = keras.layers


def trained(model: Any, seed: int = 0) -> Any:
    """A model whose every variable is somewhere else than where it began."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        variable.assign(0.5 + rng.random(variable.shape) / 4 if "variance" in variable.name else values(rng, variable))
    return model


def values(rng: np.random.Generator, variable: Any) -> Any:
    return rng.standard_normal(variable.shape) / max(1, np.prod(variable.shape[:-1])) ** 0.5


def residual() -> Any:
    """What an image net is made of: strides, biases beside normalizations, a sum, depthwise and pointwise."""
    given = keras.Input((8, 8, 3), name="image")
    first = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", name="first")(given)))
    second = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", name="deep")(first))
    third = layers.Conv2D(8, 1, use_bias=False, name="point")(layers.Activation("relu6")(second))
    summed = layers.Add()([first, third])
    fourth = layers.Conv2D(6, 3, strides=2, padding="same", name="strided")(summed)
    return keras.Model(given, layers.Dense(4, activation="softmax", name="scores")(layers.Flatten()(fourth)))


def perceptron() -> Any:
    return keras.Sequential(
        [
            keras.Input((12,), name="pixels"),
            *(layers.Dense(size, activation="relu") for size in (10, 9, 8)),
            layers.Dense(3, name="out layer"),
        ]
    )


def two_inputs() -> Any:
    words, scale = keras.Input((5,), dtype="int32", name="words"), keras.Input((4,), name="scale")
    looked_up = layers.Embedding(11, 4, name="table")(words)
    inner = keras.Sequential([keras.Input((5, 4)), layers.Conv1D(6, 3, padding="causal"), layers.LayerNormalization()])
    pooled = layers.GlobalAveragePooling1D()(inner(looked_up))
    return keras.Model(
        [words, scale], [layers.Multiply()([layers.Dense(4)(pooled), scale]), layers.Dense(2, name="other")(scale)]
    )


def recurrent() -> Any:
    steps = keras.Input((3, 5), name="steps")
    both = layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="both")(steps)
    gated, state = layers.GRU(3, return_sequences=True, return_state=True, name="gated")(both)
    last = layers.LSTM(3, use_bias=False, go_backwards=True)(gated, initial_state=[state, state])
    own = layers.LSTM(3, recurrent_activation="hard_sigmoid")(gated)
    return keras.Model(steps, layers.Dense(2)(layers.Add()([own, last])))


def excited() -> Any:
    """Uneven padding, means over the pixels that keep their axes and such that do not."""
    given = keras.Input((7, 6, 3), name="image")
    first = layers.Conv2D(8, 3, name="first")(layers.ZeroPadding2D(((0, 1), (2, 3)))(given))
    weights = layers.Conv2D(8, 1, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(first))
    scaled = layers.ZeroPadding2D((1, 0))(layers.Multiply()([first, weights]))
    pooled = [layers.GlobalAveragePooling2D()(scaled), layers.GlobalMaxPooling2D()(layers.Conv2D(8, 1)(scaled))]
    return keras.Model(given, layers.Dense(3)(layers.Concatenate()(pooled)))


def attentive() -> Any:
    given = keras.Input((6, 8), name="tokens")
    heard = layers.MultiHeadAttention(2, 3)(query=given, value=given)
    return keras.Model(given, layers.EinsumDense("btf,tfo->bo", output_shape=(4,), bias_axes="o")(heard))


MODELS: dict[str, Callable[[], Any]] = {
    "residual": residual,
    "perceptron": perceptron,
    "two": two_inputs,
    "recurrent": recurrent,
}


def samples(model: Any) -> list[Any]:
    rng = np.random.default_rng(3)
    return [
        rng.integers(0, 9, (1, *given.shape[1:])).astype(given.dtype)
        if "int" in given.dtype
        else rng.standard_normal((1, *given.shape[1:])).astype(given.dtype)
        for given in model.inputs
    ]


def asked(model: Any, inputs: list[Any]) -> list[Any]:
    """Keras's own answers."""
    found = model(inputs if len(inputs) > 1 else inputs[0], training=False)
    return [one.detach().numpy() for one in (found if isinstance(found, list | tuple) else [found])]


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_file_answers_as_keras_does(kind: str, suffix: str, tmp_path: Path) -> None:
    model = trained(MODELS[kind]())
    model.save(tmp_path / f"net{suffix}")
    loaded = load_keras(tmp_path / f"net{suffix}")
    inputs = samples(model)
    program = export_keras(loaded, example_inputs(known_inputs(loaded, "net", ()), "net"))
    found = program.module()(*map(torch.from_numpy, inputs))
    for one, expected in zip(found if isinstance(found, list | tuple) else [found], asked(model, inputs), strict=True):
        np.testing.assert_allclose(one.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_layers_have_the_names_that_keras_gives_them(tmp_path: Path) -> None:
    path = tmp_path / "net.keras"
    trained(residual()).save(path)
    for formats in (("onnx",), ("tflite",)):
        work = tmp_path / formats[0]
        work.mkdir()
        opened = open_model(str(path), work, formats)  # type: ignore[arg-type]
        assert [layer.name for layer in opened.layers] == ["first", "point", "strided", "scores"]
        assert [(spec.name, spec.shape) for spec in opened.inputs] == [("image", (1, 8, 8, 3))]
        assert opened.open_batch == {"image"}
        assert all(layer.bias is not None for layer in opened.layers if layer.name != "point")


def test_nothing_is_left_between_layers_but_what_computes() -> None:
    model = trained(residual())
    module = flat_module(export_keras(model, example_inputs(known_inputs(model, "net", ()), "net")))
    names = [node.target._schema.name for node in module.graph.nodes if node.op == "call_function"]
    conv = "aten::conv2d"
    assert names.count("aten::permute") == 2, "in front of the first and behind the last convolution"
    assert names == [
        "aten::permute",
        *(conv, "aten::relu", conv, names[4], conv, "aten::add", "aten::pad", conv),
        *("aten::permute", "aten::reshape", "aten::linear", "aten::softmax"),
    ]


def test_recurrent_layers_are_operators_of_torch() -> None:
    model = trained(recurrent())
    module = flat_module(export_keras(model, example_inputs(known_inputs(model, "net", ()), "net")))
    names = [node.target._schema.name for node in module.graph.nodes if hasattr(node.target, "_schema")]
    assert (names.count("aten::lstm"), names.count("aten::gru")) == (3, 1)


def test_transpositions_go_through_paddings_and_means() -> None:
    model = excited()
    module = flat_module(export_keras(model, example_inputs(known_inputs(model, "net", ()), "net")))
    names = [node.target._schema.name for node in module.graph.nodes if node.op == "call_function"]
    assert names.count("aten::permute") == 1, "in front of the first convolution"


def test_products_of_attention_are_layers(tmp_path: Path) -> None:
    trained(attentive()).save(tmp_path / "net.keras")
    opened = open_model(str(tmp_path / "net.keras"), tmp_path, ("tflite",))
    sizes = {layer.name: layer.weight.shape for layer in opened.layers}
    assert sizes == {
        **dict.fromkeys(("query", "key", "value"), (6, 8)),
        "attention_output": (8, 6),
        "einsum_dense": (4, 48),
    }


def test_mixed_precision_is_computed_in_that_of_the_weights() -> None:
    half = [layers.Dense(6, activation="relu", dtype="mixed_float16"), layers.BatchNormalization(dtype="mixed_float16")]
    model = trained(keras.Sequential([keras.Input((5,)), *half, layers.Dense(2)]))
    module = flat_module(export_keras(model, example_inputs(known_inputs(model, "net", ()), "net")))
    computed = [node.meta["val"].dtype for node in module.graph.nodes if node.op == "call_function"]
    assert set(computed) == {torch.float32}
    assert [layer.compute_dtype for layer in model.layers] == ["float16", "float16", "float32"], "as it was"
    (given,) = samples(model)
    np.testing.assert_allclose(module(torch.from_numpy(given))[0].numpy(), asked(model, [given])[0], atol=0.02)


def test_names_that_are_no_python_are_made_plain() -> None:
    given = keras.Input((4,), name="class")
    named = layers.Dense(3, name="forward")(layers.Dense(3, name="a b-1")(layers.Dense(3, name="a_b-1")(given)))
    module = as_torch(keras.Model(given, named))
    names = [name for name, _ in module.named_parameters()]
    assert names == ["a_b_1", "a_b_1_bias", "a_b_1_2", "a_b_1_bias_2", "_forward", "forward_bias"]
    assert all(name.isidentifier() for name in names)


def test_shapes_that_are_open_are_given(tmp_path: Path) -> None:
    path = tmp_path / "steps.keras"
    keras.Sequential([keras.Input((None, 6), name="steps"), layers.Conv1D(4, 3)]).save(path)
    with pytest.raises(ModelError, match=r"leaves its input 'steps' open: \?x\?x6") as caught:
        open_model(str(path), tmp_path, ("tflite",))
    assert caught.value.hint == "give its shape, such as --input steps=1x64x6"
    opened = open_model(str(path), tmp_path, ("tflite",), [parse_input("steps=1x20x6")])
    assert opened.inputs[0].shape == (1, 20, 6)


RECIPE = """
import keras, torch
from edgepack.model.types import Recipe

def recipe():
    net = keras.Sequential([keras.Input((12,), name="pixels"), keras.layers.Dense(5, name="head")])
    return Recipe(net, (torch.zeros(1, 12),))
"""


def test_a_recipe_may_hand_over_a_keras_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipes.py"
    path.write_text(RECIPE)
    opened = open_model(f"{path}:recipe", tmp_path, ("tflite",))
    assert [layer.name for layer in opened.layers] == ["head"]
    assert [spec.name for spec in opened.inputs] == ["pixels"]
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UsageError, match="on its jax backend in this process, torch was expected") as caught:
        open_model(f"{path}:recipe", tmp_path, ("tflite",))
    assert "KERAS_BACKEND=torch" in (caught.value.hint or "")


def test_the_environment_is_as_it_was() -> None:
    assert "KERAS_HOME" not in os.environ
    assert os.environ.get("KERAS_BACKEND") != "torch"


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def described(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    def run(parts: dict[str, bytes]) -> None:
        config = json.loads(parts["config.json"])
        change(config)
        parts["config.json"] = json.dumps(config).encode()

    return run


def second(config: dict[str, Any]) -> Any:
    return config["config"]["layers"][1]


CODE = {"class_name": "__lambda__", "config": {"value": "4wAA", "defaults": None, "closure": None}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (described(lambda c: second(c).update(class_name="Lambda")), "a Lambda layer, which is code"),
        (described(lambda c: second(c)["config"].update(activation=CODE)), "a lambda layer, which is code"),
        (described(lambda c: second(c).update(class_name="TorchModuleWrapper")), "TorchModuleWrapper"),
        (described(lambda c: second(c).update(class_name="StringLookup")), "which reads text and files"),
        (described(lambda c: second(c).update(class_name="Mine", module=None, registered_name="m>Mine")), "'Mine'"),
        (described(lambda c: second(c).update(class_name="system", module="os")), "'system' of os"),
        (
            described(
                lambda c: second(c)["config"].update(
                    activation={"class_name": "function", "module": "builtins", "config": "eval"}
                )
            ),
            "'function' of builtins",
        ),
        (
            described(lambda c: second(c).update(class_name="enable_unsafe_deserialization", module="keras.config")),
            "of keras.config",
        ),
        (described(lambda c: second(c)["config"].update(units=2**40)), "Keras cannot load it"),
        (described(lambda c: second(c)["config"].update(units=-1)), "Keras cannot load it"),
        (lambda parts: parts.update({"../../evil.py": b"x"}), r"a part '\.\./\.\./evil\.py'"),
        (lambda parts: parts.update({"/etc/evil": b"x"}), "a part '/etc/evil'"),
        (lambda parts: parts.update({"metadata.json": bytes(2**22)}), "4194304 bytes of 'metadata.json' in"),
        (lambda parts: parts.update({"config.json": b"[" * 200_000}), "nested too deep"),
        (lambda parts: parts.update({"config.json": b"\xff"}), "not a Keras model"),
        (lambda parts: parts.pop("config.json"), "not a Keras model"),
        (lambda parts: parts.pop("model.weights.h5"), "not a Keras model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_model_needs_is_refused(change: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "net.keras"
    perceptron().save(path)
    rewritten(path, change)
    assert_refused(path, says)


def assert_refused(path: Path, says: str) -> None:
    work = path.parent / "work"
    work.mkdir()
    before = sorted(path.parent.iterdir())
    with pytest.raises(ModelError, match=says) as caught:
        open_model(str(path), work)
    assert isinstance(caught.value, EdgepackError)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert sorted(path.parent.iterdir()) == before
    assert not list(work.iterdir())


def bomb(file: h5py.File) -> None:
    file.create_dataset("more", (2**28,), "f4", chunks=(2**20,), compression="gzip")


def elsewhere(file: h5py.File) -> None:
    file["more"] = h5py.ExternalLink("other.h5", "/secret")


def outside(file: h5py.File) -> None:
    file.create_dataset("more", (4,), "f4", external=[("secret.bin", 0, 16)])


def lambda_layer(file: h5py.File) -> None:
    config = json.loads(file.attrs["model_config"])
    second(config).update(class_name="Lambda", config={"function": ["4wAA", None, None], "function_type": "lambda"})
    file.attrs["model_config"] = json.dumps(config)


def weights_alone(file: h5py.File) -> None:
    del file.attrs["model_config"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (bomb, r"1073\d+ bytes of weights in \d+; refused"),
        (elsewhere, "links to elsewhere"),
        (outside, "in another file"),
        (lambda_layer, "a Lambda layer, which is code"),
        (weights_alone, "weights alone, without the model"),
    ],
)
def test_older_files_are_held_to_the_same(change: Callable[[Any], None], says: str, tmp_path: Path) -> None:
    path = tmp_path / "net.h5"
    perceptron().save(path)
    with h5py.File(path, "a") as file:
        change(file)
    assert_refused(path, says)


def test_the_one_group_that_older_files_state_is_read(tmp_path: Path) -> None:
    path = tmp_path / "net.h5"
    model = trained(residual())
    model.save(path)
    with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["model_config"])
        (deep,) = (one for one in config["config"]["layers"] if one["class_name"] == "DepthwiseConv2D")
        deep["config"]["groups"] = 1
        file.attrs["model_config"] = json.dumps(config)
    inputs = samples(model)
    np.testing.assert_allclose(asked(load_keras(path), inputs)[0], asked(model, inputs)[0], rtol=1e-6)


def test_another_file_than_asked_is_no_usage_of_input(tmp_path: Path) -> None:
    path = tmp_path / "net.keras"
    perceptron().save(path)
    with pytest.raises(UsageError, match="no such input"):
        open_model(str(path), tmp_path, ("tflite",), [parse_input("other=1x4")])


def test_recurrent_layers_take_any_batch_in_a_tflite_file(emitter: TfliteEmitter, tmp_path: Path) -> None:
    both = layers.Bidirectional(layers.LSTM(6, return_sequences=True))
    model = trained(keras.Sequential([keras.Input((7, 5)), both, layers.GRU(4), layers.Dense(3)]))
    model.save(tmp_path / "net.keras")
    opened = open_model(str(tmp_path / "net.keras"), tmp_path, ("tflite",))
    path, (spec,) = tmp_path / "net.tflite", opened.inputs
    emitter.load_program(opened.program)
    emitter.emit(path)
    batch = np.random.default_rng(0).standard_normal((5, 7, 5)).astype(np.float32)
    assert open_batch(path, opened.open_batch, {spec.name: batch[:1]}) is None
    made = interpreter(path)
    made.resize_tensor_input(made.get_input_details()[0]["index"], batch.shape, strict=True)
    made.allocate_tensors()
    (answered,) = session(made).run({spec.name: batch})
    np.testing.assert_allclose(answered, asked(model, [batch])[0], atol=1e-5)
