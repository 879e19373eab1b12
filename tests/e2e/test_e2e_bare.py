"""An installation without extras: what it can write it writes, and for the rest it says what to install."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.e2e_cli import assert_fails, run

OPTIONAL = ("torch", "onnxscript", "litert_torch", "litert_quantizer", "ai_edge_quantizer", "ai_edge_litert")
INSTALL = "pip install '.[tflite]'"

# Python runs this at its start, here and in every process that is started from here.
WITHOUT_EXTRAS = f"""
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {OPTIONAL!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of processes that find none of the optional packages."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(WITHOUT_EXTRAS)
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}


def test_the_packages_are_not_found(bare: dict[str, str]) -> None:
    code = f"from importlib.util import find_spec; print([n for n in {OPTIONAL!r} if find_spec(n)])"
    env = {**os.environ, **bare}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env).stdout == "[]\n"


def test_the_onnx_file_is_written_and_one_line_says_what_tflite_needs(
    bare: dict[str, str], model: Path, data: Path, tmp_path: Path
) -> None:
    options = ("--target", "rpi4", "--data", data, "--rank", "8", "--out", tmp_path / "pack")
    done = run("build", model, *options, env=bare)
    assert done.code == 0, done.err
    assert "Traceback" not in done.out + done.err
    said = " ".join(done.out.split())
    assert said.count(INSTALL) == 1
    manifest = json.loads((tmp_path / "pack" / "manifest.json").read_text())
    wanted = "litert-quantizer, ai-edge-litert, torch, litert-torch"
    assert manifest["warnings"] == [f"no TFLite file: it needs {INSTALL} ({wanted} not installed)"]
    assert manifest["options"]["formats"] == ["onnx"]
    models = {path.name for path in (tmp_path / "pack").rglob("*") if path.suffix in (".onnx", ".tflite")}
    assert models == {"model.onnx", "fp32.onnx", "int8.onnx"}


def test_exploring_says_it_too(bare: dict[str, str], model: Path, data: Path) -> None:
    done = run("build", model, "--target", "rpi4", "--data", data, "--explore", "--json", env=bare)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert {plan["format"] for plan in found["plans"]} == {"onnx"}
    assert [warning for warning in found["warnings"] if INSTALL in warning]


@pytest.mark.parametrize("formats", ["tflite", "onnx,tflite"])
def test_a_format_that_was_asked_for_is_an_error_before_any_work(
    bare: dict[str, str], model: Path, tmp_path: Path, formats: str
) -> None:
    out = tmp_path / "pack"
    done = run("build", model, "--target", "rpi4", "--formats", formats, "--out", out, env=bare)
    assert_fails(done, 2, ["TFLite files need .*torch, litert-torch.*: not installed"])
    assert INSTALL in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [("build", "--target", "rpi4"), ("inspect",)])
@pytest.mark.parametrize("spec", ["net.pt2", "net.py:recipe"])
def test_torch_models_say_what_they_need(
    bare: dict[str, str], tmp_path: Path, command: tuple[str, ...], spec: str
) -> None:
    (tmp_path / "net.pt2").write_bytes(b"program")
    (tmp_path / "net.py").write_text("import torch\n\ndef recipe():\n    pass\n")
    done = run(command[0], tmp_path / spec, *command[1:], env=bare)
    assert_fails(done, 2, ["torch models need torch: not installed"])
    assert "pip install '.[torch]'" in done.err
