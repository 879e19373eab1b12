"""Layers stored in code go through torch.export, and a real build takes what comes out of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from edgepack.pipeline.build import build
from edgepack.pipeline.options import BuildOptions
from edgepack.sources.torch import export_program, save_program
from edgepack.targets.file import get_target
from edgepack.training.constexpr import ConstexprLinear
from edgepack.workspace import Cache
from tests.training.constexpr_cases import CASES
from tests.training.initial import random_start

FEATURES, HIDDEN, CLASSES = 64, 48, 8


def network(name: str, *, all_coded: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    last = nn.Linear(HIDDEN, CLASSES)
    constexpr = CASES[name](HIDDEN, FEATURES, np.ones(HIDDEN, np.float32), 0)
    small = CASES[name](CLASSES, HIDDEN, np.ones(CLASSES, np.float32), 0)
    end = random_start(ConstexprLinear(small)) if all_coded else last
    return nn.Sequential(random_start(ConstexprLinear(constexpr)), nn.ReLU(), end).eval()


@pytest.mark.parametrize("name", CASES)
def test_torch_export_computes_the_same(name: str) -> None:
    model = network(name)
    program = torch.export.export(model, (torch.zeros(2, FEATURES),))
    x = torch.randn(2, FEATURES)
    assert torch.equal(program.module()(x), model(x))
    trained = [key for key in program.graph_signature.parameters if "constants" in key]
    assert trained == [key for key, _ in model.named_parameters() if "constants" in key]


@pytest.mark.parametrize(
    ("name", "all_coded"),
    [("codebook", False), ("sparse", False), ("hashed", False), ("relaid", False), ("blocks", False), ("hashed", True)],
)
def test_a_build_takes_the_exported_program(tmp_path: Path, name: str, all_coded: bool) -> None:
    model = network(name, all_coded=all_coded)
    save_program(export_program(model, (torch.zeros(1, FEATURES),)), tmp_path / "coded.pt2")
    x = np.random.default_rng(1).normal(size=(400, FEATURES)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    np.savez(tmp_path / "data.npz", input=x, y=expected.argmax(1))
    options = BuildOptions(
        str(tmp_path / "coded.pt2"),
        get_target("jetson-nano"),
        data=tmp_path / "data.npz",
        formats=("onnx",),
        # Above every break-even rank of what is seen as a linear layer: all of it stays dense. A scatter is not folded.
        rank=8 if name == "sparse" else 30,
        precision="fp32",
        baseline=False,
        out=tmp_path / "pack",
    )
    build(options, cache=Cache(tmp_path / "cache"))
    session = ort.InferenceSession(tmp_path / "pack" / "model.onnx", providers=["CPUExecutionProvider"])
    own = session.get_inputs()[0].name
    scores = np.concatenate([session.run(None, {own: row[None]})[0] for row in x[:16]])
    np.testing.assert_allclose(scores, expected[:16], atol=1e-4)
