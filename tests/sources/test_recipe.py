from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgepack.errors import ModelError
from edgepack.sources import recipe as recipes
from edgepack.sources.recipe import PythonRecipe, as_numpy, load_recipe

HEAD = "import torch\nfrom edgepack.model.types import Recipe\n"
GOOD = HEAD + "def make():\n    return Recipe(torch.nn.Linear(3, 2), (torch.ones(1, 3),), {'x': torch.ones(4, 3)})\n"


def write(folder: Path, text: str, name: str = "model_file.py") -> str:
    (folder / name).write_text(text)
    return f"{folder / name}:make"


def test_file_recipe_is_loaded_in_eval_mode_with_numpy_calibration(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert not recipe.model.training
    assert isinstance(recipe.calibration, dict)
    assert isinstance(recipe.calibration["x"], np.ndarray)
    assert recipe.calibration["x"].shape == (4, 3)


def test_siblings_import_while_the_recipe_runs_and_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "edgepack_test_sibling.py").write_text("WIDTH = 5\n")
    (tmp_path / "edgepack_test_late.py").write_text("DEPTH = 2\n")
    text = HEAD + (
        "from edgepack_test_sibling import WIDTH\n"
        "def make():\n"
        "    import edgepack_test_late\n"
        "    return Recipe(torch.nn.Linear(WIDTH, edgepack_test_late.DEPTH), (torch.ones(1, WIDTH),))\n"
    )
    before, path = set(sys.modules), list(sys.path)
    recipe = load_recipe(write(tmp_path, text))
    assert tuple(recipe.model.weight.shape) == (2, 5)
    assert sys.path == path
    left = {n for n in set(sys.modules) - before if "edgepack_test" in n or "edgepack_recipe" in n}
    assert left == set()
    assert {file.name for file in tmp_path.iterdir()} == {
        "edgepack_test_sibling.py",
        "edgepack_test_late.py",
        "model_file.py",
    }
    assert sys.dont_write_bytecode is False


def test_two_files_of_one_name_do_not_mix(tmp_path: Path) -> None:
    for width in (3, 4):
        folder = tmp_path / str(width)
        folder.mkdir()
        (folder / "edgepack_test_width.py").write_text(f"WIDTH = {width}\n")
        text = HEAD + (
            "from edgepack_test_width import WIDTH\n"
            "def make():\n    return Recipe(torch.nn.Linear(WIDTH, 1), (torch.ones(1, WIDTH),))\n"
        )
        assert load_recipe(write(folder, text)).model.in_features == width


def test_installed_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "edgepack_test_installed.py").write_text(GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_recipe("edgepack_test_installed:make").model.in_features == 3
    monkeypatch.delitem(sys.modules, "edgepack_test_installed")


def test_iterable_calibration_is_handed_on_untouched(tmp_path: Path) -> None:
    text = HEAD + (
        "def rows():\n    yield (torch.ones(1, 3),)\n"
        "def make():\n    return Recipe(torch.nn.Linear(3, 2), (torch.ones(1, 3),), rows())\n"
    )
    calibration = load_recipe(write(tmp_path, text)).calibration
    assert calibration is not None
    assert [as_numpy(row)[0].shape for row in calibration] == [(1, 3)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def make():\n    return 3\n", "returned int, a Recipe was expected"),
        ("def make():\n    return {'encode': 3}\n", "returned a dict, one Recipe was expected"),
        ("def make():\n    return Recipe(3, (torch.ones(1),))\n", "Recipe.model is int"),
        ("def make():\n    return Recipe(torch.nn.ReLU(), torch.ones(1))\n", "a tuple of tensors was expected"),
        ("def make():\n    return Recipe(torch.nn.ReLU(), ())\n", "a tuple of tensors was expected"),
        ("def make():\n    return Recipe(torch.nn.ReLU(), (1.0,))\n", "example input 0 is float"),
        ("def make():\n    return Recipe(torch.nn.ReLU(), (torch.ones(1),), 7)\n", "calibration is int"),
        ("def make():\n    return Recipe(torch.nn.ReLU(), (torch.ones(1),), {'x': [1]})\n", "calibration['x'] is list"),
        ("def make():\n    return Recipe(torch.nn.ReLU(), (torch.ones(1),), evaluate=1)\n", "Recipe.evaluate is int"),
        ("def other():\n    pass\n", "it defines no 'make'; functions there: other"),
        ("make = 3\n", "'make' is a int, not a function"),
        ("def make():\n    raise KeyError('lost')\n", "calling it raised KeyError at {file}:4: 'lost'"),
        ("raise RuntimeError('early')\n", "importing it raised RuntimeError at {file}:3: early"),
        ("def make():\n    return torch.ones(2) @ torch.ones(3)\n", "RuntimeError at {file}:4"),
        ("import sys\nsys.exit(1)\n", "raised SystemExit at {file}:4"),
        ("def make(:\n", "syntax error at {file}:3"),
    ],
)
def test_bad_recipes_say_what_is_wrong(tmp_path: Path, body: str, message: str) -> None:
    spec = write(tmp_path, HEAD + body)
    with pytest.raises(ModelError) as caught:
        load_recipe(spec)
    assert message.format(file=tmp_path / "model_file.py") in caught.value.message


@pytest.mark.parametrize(("raised", "message"), [("SystemExit(3)", "SystemExit"), ("BaseException('no')", "no")])
def test_whatever_a_model_raises_is_told(tmp_path: Path, raised: str, message: str) -> None:
    body = f"class M(torch.nn.Module):\n    def forward(self, x):\n        raise {raised}\n"
    spec = write(tmp_path, f"{HEAD}{body}def make():\n    return Recipe(M(), (torch.ones(1, 3),))\n")
    with pytest.raises(ModelError, match=f"torch.export cannot trace M: .*{message}"):
        PythonRecipe().open(spec, "m", tmp_path, ())


@pytest.mark.parametrize("limit", ["tuples", "bytes"])
def test_a_calibration_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    rows = "((torch.ones(1, 3),) for _ in itertools.count())"
    body = f"import itertools\ndef make():\n    return Recipe(torch.nn.Linear(3, 2), (torch.ones(1, 3),), {rows})\n"
    monkeypatch.setattr(recipes, "MOST_YIELDED", 100)
    if limit == "bytes":
        monkeypatch.setattr(recipes, "MAX_BYTES", 1)
        monkeypatch.setenv("EDGEPACK_LIMIT_GIB", "1e-7")
    most = 100 if limit == "tuples" else 9
    with pytest.raises(ModelError, match=f"its calibration yields more than {most} tuples of {12 * most} bytes"):
        list(load_recipe(write(tmp_path, HEAD + body)).calibration or ())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.py:make", "no such file"),
        ("edgepack_no_such_module:make", "no module named"),
        ("edgepack_no_such.inner:make", "no module named"),
        ("model.onnx", "is not a recipe"),
        ("file.py:1x", "is not a recipe"),
    ],
)
def test_bad_specs(spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_recipe(spec)
