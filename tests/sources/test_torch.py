from __future__ import annotations

import contextlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from edgepack.errors import ModelError
from edgepack.sources.torch import ProgramFile, export_program, load_pt2, program_to_onnx, save_program
from edgepack.torchgraph import find_linears, flat_module, load_program

# torch's own deprecations, met inside its exporters.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 4)
        self.right = nn.Linear(3, 4)

    def forward(self, tokens: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.left(tokens) + self.right(scale), scale * 2


INPUTS = (torch.ones(1, 6), torch.ones(1, 3))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    save_program(export_program(Two(), INPUTS), path)
    return path


def run_onnx(path: Path, inputs: dict[str, Any]) -> list[Any]:
    return list(ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, inputs))


def test_onnx_is_deterministic_keeps_names_and_holds_no_trace_of_the_source(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = Two()
    for name in ("a", "b"):
        program_to_onnx(export_program(model, INPUTS), tmp_path / f"{name}.onnx")
    content = (tmp_path / "a.onnx").read_bytes()
    assert content == (tmp_path / "b.onnx").read_bytes()
    assert not [
        w for w in (b"pkg.torch", b'File "', b"site-packages", os.fsencode(Path(__file__).name)) if w in content
    ]
    assert capfd.readouterr() == ("", "")
    loaded = onnx.load(str(tmp_path / "a.onnx"))
    assert [value.name for value in loaded.graph.input] == ["tokens", "scale"]
    want = model(*INPUTS)
    have = run_onnx(tmp_path / "a.onnx", {"tokens": INPUTS[0].numpy(), "scale": INPUTS[1].numpy()})
    for expected, got in zip(want, have, strict=True):
        np.testing.assert_allclose(got, expected.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_batch_norm_is_folded_and_both_graphs_hold_the_same_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    model.train()
    for _ in range(3):
        model(torch.randn(4, 3, 5, 5) * 2 + 1)
    inputs = (torch.randn(1, 3, 5, 5),)
    program = export_program(model, inputs)
    program_to_onnx(program, tmp_path / "m.onnx")
    (site,) = find_linears(flat_module(program))
    weights = [onnx.numpy_helper.to_array(i) for i in onnx.load(str(tmp_path / "m.onnx")).graph.initializer]
    assert any(w.shape == (8, 3, 1, 1) and np.array_equal(w.reshape(8, 3), site.weight) for w in weights)
    (got,) = run_onnx(tmp_path / "m.onnx", {"input": inputs[0].numpy()})
    np.testing.assert_allclose(got, model(*inputs).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_frozen_transformer_layer_shows_its_four_matrices() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).requires_grad_(False)
    program = export_program(layer, (torch.randn(1, 4, 16),))
    assert sorted(s.weight.shape for s in find_linears(flat_module(program))) == [
        (16, 16),
        (16, 32),
        (32, 16),
        (48, 16),
    ]


def test_untraceable_model_is_a_model_error() -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match=r"torch\.export cannot trace Branch"):
        export_program(Branch(), (torch.ones(2),))


def test_operator_without_onnx_counterpart_is_named(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(ModelError, match="bessel_j0"):
        program_to_onnx(export_program(Odd(), (torch.ones(2),)), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_pt2_round_trip(archive: Path) -> None:
    torch.manual_seed(0)
    model = Two()
    for want, have in zip(model(*INPUTS), flat_module(load_pt2(archive))(*INPUTS), strict=True):
        torch.testing.assert_close(have, want)


def test_pt2_with_dynamic_batch_takes_the_shapes_of_its_example(tmp_path: Path) -> None:
    dynamic = {0: torch.export.Dim("batch")}
    program = torch.export.export(nn.Linear(6, 4).eval(), (torch.ones(2, 6),), dynamic_shapes=(dynamic,))
    torch.export.save(program, str(tmp_path / "m.pt2"))
    loaded = load_pt2(tmp_path / "m.pt2")
    assert not loaded.range_constraints
    assert flat_module(loaded)(torch.ones(2, 6))[0].shape == (2, 4)


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


def rewritten(
    source: Path, target: Path, change: Callable[[str, bytes], bytes | None], extra: dict[str, bytes]
) -> Path:
    """The archive with parts changed, dropped (None) or added; stored without compression, as torch wants it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        root = old.namelist()[0].split("/")[0]
        for name in old.namelist():
            content = change(name.removeprefix(f"{root}/"), old.read(name))
            if content is not None:
                new.writestr(name, content)
        for name, content in extra.items():
            new.writestr(f"{root}/{name}", content)
    return target


def in_program(edit: Callable[[Any], None]) -> Callable[[str, bytes], bytes]:
    def change(name: str, content: bytes) -> bytes:
        if name != "models/model.json":
            return content
        program = json.loads(content)
        edit(program)
        return json.dumps(program).encode()

    return change


def set_target(program: Any) -> None:
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.hub.load"


def set_guard(program: Any) -> None:
    program["guards_code"] = ["__import__('os').mkdir('x')"]


def set_size(program: Any) -> None:
    values = program["graph_module"]["graph"]["tensor_values"]
    next(iter(values.values()))["sizes"][0] = {"as_expr": {"expr_str": "__import__('os').getpid()", "hint": None}}


def set_spec(program: Any) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    signature["out_spec"] = signature["out_spec"].replace("builtins.tuple", "os.environ")


def test_guards_of_the_inputs_are_dropped_and_never_run(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    guarded = load_program(rewritten(archive, tmp_path / "guarded.pt2", in_program(set_guard), {}))
    for check in (False, True):
        found = guarded.module(check_guards=check)(*INPUTS)
    np.testing.assert_array_equal(found[1].numpy(), 2 * INPUTS[1].numpy())
    save_program(load_pt2(tmp_path / "guarded.pt2"), tmp_path / "again.pt2")
    assert not (tmp_path / "x").exists()
    assert b"mkdir" not in (tmp_path / "again.pt2").read_bytes()


def test_a_program_of_open_lengths_keeps_those_of_its_example(tmp_path: Path) -> None:
    open_ = torch.export.Dim.AUTO
    shapes = {"tokens": {0: open_}, "scale": {0: open_}}
    program = torch.export.export(Two(), (torch.ones(4, 6), torch.ones(4, 3)), dynamic_shapes=shapes)
    save_program(program, tmp_path / "open.pt2")
    assert 'guards_code": ["' in zipfile.ZipFile(tmp_path / "open.pt2").read("archive/models/model.json").decode()
    assert [tuple(one.shape) for one in load_pt2(tmp_path / "open.pt2").example_inputs[0]] == [(4, 6), (4, 3)]


def test_a_batch_that_is_open_is_known_of_the_model(tmp_path: Path) -> None:
    open_ = torch.export.Dim.AUTO
    shapes = {"tokens": {0: open_}, "scale": {0: open_}}
    program = torch.export.export(Two(), (torch.ones(4, 6), torch.ones(4, 3)), dynamic_shapes=shapes)
    save_program(program, tmp_path / "open.pt2")
    save_program(export_program(Two(), INPUTS), tmp_path / "fixed.pt2")
    names = [
        ProgramFile().open(str(tmp_path / name), "m", tmp_path, ["tflite"]).open_batch
        for name in ("open.pt2", "fixed.pt2")
    ]
    assert names == [{"tokens", "scale"}, set()]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_target, "operator 'torch.hub.load'"),
        (set_size, "is not arithmetic"),
        (set_spec, "of type 'os.environ'"),
    ],
)
def test_code_in_the_program_is_refused(archive: Path, tmp_path: Path, edit: Any, message: str) -> None:
    bad = rewritten(archive, tmp_path / "bad.pt2", in_program(edit), {})
    with pytest.raises(ModelError, match="would run code") as caught:
        load_pt2(bad)
    assert message in caught.value.message


def renamed(old: str, new: str) -> Callable[[Any], None]:
    """Give an input, a result, a parameter or an argument another name, wherever the program has it."""

    def edit(program: Any) -> None:
        text = json.dumps(program)
        # A treespec is JSON inside of a string.
        for quote in ('"', '\\"', '\\\\\\"'):
            content = json.dumps(new)[1:-1]
            for _ in range((len(quote) + 1).bit_length() - 2):
                content = json.dumps(content)[1:-1]
            text = text.replace(f"{quote}{old}{quote}", f"{quote}{content}{quote}")
        changed = json.loads(text)
        assert changed != program
        program.clear()
        program.update(changed)

    return edit


class Unused(nn.Module):
    """The last input is not used, so that only its declaration shows in source that is made of the program."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 4)

    def forward(self, tokens: torch.Tensor, *, extra: torch.Tensor) -> torch.Tensor:
        return self.left(tokens) + 1


@pytest.fixture(scope="module")
def keywords(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "keywords.pt2"
    program = torch.export.export(Unused().eval(), (torch.ones(1, 6),), {"extra": torch.ones(1)}, strict=False)
    torch.export.save(program, str(path))
    return path


CALL = "__import__('os').mkdir('{marker}')"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("extra", "extra=" + CALL),
        ("extra", "extra:" + CALL),
        ("tokens", "tokens, *, a=" + CALL),
        ("linear", "linear=" + CALL + ";x"),
        ("linear", "globals()[" + CALL + "]"),
        ("linear", "x\n    " + CALL),
        ("add", "self.forward"),
        ("left.weight", 'left.weight")+' + CALL + "#"),
        ("left.weight", "left.weight\\"),
        ("left.weight", "left.__class__"),
        ("torch.ops.aten.linear.default", "torch.ops.aten.__class__.__getattribute__"),
        ("torch.ops.aten.linear.default", "torch.ops.aten.linear.__init__"),
        ("torch.ops.aten.linear.default", "torch.ops.aten.linear.overloads"),
        ("torch.ops.aten.linear.default", "math.__loader__"),
    ],
)
def test_names_with_code_are_refused_and_not_run(keywords: Path, tmp_path: Path, old: str, new: str) -> None:
    marker = tmp_path / "ran"
    bad = rewritten(keywords, tmp_path / "bad.pt2", in_program(renamed(old, new.replace("{marker}", str(marker)))), {})
    with pytest.raises(ModelError, match="would run code"):
        load_pt2(bad)
    assert not marker.exists()


def test_torch_runs_what_a_name_says(keywords: Path, tmp_path: Path) -> None:
    """Why names are looked at: without that an input's name is enough."""
    marker = tmp_path / "ran"
    change = in_program(renamed("extra", "extra=" + CALL.replace("{marker}", str(marker))))
    bad = rewritten(keywords, tmp_path / "bad.pt2", change, {})
    with contextlib.suppress(Exception):
        torch.export.load(str(bad))
    assert marker.exists()


def test_unusual_names_are_no_code(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.by_name = nn.ModuleDict(
                {"a-b/c:d [1](2, 3)": nn.Linear(6, 6), "0": nn.BatchNorm1d(6), "größe": nn.ReLU()}
            )

        def forward(self, x: torch.Tensor, table: dict[str, torch.Tensor], *, größe: torch.Tensor) -> Any:
            for layer in self.by_name.values():
                x = layer(x)
            product = torch.einsum("ab,cb->ac", x, table["a key"])
            return {"the product": torch.cond(x.sum() > 0, lambda a: a + 1, lambda a: a - 1, (product,)), "y": größe}

    rest = {"größe": torch.ones(1)}
    inputs = (torch.ones(2, 6), {"a key": torch.ones(2, 6)})
    program = torch.export.export(Odd().eval(), inputs, rest, strict=False)
    torch.export.save(program, str(tmp_path / "odd.pt2"))
    want, have = (p.module()(*inputs, **rest) for p in (program, load_program(tmp_path / "odd.pt2")))
    torch.testing.assert_close(have, want)


def test_pickled_sample_inputs_are_refused_and_not_run(archive: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save(Bomb(marker), tmp_path / "bomb.pt")
    bomb = (tmp_path / "bomb.pt").read_bytes()
    bad = rewritten(archive, tmp_path / "bad.pt2", lambda n, c: bomb if n.startswith("data/sample") else c, {})
    with pytest.raises(ModelError, match="sample inputs hold more than tensors"):
        load_pt2(bad)
    assert not marker.exists()
    torch.export.load(str(archive))  # the archive itself is good
    with pytest.raises(Exception):  # noqa: B017, PT011 - what torch does with it: it runs the bomb, then fails
        torch.export.load(str(bad))
    assert marker.exists()


def test_pickled_constants_and_weights_are_refused_and_not_run(archive: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    meta = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    config = json.dumps({"config": {"c": meta}}).encode()
    for part in ("constants", "weights"):
        where = f"data/{part}/model_{part}_config.json"

        def change(name: str, content: bytes, where: str = where) -> bytes:
            return config if name == where else content

        bad = rewritten(archive, tmp_path / f"{part}.pt2", change, {})
        with pytest.raises(ModelError, match="stored as a pickle"):
            load_pt2(bad)
        extra = {f"data/{part}/opaque_obj_0": pickle.dumps(Bomb(marker))}
        with pytest.raises(ModelError, match="unexpected part"):
            load_pt2(rewritten(archive, tmp_path / f"{part}2.pt2", change, extra))
    assert not marker.exists()


def test_compiled_libraries_are_refused(archive: Path, tmp_path: Path) -> None:
    bad = rewritten(archive, tmp_path / "bad.pt2", lambda _, c: c, {"data/aotinductor/model/x.so": b"\x7fELF"})
    with pytest.raises(ModelError, match="unexpected part"):
        load_pt2(bad)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_truncated_archives(archive: Path, tmp_path: Path, share: float) -> None:
    content = archive.read_bytes()
    (tmp_path / "cut.pt2").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError):
        load_pt2(tmp_path / "cut.pt2")


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load_pt2(tmp_path / "none.pt2")
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as made:
        made.writestr("other/readme", "hello")
    with pytest.raises(ModelError, match=r"not a \.pt2 archive"):
        load_pt2(tmp_path / "other.pt2")
    (tmp_path / "text.pt2").write_text("not a model" * 100)
    with pytest.raises(ModelError, match=r"not a \.pt2 archive"):
        load_pt2(tmp_path / "text.pt2")
