"""`edgepack join`, from the words of the command line to the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edgepack.cli import app
from tests.backends.tflite.given_files import mlp


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A pack's folder, and a file."""
    (tmp_path / "pack").mkdir()
    file = mlp([(np.eye(16, dtype=np.float32), np.zeros(16, np.float32))], x="x")
    return file.save(tmp_path / "pack" / "model.tflite").parent, file.save(tmp_path / "b.tflite")


def test_packs_and_files_become_one_file(files: tuple[Path, Path], tmp_path: Path) -> None:
    pack, file = files
    out = tmp_path / "model.tflite"
    done = CliRunner().invoke(app, ["join", f"first={pack}", f"second={file}", "--out", str(out), "--json"])
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["size_bytes"] == out.stat().st_size
    assert [(one["signature"], one["inputs"]) for one in told["signatures"]] == [("first", ["x"]), ("second", ["x"])]
    again = CliRunner().invoke(app, ["join", f"first={pack}", f"second={file}", "--out", str(out)])
    assert "second" in again.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["first={pack}"], 2, "found one file, expected two or more"),
        (["first={pack}", "{file}"], 2, "expected NAME=FILE.tflite or NAME=PACK"),
        (["a={pack}", "a={file}"], 2, "two files are named 'a'"),
        (["a={pack}", "b={file}", "--out", "{file}"], 2, "is one of the files that are joined"),
        (["a={pack}", "b={file}", "--out", "model.onnx"], 2, "expected the name of a .tflite file"),
        (["a={pack}", "b=none.tflite"], 3, "none.tflite: no such file"),
        (["a={pack}", "b={tmp}"], 3, "no model.tflite in it"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(
    files: tuple[Path, Path], tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    pack, file = files
    before = file.read_bytes()
    out = [] if "--out" in words else ["--out", str(tmp_path / "out.tflite")]
    given = [word.format(pack=pack, file=file, tmp=tmp_path) for word in words]
    done = CliRunner().invoke(app, ["join", *given, *out])
    assert done.exit_code == code
    assert said in " ".join(done.stderr.split())
    assert not (tmp_path / "out.tflite").exists()
    assert file.read_bytes() == before
