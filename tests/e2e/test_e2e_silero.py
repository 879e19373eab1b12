"""silero-vad, a voice detector with If, convolutions, LSTM and a state: it survives, and what is never heard stays."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgepack.backends.onnx.emit import to_schemes
from edgepack.backends.onnx.file import load, save
from edgepack.backends.onnx.rewrite import with_factors
from edgepack.backends.onnx.schemes import INT8_DYNAMIC
from edgepack.backends.onnx.session import session
from edgepack.backends.onnx.sites import find_sites
from edgepack.factorize import svd
from edgepack.model.kinds import views_of
from tests.e2e.e2e_cli import invoke

CHUNK, CONTEXT, RATE = 512, 64, 16000
HEAD = "decoder.decoder.2.weight"
POSITIONS = {
    "stft.forward_basis_buffer": 4,
    **{f"encoder.{number}.reparam_conv.weight": count for number, count in enumerate((4, 2, 1, 1))},
    "decoder.rnn.weight_ih": 1,
    HEAD: 1,
}
"""Layers of one rate, and how many vectors of a chunk each multiplies."""


def model_file(name: str) -> Path:
    spec = importlib.util.find_spec("silero_vad")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "data" / f"{name}.onnx"


def sound(chunks: int) -> np.ndarray:
    """(chunks, 576): a hummed, rising and falling tone with pauses, cut as the model wants it."""
    seconds = np.arange(chunks * CHUNK) / RATE
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 0.7 * seconds)) / RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 12)) * (np.sin(2 * np.pi * 3 * seconds) > 0)
    signal = 0.2 * voice + 0.01 * np.random.default_rng(0).normal(size=seconds.size)
    padded = np.concatenate([np.zeros(CONTEXT), signal])
    return np.stack([padded[i * CHUNK : (i + 1) * CHUNK + CONTEXT] for i in range(chunks)]).astype(np.float32)


def heard(model: ir.Model | Path, chunks: int) -> tuple[np.ndarray, np.ndarray]:
    """Speech probability of each chunk, and the state before it."""
    opened = session(model, exact=True)
    state = np.zeros((2, 1, 128), np.float32)
    answers, states = [], []
    for chunk in sound(chunks):
        states.append(state)
        answer, state = opened.run(None, {"input": chunk[None], "state": state, "sr": np.array(RATE)})
        answers.append(answer[0, 0])
    return np.array(answers), np.stack(states)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs of 560 consecutive chunks."""
    path = tmp_path_factory.mktemp("silero") / "recording.npz"
    chunks = 560
    _, states = heard(model_file("silero_vad"), chunks)
    np.savez(path, input=sound(chunks), state=states, sr=np.full(chunks, RATE))
    return path


def _factored(model: ir.Model) -> ir.Model:
    """Every layer as a pair of full rank: the same function."""
    factors = {}
    for view in views_of(site.layer for site in find_sites(model)):
        spectrum = svd.spectrum(view)
        factors[view.name] = svd.factors(view, spectrum, len(spectrum.energies))
    return with_factors(model, factors)


def _dynamic(model: ir.Model) -> ir.Model:
    return to_schemes(model, INT8_DYNAMIC, ranges=None)


@pytest.mark.parametrize("name", ["silero_vad", "silero_vad_op18_ifless"])
@pytest.mark.parametrize(("change", "tolerance"), [(_factored, 1e-4), (_dynamic, 0.1)])
def test_changed_graph_hears_the_same(
    tmp_path: Path, name: str, change: Callable[[ir.Model], ir.Model], tolerance: float
) -> None:
    expected, _ = heard(model_file(name), 60)
    assert expected.max() - expected.min() > 0.05, "the sound must tell something"
    save(change(load(model_file(name))), tmp_path / "changed.onnx")
    found, _ = heard(tmp_path / "changed.onnx", 60)
    np.testing.assert_allclose(found, expected, atol=tolerance)


def test_inspect_finds_the_layers_in_both_branches(recording: Path) -> None:
    done = invoke("inspect", model_file("silero_vad"), "--data", recording, "--json")
    assert done.code == 0, done.err
    layers = {layer["name"]: layer for layer in json.loads(done.out)["layers"]}
    assert {name: layer["rows"] for name, layer in layers.items()} == {
        f"If_0_{branch}_branch__Inline_0__{name}": heard * count
        for branch, heard in (("then", 1), ("else", 0))
        for name, count in POSITIONS.items()
    }
    assert {layer["break_even"] for name, layer in layers.items() if name.endswith(HEAD)} == {0}


def test_inspect_without_data_works_as_well() -> None:
    done = invoke("inspect", model_file("silero_vad"))
    assert done.code == 0, done.err
    assert "1×128" in done.out


def test_only_what_is_heard_is_factored(tmp_path: Path, recording: Path) -> None:
    out = tmp_path / "pack"
    options = ("--formats", "onnx", "--data", recording, "--out", out, "--max-drop", "0.1")
    done = invoke("build", model_file("silero_vad"), "--target", "rpi4", "-v", *options)
    assert done.code == 0, done.err
    manifest = json.loads((out / "manifest.json").read_text())
    entry = manifest["files"]["model.onnx"]
    ranks = {layer["layer"]: layer["rank"] for layer in entry["layers"]}
    assert len(ranks) == 2 * len(POSITIONS)
    assert {name.split("_")[2] for name, rank in ranks.items() if rank is not None} == {"then"}
    assert all(layer["reason"] for layer in entry["layers"])
    assert entry["size_bytes"] < 0.8 * manifest["files"]["baseline/int8.onnx"]["size_bytes"]
    assert "then_branch" in done.out
    assert any("else" in warning and "never" in warning for warning in manifest["warnings"])
    expected, _ = heard(model_file("silero_vad"), 30)
    found, _ = heard(out / "model.onnx", 30)
    np.testing.assert_allclose(found, expected, atol=0.06)


def test_layers_of_the_rate_that_was_not_heard_stay_dense(tmp_path: Path, recording: Path) -> None:
    out = tmp_path / "pack"
    options = ("--formats", "onnx", "--data", recording, "--out", out)
    done = invoke("build", model_file("silero_vad_op18_ifless"), "--target", "rpi4", *options)
    assert done.code == 0, done.err
    manifest = json.loads((out / "manifest.json").read_text())
    layers = manifest["files"]["model.onnx"]["layers"]
    assert len(layers) == 16
    assert all(layer["rank"] is None for layer in layers if layer["layer"].startswith("model_8k"))
    for plan_trial in manifest["trials"]:
        assert not any(name.startswith("model_8k") for name in plan_trial["ranks"])


def test_build_without_data_takes_a_length_that_the_model_runs_on(tmp_path: Path) -> None:
    out = tmp_path / "pack"
    done = invoke("build", model_file("silero_vad"), "--target", "rpi4", "--formats", "onnx", "--out", out)
    assert done.code == 0, done.err
    assert "--input input=1x256 is assumed: the model leaves ?x? open" in done.out
    files = json.loads((out / "manifest.json").read_text())["files"]
    assert files["model.onnx"]["size_bytes"] < files["baseline/int8.onnx"]["size_bytes"]
