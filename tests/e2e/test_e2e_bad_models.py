"""Models that cannot be built: one clear line that names the file or node, exit 3, nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.e2e.e2e_cli import assert_fails, invoke
from tests.e2e.e2e_models import mlp, mlp_nodes, weights, write_onnx


def fails(model: object, says: list[str], tmp_path: Path, *, code: int = 3, hint: bool = True) -> None:
    out = tmp_path / "out" / "pack"
    done = invoke("build", model, "--target", "rpi4", "--formats", "onnx", "--out", out)
    assert_fails(done, code, says, hint=hint, out=out)


def test_missing_file(tmp_path: Path) -> None:
    fails(tmp_path / "nope.onnx", [r"nope\.onnx: no such file"], tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"hello, this is no model\n" * 50, "not an ONNX file"),
        (b"PK\x03\x04" + b"\0" * 80, r"zip archive|not an ONNX file"),
    ],
    ids=["empty", "text", "zip"],
)
def test_not_a_model(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "odd.onnx"
    path.write_bytes(content)
    fails(path, [r"odd\.onnx", says], tmp_path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated(tmp_path: Path, model: Path, share: float) -> None:
    content = model.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(content[: int(share * len(content))])
    fails(path, [r"cut\.onnx", "cut short"], tmp_path)


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    fails(tmp_path / "folder.onnx", [r"folder\.onnx", "a folder", "expected an ONNX file"], tmp_path)


@pytest.mark.parametrize("name", ["model", "file.py:", "a b"])
def test_unknown_kind_is_a_usage_error(tmp_path: Path, name: str) -> None:
    fails(name, [f"cannot tell what '{name}' is", r"expected model\.onnx, model\.tflite"], tmp_path, code=2)


@pytest.mark.parametrize("name", ["model.pb", "model.pt", "file.py"])
def test_other_kinds_are_told_the_step_to_a_model(tmp_path: Path, name: str) -> None:
    fails(name, [rf"'{name}' is a ", r"expected model\.onnx, model\.tflite"], tmp_path, code=2)


def test_external_data_missing(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "split.onnx"
    onnx.save(onnx.load(model), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    fails(path, [r"split\.onnx", r"weights\.bin", "missing"], tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["w1", "b2"])
def test_weights_that_are_no_numbers(tmp_path: Path, name: str, value: float) -> None:
    path = mlp(tmp_path / "diverged.onnx", lambda made: made[name].reshape(-1).__setitem__(3, value))
    fails(path, [r"diverged\.onnx", f"'{name}' holds (NaN|infinity)", "expected finite"], tmp_path)


def test_shapes_that_contradict_each_other(tmp_path: Path) -> None:
    path = mlp(tmp_path / "odd.onnx", lambda made: made.update(w2=made["w2"][:, :-1]))
    fails(path, ["(dimension|shape|[Gg]emm|GEMM)"], tmp_path, hint=False)


def test_unknown_operator_names_it(tmp_path: Path) -> None:
    nodes = [*mlp_nodes()[:4], helper.make_node("Frobnicate", ["h2"], ["scores"], domain="acme", name="frob")]
    constants = {name: array for name, array in weights().items() if name[1] != "3"}
    path = write_onnx(tmp_path / "custom.onnx", nodes, constants, domains=["acme"])
    fails(path, ["Frobnicate", "acme"], tmp_path)


def test_inspect_needs_no_runtime_for_a_custom_operator(tmp_path: Path) -> None:
    nodes = [*mlp_nodes()[:4], helper.make_node("Frobnicate", ["h2"], ["scores"], domain="acme", name="frob")]
    constants = {name: array for name, array in weights().items() if name[1] != "3"}
    path = write_onnx(tmp_path / "custom.onnx", nodes, constants, domains=["acme"])
    done = invoke("inspect", path)
    assert done.code == 0, done.err
    assert "w1" in done.out


BAD_RECIPES: dict[str, tuple[str, list[str]]] = {
    "raises": ("def recipe():\n    raise ValueError('boom')\n", ["ValueError", r"bad\.py:6", "boom"]),
    "import": ("import no_such_module_at_all\n", ["ModuleNotFoundError", r"bad\.py:5", "no_such_module_at_all"]),
    "syntax": ("def recipe(:\n", ["syntax error", r"bad\.py:5"]),
    "exits": ("import sys\ndef recipe():\n    sys.exit(0)\n", ["SystemExit", r"bad\.py:7"]),
    "nothing": ("def recipe():\n    pass\n", ["returned NoneType", "a Recipe was expected"]),
    "a model": ("def recipe():\n    return M\n", ["returned Linear", "a Recipe was expected"]),
    "arguments": ("def recipe(width):\n    return Recipe(M, (X,))\n", ["needs the arguments width"]),
    "absent": ("def other():\n    pass\n", ["defines no 'recipe'", "other"]),
    "no tuple": ("def recipe():\n    return Recipe(M, X)\n", ["example_inputs is Tensor", "tuple of tensors"]),
    "empty tuple": ("def recipe():\n    return Recipe(M, ())\n", ["example_inputs is empty", "tuple of tensors"]),
    "array": ("def recipe():\n    return Recipe(M, (3.0,))\n", ["example input 0 is float", "a tensor"]),
    "no module": ("def recipe():\n    return Recipe(3, (X,))\n", ["Recipe.model is int"]),
    "wrong shape": (
        "def recipe():\n    return Recipe(M, (torch.zeros(1, 5),))\n",
        ["torch.export cannot trace Linear", "5"],
    ),
    "list": ("def recipe():\n    return Recipe(M, (X,), {'x': [1.0]})\n", [r"calibration\['x'\] is list"]),
    "calibration shape": (
        "def recipe():\n    return Recipe(M, (X,), {'input': np.ones((9, 5), np.float32)})\n",
        [r"'input' has shape \(9, 5\)", r"expected \(N, 64\)"],
    ),
    "stream raises": (
        "def rows():\n    yield (X,)\n    raise OSError('disk gone')\n"
        "def recipe():\n    return Recipe(M, (X,), rows())\n",
        ["OSError", r"bad\.py:7", "disk gone"],
    ),
    "stream ragged": (
        "def recipe():\n    return Recipe(M, (X,), [(X,), (X[:, :5],)])\n",
        ["calibration row 1", r"\(1, 5\)"],
    ),
    "stream empty": ("def recipe():\n    return Recipe(M, (X,), [])\n", ["calibration yields nothing"]),
    "constant": (
        "def recipe():\n    return Recipe(M, (X,), {'input': np.zeros((600, 64), np.float32)})\n",
        ["600 samples are identical"],
    ),
    "evaluate raises": (
        "def score(predict):\n    return {}['top1']\ndef recipe():\n    return Recipe(M, (X,), DATA, score)\n",
        ["evaluate", "KeyError", r"bad\.py:6", "top1"],
    ),
    "evaluate nan": (
        "def recipe():\n    return Recipe(M, (X,), DATA, lambda predict: float('nan'))\n",
        ["evaluate returned nan", "a finite number"],
    ),
    "evaluate text": (
        "def recipe():\n    return Recipe(M, (X,), DATA, lambda predict: '98 %')\n",
        ["evaluate returned '98 %'", "a finite number"],
    ),
    "evaluate inputs": (
        "def recipe():\n    return Recipe(M, (X,), DATA, lambda predict: predict(X, X).mean())\n",
        ["gave predict 2 arrays", "inputs are input"],
    ),
    "nan weights": (
        "def recipe():\n    M.weight.data[0, 0] = float('nan')\n    return Recipe(M, (X,))\n",
        [r"bad\.py:recipe", "weight' holds NaN"],
    ),
}
HEAD = """import numpy as np, torch
from edgepack.model.types import Recipe
M, X = torch.nn.Linear(64, 96), torch.zeros(1, 64)
DATA = {'input': np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32)}
"""


@pytest.mark.parametrize("name", BAD_RECIPES)
def test_bad_recipe(tmp_path: Path, name: str) -> None:
    body, says = BAD_RECIPES[name]
    (tmp_path / "bad.py").write_text(HEAD + body)
    fails(f"{tmp_path / 'bad.py'}:recipe", says, tmp_path, hint=False)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("no.such.module:recipe", "no module named 'no.such.module'"),
        ("json:recipe", "defines no 'recipe'"),
        ("nope.py:recipe", r"nope\.py: no such file"),
        ("nope.pt2", r"nope\.pt2: no such file"),
    ],
)
def test_recipes_and_programs_that_are_not_there(tmp_path: Path, spec: str, says: str) -> None:
    fails(spec, [says], tmp_path)


def _garbage(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 nonsense")


def _pickle(path: Path) -> None:
    import torch

    torch.save({"weights": torch.ones(3)}, path)


def _copy_of_onnx(path: Path) -> None:
    shutil.copy(mlp(path.with_suffix(".onnx")), path)


@pytest.mark.parametrize("make", [_garbage, _pickle, _copy_of_onnx])
def test_bad_program(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "odd.pt2")
    fails(tmp_path / "odd.pt2", [r"odd\.pt2"], tmp_path)


def test_traceback_only_with_v(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(HEAD + "def recipe():\n    raise ValueError('boom')\n")
    model = f"{tmp_path / 'bad.py'}:recipe"
    done = invoke("build", model, "--target", "rpi4", "--out", tmp_path / "out", "-v")
    assert done.code == 3
    assert "Traceback" in done.err
    assert "error: " in done.err
