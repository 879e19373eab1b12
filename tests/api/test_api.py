"""What a program calls: models, samples and results as Python has them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import onnx
import pytest
import torch

import edgepack as ep
from edgepack.api.build import BuildKeywords, parsed
from edgepack.api.given import named_model, named_samples
from edgepack.api.progress import heard
from edgepack.backends.onnx.session import session
from edgepack.metrics.values import sqnr_db
from edgepack.sources import model_name
from tests.e2e.e2e_models import mlp, points
from tests.manifests import whole
from tests.report.test_build import MANIFEST

QUICK: dict[str, Any] = {"max_drop": 1, "formats": "onnx", "progress": False, "baseline": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    return onnx.load(mlp(tmp_path_factory.mktemp("api") / "points.onnx"))


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    x, y = points(900, 1)
    return {"x": x, "y": y}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory, model: onnx.ModelProto, data: dict[str, np.ndarray]) -> ep.Pack:
    return ep.build(model, "rpi4", data=data, out=tmp_path_factory.mktemp("pack") / "points", **QUICK)


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    heavy = ("numpy", "onnx", "onnxruntime", "torch", "rich", "typer", "pydantic")
    code = f"import sys, edgepack; edgepack.__dir__(); print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_name_is_there_and_no_other() -> None:
    assert set(ep.__all__) <= set(dir(ep))
    for name in ep.__all__:
        assert getattr(ep, name).__name__.rpartition(".")[2] == name
    with pytest.raises(AttributeError, match="no attribute 'bulid'"):
        _ = ep.bulid


def test_a_pack_is_typed_and_shown(pack: ep.Pack, data: dict[str, np.ndarray]) -> None:
    assert list(pack) == ["onnx"]
    file = pack["onnx"]
    assert file.path.stat().st_size == file.size_bytes
    assert file.drop is not None
    assert file.drop.bound <= 1
    assert [layer.layer for layer in file.layers] == ["w1", "w2", "w3"]
    with pytest.raises(KeyError):
        _ = pack["tflite"]
    assert file.score is not None
    assert pack.baseline("fp32", "onnx") is None, "it was built without"
    assert pack.example_inputs is not None
    assert set(np.load(pack.example_inputs)) == {"x"}
    again = ep.open_pack(pack.path)
    assert again.manifest == pack.manifest
    assert again.warnings == pack.warnings
    shown = pack._repr_html_()
    assert shown.count("<table>") == shown.count("</table>") >= 2
    assert "<td" in shown
    assert "model.onnx" in pack.to_markdown()


def test_baselines_are_there_to_compare_with(pack: ep.Pack, tmp_path: Path) -> None:
    manifest = whole(MANIFEST)
    (tmp_path / "baseline").mkdir()
    shutil.copyfile(pack["onnx"].path, tmp_path / "baseline" / "fp32.onnx")
    dense = ep.Pack(tmp_path, manifest).baseline("fp32", "onnx")
    assert dense is not None
    assert (dense.scheme, dense.path.name) == ("fp32", "fp32.onnx")
    assert (dense.size_bytes, dense.score) == (1_630_000, 98.0)
    assert ep.Pack(tmp_path, manifest).baseline("int8", "onnx") is None, "it is not in the folder"


def test_names_from_outside_are_escaped(pack: ep.Pack) -> None:
    strange = ep.Pack(Path("<script>alert(1)</script>"), pack.manifest)
    assert "<script>" not in strange._repr_html_()


def test_samples_one_after_the_other_are_the_same_samples(
    tmp_path: Path, model: onnx.ModelProto, data: dict[str, np.ndarray], pack: ep.Pack
) -> None:
    rows = ({"x": x, "y": y} for x, y in zip(data["x"], data["y"], strict=True))
    streamed = ep.build(model, "rpi4", data=rows, out=tmp_path / "pack", **QUICK)
    assert streamed["onnx"].path.read_bytes() == pack["onnx"].path.read_bytes()


def test_what_the_command_line_refuses_is_refused(model: onnx.ModelProto, data: dict[str, np.ndarray]) -> None:
    with pytest.raises(ep.errors.UsageError, match="max_dorp: no such option"):
        ep.build(model, "rpi4", data=data, max_dorp=1)  # type: ignore[call-arg]
    with pytest.raises(ep.errors.TargetsError, match="unknown target"):
        ep.build(model, "rpi44", data=data, progress=False)
    with pytest.raises(ep.errors.DataError, match="numbers were expected"):
        ep.build(model, "rpi4", data={"x": np.array([object()])}, progress=False)
    with pytest.raises(ep.errors.DataError, match=r"^data: found arrays \['wrong'\], the model's inputs are \['x'\]"):
        ep.build(model, "rpi4", data={"wrong": data["x"]}, progress=False)
    with pytest.raises(ep.errors.DataError, match="found int, samples were expected"):
        ep.build(model, "rpi4", data=3, progress=False)  # type: ignore[arg-type]
    with pytest.raises(ep.errors.PackError, match="no such folder"):
        ep.open_pack("nowhere")
    with pytest.raises(ep.errors.UsageError, match="a share of a layer's weights"):
        ep.compress(model, 1.5)


def test_words_are_read_as_on_the_command_line() -> None:
    words = {
        "max_size": "2MB",
        "max_latency": "5ms",
        "time_limit": "2min",
        "formats": "tflite,onnx",
        "out": "dist/a",
        "max_drop": 0.1,
    }
    assert parsed(words) == {
        "max_size_bytes": 2_000_000,
        "max_latency_s": 0.005,
        "time_limit_s": 120.0,
        "formats": ("onnx", "tflite"),
        "out": Path("dist/a"),
        "max_drop": 0.1,
    }
    assert parsed({"formats": ["onnx"]}) == {"formats": ("onnx",)}
    (given,) = parsed({"inputs": {"x": (1, 64)}})["inputs"]
    assert (given.name, given.shape) == ("x", (1, 64))


def test_every_option_of_a_build_can_be_said() -> None:
    given, words = {"model", "target", "data"}, dict.fromkeys(get_type_hints(BuildKeywords), "1")
    plain = parsed({**words, "inputs": {}, "distill": "1epochs", "formats": "onnx"})
    assert {each.name for each in fields(ep.BuildOptions)} == given | set(plain)


def perceptron() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 8))


def test_onnx_in_onnx_out(model: onnx.ModelProto, data: dict[str, np.ndarray], tmp_path: Path) -> None:
    small = ep.compress(model, 0.5, data=data, progress=False)
    assert isinstance(small, onnx.ModelProto)
    onnx.checker.check_model(small)
    assert small.ByteSize() < 0.8 * model.ByteSize()
    answers = []
    for name, one in (("a", model), ("b", small)):
        onnx.save(one, tmp_path / f"{name}.onnx")
        opened = session(tmp_path / f"{name}.onnx", exact=True)
        answers.append(np.vstack([opened.run(None, {"x": x[None]})[0] for x in data["x"][:64]]))
    assert sqnr_db(answers[1], answers[0]) > 15


def test_torch_in_torch_out(data: dict[str, np.ndarray]) -> None:
    model, x = perceptron(), torch.from_numpy(data["x"][:1])
    small = ep.compress(model, 20, data={"input": data["x"]}, example_inputs=(x,), progress=False)
    assert isinstance(small, torch.fx.GraphModule)
    shapes = sorted(tuple(p.shape) for p in small.parameters() if p.ndim == 2)
    assert shapes == [(8, 96), (20, 64), (96, 20)], "8 × 96 has fewer weights as it is"
    whole = ep.compress(model, 38, data={"input": data["x"]}, example_inputs=(x,), progress=False)
    with torch.no_grad():
        errors = [float((one(x) - model(x)).norm() / model(x).norm()) for one in (small, whole)]
    assert errors[1] < errors[0] < 1


def test_a_torch_model_is_called_after_its_class(data: dict[str, np.ndarray]) -> None:
    class WakeWord(torch.nn.Sequential):
        pass

    model = WakeWord(torch.nn.Linear(64, 48))
    with named_model(model, (torch.zeros(1, 64),)) as spec:
        assert model_name(spec) == "wakeword"
    with pytest.raises(ep.errors.ModelError, match="how it is called is not known"), named_model(model):
        pass
    with pytest.raises(ep.errors.ModelError, match="found int"), named_model(3):  # type: ignore[arg-type]
        pass
    found = ep.inspect(ep.Recipe(model, (torch.zeros(1, 64),), {"x": data["x"]}), progress=False)
    assert [(layer.out_features, layer.in_features) for layer in found.layers] == [(48, 64)]
    assert "48×64" in found._repr_html_()


def test_of_a_file_on_a_target_every_operator_is_shown(model: onnx.ModelProto, tmp_path: Path) -> None:
    found = ep.inspect(model, target="rpi4", progress=False)
    assert isinstance(found, ep.OperatorInspection)
    assert [one.op for one in found.operators] == ["FusedGemm", "FusedGemm", "Gemm"]
    assert all(one.latency_s for one in found.operators)
    assert found.slow == ()
    onnx.save(model, tmp_path / "points.onnx")
    again = ep.inspect(tmp_path / "points.onnx", target=ep.load_target("rpi4"), progress=False)
    assert again.operators == found.operators
    assert "Gemm" in again._repr_html_()
    with pytest.raises(ep.errors.UsageError, match="shows the operators of a model file: found Sequential"):
        ep.inspect(perceptron(), target="rpi4", progress=False)  # type: ignore[call-overload]
    with pytest.raises(ep.errors.TargetsError, match="unknown target"):
        ep.inspect(model, target="rpi44", progress=False)


def test_nothing_given_stays_behind(model: onnx.ModelProto, data: dict[str, np.ndarray]) -> None:
    with named_model(model) as spec, named_samples(data) as samples:
        assert samples is not None
        kept = [Path(spec), samples]
        assert all(path.is_file() for path in kept)
    assert not any(path.exists() for path in kept)


def test_progress_is_told() -> None:
    told: list[str] = []

    def listen(stage: str, done: int = 0, total: int = 0) -> None:
        told.append(stage)

    with heard(listen) as progress:
        progress("open model")
    with heard(True) as progress:
        progress("a bar where somebody looks on: nobody does here")
    assert told == ["open model"]


def test_a_pack_that_was_never_measured_shows_its_files(pack: ep.Pack) -> None:
    compared = ep.compare([pack])
    assert compared.rows == ()
    assert [row.size_bytes for row in compared.unmeasured] == [pack["onnx"].size_bytes]
    assert "not measured yet" in compared.to_markdown()
    with pytest.raises(ep.errors.UsageError, match="leave host and serial out"):
        ep.bench(pack, host="pi@nowhere", emulate=True)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook as IPython says it is one."""

    class ZMQInteractiveShell:
        pass

    class IPython:
        @staticmethod
        def get_ipython() -> object:
            return ZMQInteractiveShell()

    monkeypatch.setitem(sys.modules, "IPython", IPython)


@pytest.mark.usefixtures("shell")
def test_a_notebook_has_a_bar_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with heard(True) as progress:
        progress("decompose layers", 1, 3)
        for done in range(1000):
            progress("calibrate", done, 1000)
    written = capsys.readouterr().err
    assert "decompose layers" in written
    assert 1 <= written.count("calibrate") < 500, "a line for every step would fill the notebook"
    assert "Warning" not in written


def test_a_list_of_targets_gives_a_pack_for_each(
    model: onnx.ModelProto, data: dict[str, np.ndarray], pack: ep.Pack, tmp_path: Path
) -> None:
    packs = ep.build(model, ["rpi4", "n100"], data=data, out=tmp_path, **QUICK)
    assert list(packs) == ["rpi4", "n100"]
    assert {one.path.parent for one in packs.values()} == {tmp_path}
    assert packs["rpi4"]["onnx"].path.read_bytes() == pack["onnx"].path.read_bytes(), "as a build for it alone"
    with pytest.raises(KeyError):
        _ = packs["rpi5"]
    assert "serves" in packs.to_markdown()
    packs.to_html(tmp_path / "packs.html")
    assert "n100" in (tmp_path / "packs.html").read_text()
    assert list(ep.build(model, ("rpi4",), data=data, out=tmp_path, **QUICK)) == ["rpi4"]
    with pytest.raises(ep.errors.BudgetError, match="the budget is not met on 2 of 2 targets"):
        ep.build(model, ["rpi4", "n100"], data=data, out=tmp_path, max_size=100, **QUICK)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("rpi4,rpi5", "several targets in one name"),
        (["rpi4", "rpi6"], 'unknown target "rpi6"'),
        (["rpi4", "rpi4"], "rpi4 is named twice"),
        ([], "empty list of targets"),
    ],
)
def test_targets_that_are_none(target: Any, says: str, model: onnx.ModelProto) -> None:
    with pytest.raises(ep.errors.EdgepackError, match=says):
        ep.build(model, target, **QUICK)


def test_a_plan_is_picked_for_one_target(model: onnx.ModelProto) -> None:
    with pytest.raises(ep.errors.UsageError, match="pick is for one target"):
        ep.build(model, ["rpi4", "rpi5"], pick=(1,), **QUICK)
