"""What comes out of `finish` goes through torch.export, ONNX and a real build as two thin matmuls per layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from edgepack.backends.onnx.contents import read_contents
from edgepack.pipeline.build import build
from edgepack.pipeline.options import BuildOptions
from edgepack.sources.torch import export_program, save_program
from edgepack.targets.file import get_target
from edgepack.training import apply_compression
from edgepack.workspace import Cache

FEATURES, HIDDEN, CLASSES, RANK = 64, 48, 8, 6


def clusters(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(5).normal(size=(CLASSES, FEATURES))
    y = rng.integers(0, CLASSES, count)
    return (centres[y] + rng.normal(size=(count, FEATURES))).astype(np.float32), y


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A trained model whose first layer is a pair, and a folder with it as `.pt2` and its data."""
    torch.manual_seed(0)
    x, y = clusters(512, 1)
    model = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    compression = apply_compression(
        model,
        compressor="whitened",
        rank=RANK,
        layers=["0"],
        begin_step=20,
        frequency=1,
        alpha_decrement=0.1,
        optimizer=optimizer,
    )
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
        compression.step()
    compression.finish()
    folder = tmp_path_factory.mktemp("finished")
    save_program(export_program(model, (torch.zeros(1, FEATURES),)), folder / "thin.pt2")
    np.savez(folder / "data.npz", input=x, y=y)
    return model.eval(), folder


def test_torch_export_sees_two_thin_layers(finished: tuple[nn.Module, Path]) -> None:
    model, _ = finished
    program = torch.export.export(model, (torch.zeros(1, FEATURES),))
    shapes = [tuple(program.state_dict[name].shape) for name in program.graph_signature.parameters]
    assert shapes == [(RANK, FEATURES), (HIDDEN, RANK), (HIDDEN,), (CLASSES, HIDDEN), (CLASSES,)]
    x = torch.randn(1, FEATURES)
    assert torch.equal(program.module()(x), model(x))


@pytest.mark.parametrize(("precision", "bits", "tolerance"), [("fp32", 32, 1e-4), ("int8", 8, 0.1)])
def test_a_build_keeps_the_pair(
    finished: tuple[nn.Module, Path], tmp_path: Path, precision: str, bits: int, tolerance: float
) -> None:
    model, folder = finished
    options = BuildOptions(
        str(folder / "thin.pt2"),
        get_target("jetson-nano"),
        data=folder / "data.npz",
        formats=("onnx",),
        rank=RANK + 1,  # above every break-even rank: nothing is factored again
        precision=precision,  # type: ignore[arg-type]
        baseline=False,
        out=tmp_path / "pack",
    )
    build(options, cache=Cache(tmp_path / "cache"))
    path = tmp_path / "pack" / "model.onnx"
    weights = {(small, large): width for small, large, width in read_contents(path).weights}
    assert weights[RANK, FEATURES] == weights[RANK, HIDDEN] == bits
    assert (FEATURES, HIDDEN) not in weights
    x, y = clusters(64, 2)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    scores = np.concatenate([session.run(None, {name: row[None]})[0] for row in x])
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    assert np.abs(scores - expected).max() < tolerance * max(1.0, np.abs(expected).max())
    assert (scores.argmax(1) == y).mean() > 0.9
