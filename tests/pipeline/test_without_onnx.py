"""A torch model that is written as TFLite alone: no ONNX file is made of it, and nothing of ONNX is asked."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.backends import registry
from edgepack.backends.onnx import session
from edgepack.errors import SOURCE, BudgetError, UsageError
from edgepack.model.scheme import Format
from edgepack.natives.onnx import OnnxNative
from edgepack.pipeline.build import build
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.prepare import prepared
from edgepack.sources import open_model, torch
from edgepack.targets.file import get_target
from edgepack.workspace import Cache, silent

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

RECIPE = """
import numpy as np
import torch
from torch import nn
from edgepack.model.types import Recipe


def recipe():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 6))
    x = torch.randn(480, 48)
    with torch.no_grad():
        model[4].bias -= model(x).mean(0)
        y = model(x).argmax(1)
    return Recipe(model, (torch.zeros(1, 48),), {"input": x.numpy(), "y": y.numpy()}, evaluate)


def evaluate(predict):
    return float(predict(np.ones((3, 48), np.float32)).shape == (3, 6))
"""


@pytest.fixture
def spec(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(RECIPE)
    return f"{tmp_path / 'net.py'}:recipe"


@pytest.fixture
def no_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all temporary files, where neither the exporter nor ONNX Runtime can be used."""
    found = registry.find_spec

    def fails(*_: Any, **__: Any) -> Any:
        raise AssertionError("something of ONNX was asked")

    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr(torch, "program_to_onnx", fails)
    monkeypatch.setattr(session, "session", fails)
    monkeypatch.setattr(OnnxNative, "session", fails)
    monkeypatch.setattr(OnnxNative, "observe", fails)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def asked(spec: str, out: Path, **changes: Any) -> BuildOptions:
    chosen: dict[str, Any] = {"formats": ("tflite",), "rank": 8, "precision": "int8", **changes}
    return BuildOptions(spec, get_target("rpi4"), out=out, **chosen)


@pytest.mark.usefixtures("no_onnx")
@pytest.mark.parametrize("changes", [{"refit": True}, {"rank": "cv"}, {"method": "kmeans", "rank": 0.25}], ids=str)
def test_a_build(spec: str, tmp_path: Path, changes: dict[str, Any]) -> None:
    out = tmp_path / "pack"
    build(asked(spec, out, **changes), cache=Cache(tmp_path / "cache"))
    manifest = json.loads((out / "manifest.json").read_text())
    entry = manifest["files"]["model.tflite"]
    assert all(proof["passed"] for proof in entry["proofs"].values())
    assert [layer["layer"] for layer in entry["layers"]] == ["0.weight", "2.weight", "4.weight"]
    assert entry["validation"]["drop"] is not None
    assert manifest["files"]["baseline/fp32.tflite"]["validation"]["drop"] == 0
    assert not list(tmp_path.rglob("*.onnx")), "in the pack, in the cache or among temporary files"
    assert {path.suffix for path in out.rglob("*") if path.is_file()} >= {".tflite"}


def test_while_it_works_no_onnx_file_is_there(spec: str, no_onnx: Path, tmp_path: Path) -> None:
    with prepared(asked(spec, tmp_path / "pack"), Cache(tmp_path / "cache"), silent) as ready:
        assert ready.opened.native == "torch"
        assert ready.opened.files == {}
        assert set(ready.files) == {"tflite"}
        assert [path.name for path in no_onnx.rglob("dense.*")]
        assert not list(no_onnx.rglob("*.onnx"))
        assert not list(no_onnx.rglob("*.onnx.data"))


@pytest.mark.usefixtures("no_onnx")
def test_the_layers_to_blame_are_found_in_the_format_itself(spec: str, tmp_path: Path) -> None:
    with pytest.raises(
        BudgetError, match=r"best tflite file .* most to blame: [024]\.weight .*alone it drops"
    ) as caught:
        build(asked(spec, tmp_path / "pack", rank=1, max_drop=0.1), cache=Cache(tmp_path / "cache"))
    assert caught.value.exit_code == 5
    assert (tmp_path / "pack" / "model.tflite").is_file()


def test_without_the_exporter_the_default_is_tflite_alone(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"torch", "litert_torch", "litert_quantizer", "ai_edge_litert"}
    monkeypatch.setattr(registry, "find_spec", lambda name: object() if name in there else None)
    assert asked(spec, tmp_path, formats=None).chosen_formats == ("tflite",)
    assert asked(spec, tmp_path, formats=None).unwritable == {"onnx": ("onnxscript",)}
    with pytest.raises(UsageError, match="ONNX files need onnxscript: not installed") as caught:
        asked(spec, tmp_path, formats=("onnx",))
    assert "pip install '.[torch]'" in (caught.value.hint or "")
    assert open_model(spec, tmp_path).native == "torch"
    there -= {"litert_torch"}
    nothing = asked(spec, tmp_path / "pack", formats=None)
    with (
        pytest.raises(UsageError, match="no file of it can be written here") as caught,
        prepared(nothing, Cache(tmp_path / "cache"), silent),
    ):
        pass
    assert "onnxscript, litert-torch not installed" in caught.value.message
    assert caught.value.hint == f"pip install '.[torch]' or pip install '.[tflite]' {SOURCE}"


@pytest.mark.parametrize(
    ("formats", "native"), [(("onnx",), "onnx"), (("onnx", "tflite"), "onnx"), (("tflite",), "torch")]
)
def test_onnx_is_the_truth_where_it_is_written(
    spec: str, formats: tuple[Format, ...], native: str, tmp_path: Path
) -> None:
    opened = open_model(spec, tmp_path, formats)
    assert opened.native == native
    assert np.array_equal(opened.layers[0].weight.shape, (64, 48))
