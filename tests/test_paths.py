"""Paths that are wrong are named at once, with what may have been meant, and nothing heavy is imported for that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import edgepack as ep
from edgepack.errors import DataError, ModelError, PackError
from edgepack.paths import require_model, require_pack, require_samples

HEAVY = ("numpy", "scipy", "onnx", "onnxruntime", "torch")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("digits.onnx", "recipes.py", "samples.npz"):
        (tmp_path / name).touch()
    (tmp_path / "dist" / "digits.rpi4").mkdir(parents=True)
    return tmp_path


def test_what_is_there_or_is_no_path_passes(here: Path) -> None:
    for model in ("digits.onnx", "recipes.py:mlp", "package.module:mlp", "weights.pth", "anything"):
        require_model(model)
    for samples in ("samples.npz", "recipes.py:rows", "dist", Path("samples.npz"), None):
        require_samples(samples)
    require_pack("dist/digits.rpi4")


@pytest.mark.parametrize(
    "model", ["digit.onnx", "recipe.py:mlp", "models/digits.onnx", "other.pt2", "digits.onn", "digits"]
)
def test_a_model_that_is_not_there(here: Path, model: str) -> None:
    with pytest.raises(ModelError, match=r": no such file$") as err:
        require_model(model)
    hints = {
        "digit.onnx": "did you mean digits.onnx?",
        "recipe.py:mlp": "did you mean recipes.py?",
        "models/digits.onnx": "there is no folder models: check the path of the model",
        "other.pt2": "check the path of the model",
        "digits.onn": "did you mean digits.onnx?",
        "digits": "did you mean digits.onnx?",
    }
    assert err.value.hint == hints[model]


def test_samples_and_packs_that_are_not_there(here: Path) -> None:
    with pytest.raises(DataError, match=r"sample.npz: no such file") as samples:
        require_samples("sample.npz")
    assert samples.value.hint == "did you mean samples.npz?"
    with pytest.raises(PackError, match=r"dist/digits.rpi5: no such folder") as pack:
        require_pack(Path("dist/digits.rpi5"))
    assert pack.value.hint == "did you mean dist/digits.rpi4?"


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "digit.onnx", "--target", "rpi4"),
        ("build", "digits.onnx", "--target", "rpi4", "--data", "sample.npz"),
        ("build", "digits.onnx", "--target", "rpi4", "--data", "samples.npz", "--test", "test.npz"),
        ("inspect", "recipe.py:mlp"),
        ("bench", "dist/digits.rpi5"),
        ("compare", "dist/digits.rpi4", "dist/digits.rpi5"),
        ("targets", "calibrate", "rpi4", "digit.onnx"),
    ],
    ids=" ".join,
)
def test_no_command_imports_anything_heavy_for_it(here: Path, arguments: tuple[str, ...]) -> None:
    code = (
        f"import sys\nsys.argv = ['edgepack', *{arguments!r}]\nfrom edgepack.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        f"print(code, [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "3 []", done.stderr
    assert ": no such f" in done.stderr


def test_from_python_as_well(here: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        ep.inspect("digit.onnx", progress=False)
    with pytest.raises(DataError, match="no such file"):
        ep.build("digits.onnx", "rpi4", data="sample.npz", progress=False)
