"""Sound files that wrong ones are made of: models in every format, samples, a pack with results, its archive."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

PACK = "good.pack"
RECIPE = """
import torch
from edgepack import Recipe

def recipe():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 12), torch.nn.ReLU(), torch.nn.Linear(12, 4))
    return Recipe(model, (torch.zeros(1, 16),), {"x": torch.randn(64, 16).numpy()})
"""


@dataclass(frozen=True)
class Things:
    """Where they are.

    Attributes:
        wrong: a folder for what is made of them.
    """

    wrong: Path
    onnx: Path
    tflite: Path
    program: Path
    recipe: str
    data: Path
    pack: Path
    archive: Path


def make(folder: Path, environment: Mapping[str, str]) -> Things:
    """Write all of them into a folder, unless they are there."""
    if not (folder / PACK / "manifest.json").exists():
        _make(folder, environment)
    baseline, archive = ((folder / PACK).glob(name) for name in ("baseline/fp32.tflite", "archive/*"))
    wrong, recipe = Path(mkdtemp(dir=folder, prefix="wrong-")), f"{folder / 'good_recipe.py'}:recipe"
    return Things(
        wrong,
        folder / "good.onnx",
        next(baseline),
        folder / "good.pt2",
        recipe,
        folder / "good.npz",
        folder / PACK,
        next(archive),
    )


def _make(folder: Path, environment: Mapping[str, str]) -> None:
    import onnx
    import torch
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((12, 16), (4, 12))]
    nodes = [
        helper.make_node("Gemm", ["x", "w0"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w1"], ["y"], transB=1),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", s]) for n, s in (("x", 16), ("y", 4))]
    graph = helper.make_graph(
        nodes, "g", values[:1], values[1:], [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "good.onnx")
    np.savez(folder / "good.npz", x=rng.standard_normal((64, 16)).astype(np.float32), y=np.arange(64) % 4)
    (folder / "good_recipe.py").write_text(RECIPE)
    net = torch.nn.Sequential(torch.nn.Linear(16, 12), torch.nn.ReLU(), torch.nn.Linear(12, 4)).eval()
    torch.export.save(torch.export.export(net, (torch.zeros(1, 16),)), str(folder / "good.pt2"))
    command = str(Path(sys.executable).with_name("edgepack"))
    data = ["--data", str(folder / "good.npz"), "--target", "rpi4"]

    def edgepack(*arguments: str) -> None:
        start = time.perf_counter()
        done = subprocess.run([command, *arguments], env=dict(environment), capture_output=True, text=True)
        print(f"edgepack {arguments[0]}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        if done.returncode not in (0, 5):
            raise RuntimeError(f"{arguments}: {done.returncode}: {done.stderr[-2000:]}")

    edgepack(
        "build",
        str(folder / "good.onnx"),
        *data,
        "--rank",
        "2",
        "--max-drop",
        "100",
        "--archive",
        "--out",
        str(folder / PACK),
    )
    edgepack("bench", str(folder / PACK), "--local", "--quick", "--no-cold", "--formats", "onnx")
