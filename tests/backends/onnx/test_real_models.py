"""Models that people run: they load, survive a round trip, and every linear layer in them is found."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgepack.backends.onnx.activations import with_observed_inputs
from edgepack.backends.onnx.file import load, save
from edgepack.backends.onnx.session import session
from edgepack.sources.onnx import OnnxSource, open_onnx
from tests.backends.onnx.graph_models import assert_factored_same, factored, normal, rng

CONVOLUTIONS = 5
"""Of a Silero model for one sampling rate: a Fourier transform, and four behind it."""


def names(source: OnnxSource, kind: str) -> set[str]:
    """Of the layers of a kind."""
    return {layer.name for layer in source.layers if layer.kind == kind}


def package(name: str) -> Path:
    """Folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


SILERO = sorted((package("silero_vad") / "data").glob("*.onnx"))
HEAD = "decoder.decoder.2.weight"
SILERO_LAYERS = {
    "silero_vad.onnx": {f"If_0_{branch}_branch__Inline_0__{HEAD}" for branch in ("then", "else")},
    "silero_vad_16k_op15.onnx": {f"model.{HEAD}"},
    "silero_vad_16k_sequence.onnx": {"output.weight"},
    "silero_vad_half.onnx": {HEAD},
    "silero_vad_op18_ifless.onnx": {
        f"{side}.{layer}"
        for side in ("model", "model_8k")
        for layer in ("decoder.rnn.weight_hh", "decoder.rnn.weight_ih", HEAD)
    },
    "silero_vad_openvino_16k.onnx": {f"F0::If_0_then_branch__Inline_0__{HEAD}"},
}


def speak(model: ir.Model, *, both_rates: bool, chunks: int = 4) -> list[np.ndarray]:
    """Outputs of consecutive chunks, the state carried on."""
    opened = session(model)
    inputs = {value.name: value.shape for value in opened.get_inputs()}
    results: list[np.ndarray] = []
    for rate, size in ((16000, 576), (8000, 288)) if both_rates else ((16000, 576),):
        carried = {n: np.zeros([d if isinstance(d, int) else 1 for d in s], np.float32) for n, s in inputs.items()}
        for chunk in range(chunks):
            feed = {**carried, "input": 0.1 * normal(1, size, seed=chunk)}
            if "sr" in inputs:
                feed["sr"] = np.array(rate, np.int64)
            outputs = opened.run(None, feed)
            results.extend(outputs)
            carried.update(zip([n for n in inputs if n not in ("input", "sr")], outputs[1:], strict=True))
    return results


def test_the_package_has_the_models_that_we_know():
    assert {path.name for path in SILERO} >= set(SILERO_LAYERS)


@pytest.mark.parametrize("path", SILERO, ids=lambda path: path.stem)
def test_silero_vad_survives_and_shows_its_layers(path, tmp_path):
    source = open_onnx(path)
    if path.name in SILERO_LAYERS:
        assert names(source, "linear") == SILERO_LAYERS[path.name]
        assert len(names(source, "conv")) in (CONVOLUTIONS, 2 * CONVOLUTIONS), "of one rate or of both"
    both = len(names(source, "linear")) > 1
    expected = speak(source.model, both_rates=both)
    save(source.model, tmp_path / "saved.onnx")
    for found, one in zip(speak(load(tmp_path / "saved.onnx"), both_rates=both), expected, strict=True):
        np.testing.assert_array_equal(found, one)
    for found, one in zip(speak(factored(source.model), both_rates=both), expected, strict=True):
        np.testing.assert_allclose(found, one, atol=1e-4)


def test_silero_vad_inputs_are_observed_in_the_branch_that_runs():
    source = open_onnx(next(path for path in SILERO if path.name == "silero_vad_op18_ifless.onnx"))
    watched, observed = with_observed_inputs(source.model, names(source, "linear"))
    assert set(observed) == SILERO_LAYERS["silero_vad_op18_ifless.onnx"]
    opened = session(watched)
    feed = {"input": normal(1, 512), "state": normal(2, 1, 128), "sr": np.array(16000)}
    fetched = dict(zip((o.name for o in opened.get_outputs()), opened.run(None, feed), strict=True))
    rows = {name: seen.rows(*(fetched[o] for o in seen.outputs)) for name, seen in observed.items()}
    assert {name: len(r) for name, r in rows.items()} == {name: int("8k" not in name) for name in rows}
    np.testing.assert_array_equal(rows["model.decoder.rnn.weight_hh"], feed["state"][0])


def test_magika():
    source = open_onnx(package("magika") / "models" / "standard_v3_3" / "model.onnx")
    shapes = [(layer.weight.shape, layer.kind, layer.geometry.operator) for layer in source.layers]
    assert shapes == [((64, 257), "linear", "MatMul"), ((512, 1280), "conv", "Conv"), ((214, 512), "linear", "MatMul")]
    assert all(layer.bias is not None for layer in source.layers if layer.kind == "linear")
    feed = {"bytes": rng().integers(0, 257, (2, 2048)).astype(np.int32)}
    assert_factored_same(source.model, feed, tol=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A transformer encoder layer and a small CNN, as torch exports them."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    encoder = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    cnn = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 16, 1),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 10, bias=False),
    ).eval()
    folder = tmp_path_factory.mktemp("torch")
    examples = {"encoder": (encoder, torch.zeros(2, 7, 32)), "cnn": (cnn, torch.zeros(2, 3, 9, 9))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        for name, (module, example) in examples.items():
            for parameter in module.parameters():  # biases of zero would be dropped
                torch.nn.init.normal_(parameter, std=0.2)
            program = torch.onnx.export(module, (example,), dynamo=True, dynamic_shapes=({0: "n"},), verbose=False)
            program.save(str(folder / f"{name}.onnx"), external_data=name == "encoder")
    return folder, examples


ENCODER = {
    ((96, 32), True, "MatMul"),  # query, key and value at once
    ((32, 32), True, "Gemm"),
    ((64, 32), True, "MatMul"),
    ((32, 64), True, "MatMul"),
}
CNN = {((8, 27), True, "Conv"), ((16, 8), True, "Conv"), ((10, 64), False, "Gemm")}


@pytest.mark.parametrize(("name", "layers"), [("encoder", ENCODER), ("cnn", CNN)])
def test_torch_exports(exported, name, layers):
    import torch

    folder, examples = exported
    source = open_onnx(folder / f"{name}.onnx")
    module, example = examples[name]
    x = normal(3, *example.shape[1:])
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    feed = {source.inputs[0].name: x}
    np.testing.assert_allclose(session(source.model).run(None, feed)[0], expected, atol=1e-4)
    assert {(layer.weight.shape, layer.bias is not None, layer.geometry.operator) for layer in source.layers} == layers
    assert_factored_same(source.model, feed)
    _, observed = with_observed_inputs(source.model, [layer.name for layer in source.layers])
    assert len(observed) == len(source.layers)
