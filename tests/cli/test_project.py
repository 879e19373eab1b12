"""`edgepack init`, and the file that `edgepack build` reads where no model is named."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from edgepack.cli import app
from edgepack.pipeline.options import BuildOptions


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("model.onnx", "samples.npz", "a.onnx", "b.onnx"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[BuildOptions]:
    """What builds are asked for, none of which runs."""
    found: list[BuildOptions] = []
    module = import_module("edgepack.cli.build")
    monkeypatch.setattr(module, "_build", lambda options, output, reasons: found.append(options))
    return found


def run(*args: str, answers: str = "") -> Result:
    return CliRunner().invoke(app, [*args], input=answers)


def test_what_is_asked_is_what_is_built(folder: Path, asked: list[BuildOptions]) -> None:
    done = run("init", answers="model.onnx\nrpi5\nsamples.npz\n0.25\n")
    assert done.exit_code == 0, done.output
    assert "edgepack.yaml: `edgepack build` builds model.onnx for rpi5" in done.stdout
    assert run("build").exit_code == 0
    (options,) = asked
    assert (options.model, options.target.name, options.max_drop) == ("model.onnx", "rpi5", 0.25)
    assert options.data == Path("samples.npz")


def test_an_answer_that_makes_no_sense_is_asked_for_again(folder: Path) -> None:
    done = run("init", answers="modle.onnx\nmodel.onnx\nrpi44\nrpi4\nsample.npz\nsamples.npz\n1\n")
    assert done.exit_code == 0, done.output
    for said in ("did you mean model.onnx?", 'did you mean "rpi4"?', "did you mean samples.npz?"):
        assert said in done.output
    assert "data: samples.npz\n" in (folder / "edgepack.yaml").read_text()


def test_nothing_is_asked_where_all_is_given(folder: Path) -> None:
    given = ("--model", "a.onnx", "--target", "rpi4", "--data", "", "--max-drop", "1", "--json")
    done = run("init", *given)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["options"] == {"model": "a.onnx", "target": "rpi4", "max-drop": 1.0}
    assert run("init", *given).exit_code == 2, "a file that is there stays"
    assert run("init", *given, "--force").exit_code == 0


def test_the_command_line_goes_first(folder: Path, asked: list[BuildOptions]) -> None:
    (folder / "edgepack.yaml").write_text("model: a.onnx\ntarget: rpi4\nmax-drop: 1\nrank: 0.25\ninput: [x=1x3]\n")
    assert run("build", "--max-drop", "2").exit_code == 0
    assert (asked[0].max_drop, asked[0].rank) == (2, 0.25)
    assert run("build", "b.onnx", "--target", "rpi5").exit_code == 0
    assert (asked[1].model, asked[1].max_drop, asked[1].rank) == ("b.onnx", None, "auto"), "it is of another model"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max-dorp: 1", "did you mean 'max-drop'?"),
        ("- model", "found no options"),
        ("model: {a: 1}", "model: found dict"),
        ("model: [", "hint: write lines such as"),
        ("a: &x 1", "anchors"),
        ("model: " + "x" * 200_000, "over 100000 bytes"),
        ("\x00", "hint: write lines such as"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(folder: Path, asked: list[BuildOptions], text: str, says: str) -> None:
    (folder / "edgepack.yaml").write_text(text)
    done = run("build")
    assert done.exit_code == 3
    assert says in done.output
    assert asked == []


@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        (("--model", "what"), 2, "cannot tell what 'what' is"),
        (("--model", "a.onnx", "--target", "rpi44"), 3, "unknown target"),
    ],
)
def test_init_refuses_what_build_would(folder: Path, given: tuple[str, ...], code: int, says: Any) -> None:
    done = run("init", *given)
    assert done.exit_code == code
    assert says in done.output
    assert not (folder / "edgepack.yaml").exists()


def test_help_shows_what_most_builds_need_first() -> None:
    front, _, advanced = run("build", "--help").stdout.partition("\nAdvanced:\n")
    for option in ("--target", "--data", "--max-drop", "--max-size", "--out", "--help"):
        assert f"{option} " in front
    for option in ("--seed", "--method", "--scheduler", "--json"):
        assert f"{option} " in advanced
    assert "Arguments:" in front
