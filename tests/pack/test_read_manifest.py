"""What `inspect PACK` shows of a manifest, and manifests that a stranger wrote."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from edgepack.cli import app
from edgepack.errors import PackError
from edgepack.pack.manifest import MAX_LAYERS, parse_manifest, read_manifest
from edgepack.report.build import build_report
from edgepack.report.inspect import pack_report
from edgepack.report.render import csv, markdown
from edgepack.report.render import json as json_render
from tests.manifests import document
from tests.report.shown import terminal_text

MANIFEST: dict[str, Any] = document(
    {
        "files": {
            "model.onnx": {
                "scheme": "int8-dynamic",
                "size_bytes": 60_000,
                "layers": [
                    {
                        "layer": "fc1",
                        "out_features": 512,
                        "in_features": 784,
                        "rank": 32,
                        "break_even_rank": 309,
                        "scheme": "int8-dynamic",
                        "reason": "rank 32 int8-dynamic: 6.1× faster",
                        "predicted": {"size_bytes": 50_000, "latency_s": 1e-5, "loss": 0.01},
                        "lost_shares": {"truncation": 0.0082, "rounding": 7.3e-06, "latent": 1e-15},
                    }
                ],
            },
            "baseline/int8.onnx": {"scheme": "int8-dynamic", "size_bytes": 400_000, "quantizer": "onnxruntime"},
        },
    }
)
LAYER: dict[str, Any] = MANIFEST["files"]["model.onnx"]["layers"][0]


def changed(*path: str | int, value: Any) -> dict[str, Any]:
    """The manifest with one value in another one's place; `...` takes it out."""
    manifest = copy.deepcopy(MANIFEST)
    place: Any = manifest
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return manifest


def written(folder: Path, manifest: Any) -> Path:
    (folder / "manifest.json").write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))
    return folder


def test_a_good_one_passes(tmp_path: Path) -> None:
    assert read_manifest(written(tmp_path, MANIFEST)).record() == MANIFEST


@pytest.mark.parametrize(
    "manifest",
    [
        changed("files", "model.onnx", "layers", 0, "rank", value=None),
        changed("files", "model.onnx", "layers", 0, "scheme", value=None),
        changed("files", "model.onnx", "layers", 0, "predicted", value=None),
        changed("files", "model.onnx", "layers", 0, "more", value=[1]),
        changed("files", "model.onnx", "layers", value=[]),
        changed("files", value={}),
        changed("loss_weighted_by", value="output gradients"),
    ],
)
def test_others_that_are_fit_to_be_shown(tmp_path: Path, manifest: dict[str, Any]) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(written(tmp_path, manifest))])
    assert (shown.exit_code, shown.stderr) == (0, "")


ONNX = ("files", "model.onnx")
FIRST = (*ONNX, "layers", 0)
HUGE = 10**400
STRANGE: dict[str, Any] = {
    "no model": changed("model", value=...),
    "model is a list": changed("model", value=["x"]),
    "name is a number": changed("model", "name", value=3),
    "name with an escape": changed("model", "name", value="\x1b[31mred"),
    "name with a C1 control": changed("target", "name", value="rpi4\x9b31m"),
    "name with a new line": changed("model", "name", value="a\n"),
    "name that turns the line around": changed("model", "name", value="abc\u202edef"),
    "empty name": changed("model", "name", value=""),
    "long name": changed("model", "name", value="x" * 3000),
    "lone surrogate": changed("model", "name", value="\ud800"),
    "no target": changed("target", value=...),
    "unknown weighting": changed("loss_weighted_by", value="stars"),
    "no weighting": changed("loss_weighted_by", value=...),
    "no files": changed("files", value=...),
    "files is a list": changed("files", value=[]),
    "file is a text": changed(*ONNX, value="x"),
    "file name with an escape": changed("files", "\x1b]0;x\x07", value=MANIFEST["files"]["model.onnx"]),
    "no scheme": changed(*ONNX, "scheme", value=...),
    "not said what chose it": changed(*ONNX, "scheme_chosen_by", value=...),
    "size is a text": changed(*ONNX, "size_bytes", value="60000"),
    "negative size": changed(*ONNX, "size_bytes", value=-1),
    "size beyond any disk": changed(*ONNX, "size_bytes", value=HUGE),
    "layers is a text": changed(*ONNX, "layers", value="fc1"),
    "layers is null": changed(*ONNX, "layers", value=None),
    "layer is null": changed(*FIRST, value=None),
    "too many layers": changed(*ONNX, "layers", value=[LAYER] * (MAX_LAYERS + 1)),
    "no layer name": changed(*FIRST, "layer", value=...),
    "layer name with a bell": changed(*FIRST, "layer", value="fc\x07"),
    "zero outputs": changed(*FIRST, "out_features", value=0),
    "outputs as a fraction": changed(*FIRST, "out_features", value=2.5),
    "outputs are true": changed(*FIRST, "in_features", value=True),
    "inputs beyond any memory": changed(*FIRST, "in_features", value=HUGE),
    "rank 0": changed(*FIRST, "rank", value=0),
    "rank beyond any layer": changed(*FIRST, "rank", value=HUGE),
    "no rank": changed(*FIRST, "rank", value=...),
    "no break-even rank": changed(*FIRST, "break_even_rank", value=...),
    "no weights": changed(*FIRST, "weight_parameters", value=...),
    "weights below zero": changed(*FIRST, "weight_parameters", value=-1),
    "no reason": changed(*FIRST, "reason", value=...),
    "reason with an escape": changed(*FIRST, "reason", value="\x1b[2J"),
    "reason with a new line": changed(*FIRST, "reason", value="a\nb"),
    "predicted is a list": changed(*FIRST, "predicted", value=[]),
    "no structure": changed(*FIRST, "structure", value=...),
    "shares without rounding": changed(*FIRST, "lost_shares", "rounding", value=...),
    "metric is a number": changed("metric", value=3),
    "metric's name with an escape": changed("metric", "name", value="\x1b[2J"),
    "score is infinite": changed(*ONNX, "metric", value=float("inf")),
    "proofs are a list": changed(*ONNX, "proofs", value=[]),
    "warnings are a text": changed("warnings", value="hear, hear"),
    "no data": changed("data", value=...),
    "folds without a table": changed("cross_validation", value={"percent": 5}),
    "no latency": changed(*FIRST, "predicted", value={"size_bytes": 1, "loss": 0.0}),
    "latency is nan": changed(*FIRST, "predicted", "latency_s", value=float("nan")),
    "latency is infinite": changed(*FIRST, "predicted", "latency_s", value=float("inf")),
    "latency is negative": changed(*FIRST, "predicted", "latency_s", value=-1.0),
    "loss is a text": changed(*FIRST, "predicted", "loss", value="0.1"),
    "loss as a whole number beyond floats": changed(*FIRST, "predicted", "loss", value=HUGE),
}


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
@pytest.mark.parametrize("name", STRANGE)
def test_manifests_of_strangers(tmp_path: Path, name: str, options: list[str]) -> None:
    """Exit 3, one clear line, no traceback, and nothing that a terminal would act on."""
    folder = written(tmp_path, STRANGE[name])
    with pytest.raises(PackError, match="not one of this edgepack"):
        read_manifest(folder)
    shown = CliRunner().invoke(app, ["inspect", str(folder), *options])
    assert shown.exit_code == 3
    said = shown.stdout + shown.stderr
    assert "internal error" not in said
    assert "Traceback" not in said
    assert len(said) < 1000 + 3 * len(str(folder))
    assert all(character.isprintable() or character == "\n" for character in said)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[1]", "schema version None"),
        ('{"schema_version": 99}', "schema version 99"),
        ('{"schema_version": 1}', "not one of this edgepack"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_what_is_no_manifest_at_all(tmp_path: Path, content: str, says: str) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(written(tmp_path, content))])
    assert shown.exit_code == 3
    assert says in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_folder_that_is_no_pack(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path)])
    assert shown.exit_code == 3
    assert shown.stderr.startswith(f"error: {tmp_path}: not a pack, there is no manifest.json")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
PLACES: list[tuple[str | int, ...]] = [
    *((key,) for key in MANIFEST),
    ("model", "name"),
    *((name, key) for name in ("options", "data", "metric") for key in MANIFEST[name]),
    ONNX,
    *((*ONNX, key) for key in MANIFEST["files"]["model.onnx"]),
    FIRST,
    *((*FIRST, key) for key in LAYER),
    *((*FIRST, "predicted", key) for key in LAYER["predicted"]),
    *((*FIRST, "lost_shares", key) for key in LAYER["lost_shares"]),
]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), JSON_VALUES)
def test_any_value_anywhere_is_shown_or_refused(place: tuple[str | int, ...], value: Any) -> None:
    """Whatever passes can be rendered."""
    manifest: Callable[..., dict[str, Any]] = changed
    try:
        read = parse_manifest(manifest(*place, value=value), Path("p"))
    except PackError:
        return
    for report in (pack_report(Path("p"), read), build_report(Path("p"), read)):
        for renderer in (markdown, csv, json_render):
            assert isinstance(renderer.render(report), str)
        assert terminal_text(report)
