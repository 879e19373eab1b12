"""`edgepack build-all`: the zoo file, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgepack.cli.build_all import read_zoo
from edgepack.errors import EdgepackError
from tests.e2e.e2e_cli import invoke

ZOO = """
target: rpi4,rpi5
max-drop: 1
no-baseline: true
models:
  - nets/digits.onnx
  - model: speech.tflite
    name: speech-small
    target: [n100]
    data: s.npz
    max-drop: 0.5
    input: [x=1x4, y=1x2]
    no-baseline: false
"""


def zoo_file(folder: Path, text: str) -> Path:
    path = folder / "zoo.yaml"
    path.write_text(text)
    return path


def test_what_stands_beside_models_holds_for_all(tmp_path: Path) -> None:
    digits, speech = read_zoo(zoo_file(tmp_path, ZOO))
    assert (digits.name, digits.pack, digits.model) == ("digits", "digits", "nets/digits.onnx")
    assert [target.name for target in digits.targets] == ["rpi4", "rpi5"]
    assert digits.arguments == ("--max-drop=1", "--no-baseline")
    assert (speech.name, speech.pack, speech.reads) == ("speech-small", "speech", ("s.npz",))
    assert speech.arguments == ("--max-drop=0.5", "--data=s.npz", "--input=x=1x4", "--input=y=1x2")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("target: rpi4", "found no list of models"),
        ("models: []", "found no list of models"),
        ("models: [{name: a}]", r"models\[1\]: found no model"),
        ("models: [a.onnx]", r"models\[1\] \(a\): found no target"),
        ("{target: rpi6, models: [a.onnx]}", 'unknown target "rpi6"'),
        ("{target: rpi4, max-dorp: 1, models: [a.onnx]}", "'max-dorp' is no option of a model here"),
        ("{target: rpi4, out: x, models: [a.onnx]}", "'out' is no option of a model here"),
        ("{target: rpi4, max-drop: much, models: [a.onnx]}", r"models\[1\] \(a\): Invalid value for '--max-drop'"),
        ("{target: rpi4, max-drop: true, models: [a.onnx]}", "max-drop: found bool"),
        ("{target: rpi4, archive: 3, models: [a.onnx]}", "archive: found '3', expected true or false"),
        ("{target: rpi4, models: [{model: a.onnx, name: ../a}]}", "'../a' is no name of a folder"),
        ("{target: rpi4, models: [a.txt]}", "cannot tell what 'a.txt' is"),
        ("[", "while parsing"),
    ],
)
def test_what_is_no_zoo_file(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(EdgepackError, match=says):
        read_zoo(zoo_file(tmp_path, text))


def test_all_that_fails_is_one_document_with_its_exit_code(tmp_path: Path) -> None:
    path = zoo_file(tmp_path, "{target: rpi4, models: [a.onnx]}")
    page = tmp_path / "zoo.html"
    done = invoke("build-all", path, "--out", tmp_path / "out", "--json", "--html", page)
    assert done.code == 3
    record = json.loads(done.out)
    assert record["failed"][0]["model"] == "a"
    assert record["error"]["message"].startswith("1 of 1 models are not built: a: a.onnx: no such file")
    assert "a.onnx: no such file" in page.read_text()
    done = invoke("build-all", tmp_path / "none.yaml")
    assert done.code == 3
    assert "none.yaml" in done.err
