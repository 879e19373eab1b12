"""What a manifest says of trials, files and where their figures come from."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgepack.backends.onnx.schemes import FP32, NBITS4
from edgepack.metrics.drop import Drop
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.model.structure import Structure
from edgepack.model.types import LayerPlan
from edgepack.pack.manifest import DropEntry, LayerEntry, read_manifest
from edgepack.pipeline.build import build
from edgepack.pipeline.manifest import Results, chosen_by, make_manifest
from edgepack.pipeline.prepare import Prepared
from edgepack.pipeline.search import PlanTrial
from edgepack.workspace import Cache, file_digest
from tests.linear_plans import linear_plan
from tests.pipeline.small_builds import options


def layer(name: str, rank: int | None, scheme: Scheme) -> LayerPlan:
    return linear_plan(name, 10, 20, rank, 6, 0.0, "a reason", scheme=scheme)


def record_of(ready: Prepared, plan_trials: Sequence[PlanTrial] = ()) -> dict[str, Any]:
    return make_manifest(ready, plan_trials, Results({}, {}, True, ())).record()


def test_a_probe_carries_its_figures(ready: Prepared) -> None:
    drop = Drop("accuracy", 95.0, 94.5, 0.5, 0.9, 0.25, 256)
    mixed = PlanTrial(
        "onnx", FileScheme.of(FP32), (layer("a", 3, FP32), layer("b", None, NBITS4)), drop, 0.125, 1e-5, 4321
    )
    record = record_of(ready, [mixed])
    assert record["trials"] == [
        {
            "format": "onnx",
            "scheme": "mixed",
            "size_bytes": 4321,
            "predicted_latency_s": 1e-5,
            "predicted_loss": 0.125,
            "weight_parameters": 3 * 30 + 200,
            "ranks": {"a": 3},
            "drop": {
                "metric": "accuracy",
                "dense": 95.0,
                "emitted": 94.5,
                "drop": 0.5,
                "bound": 0.9,
                "confidence": 0.9,
                "standard_error": 0.25,
                "samples": 256,
                "output": 0,
            },
        }
    ]


def test_ranks_are_all_said_where_there_are_several() -> None:
    plan = layer("a", 3, FP32)
    several = replace(plan, structure=Structure("tucker-2", (3, 4)))
    assert (LayerEntry.of(several).rank, LayerEntry.of(several).ranks) == (3, (3, 4))
    assert (LayerEntry.of(plan).rank, LayerEntry.of(plan).ranks) == (3, None)


def test_what_does_not_depend_on_a_file(ready: Prepared, classifier: Path) -> None:
    record = record_of(ready)
    assert record["cost_sources"] == {"onnx": "emulated cost table"}
    assert record["loss_weighted_by"] in ("output energy", "output gradients")
    assert record["method"] == "whitened"
    why = "labels are the classes that it scores"
    assert record["metric"] == {
        "name": "accuracy",
        "why": why,
        "validated": True,
        "outputs": [{"output": 0, "metric": "accuracy", "labelled": True, "why": why}],
    }
    assert record["model"]["source"] == classifier.name
    assert record["options"] == {
        "rank": "auto",
        "precision": "auto",
        "max_drop": 0.5,
        "formats": ["onnx"],
        "max_size_bytes": None,
        "max_memory_bytes": None,
        "max_latency_s": None,
        "pick": [],
        "distill": None,
        "refit": False,
        "keep": None,
        "only": None,
        "largest_onnx_weight_code": 127,
    }
    assert str(classifier.parent) not in json.dumps(record)


@pytest.mark.parametrize(
    ("measured", "expected"),
    [(False, "emulated cost table"), (True, "measured on this machine, among plans by costs: emulated cost table")],
)
def test_what_a_file_was_chosen_by(measured: bool, expected: str) -> None:
    assert chosen_by("emulated cost table", measured=measured) == expected


def test_a_drop_of_one_sample_is_still_json() -> None:
    entry = DropEntry.of(Drop("cosine", 100.0, 99.0, 1.0, 1.0, 0.0, 1))
    assert entry.drop == 1.0
    assert not any(isinstance(value, float) and math.isnan(value) for value in vars(entry).values())


@pytest.fixture(scope="module")
def built(classifier: Path, warm_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("built") / "pack"
    build(options(classifier, out=out, max_drop=40.0), cache=Cache(warm_cache))
    return out, json.loads((out / "manifest.json").read_text())


def test_a_real_manifest_is_what_inspect_takes(built: tuple[Path, dict[str, Any]]) -> None:
    out, manifest = built
    assert read_manifest(out).record() == manifest
    entry = manifest["files"]["model.onnx"]
    assert entry["sha256"] == file_digest(out / "model.onnx")
    assert entry["size_bytes"] == (out / "model.onnx").stat().st_size
    assert entry["matrix_parameters"] == sum(
        one["out_features"] * one["in_features"]
        if one["rank"] is None
        else one["rank"] * (one["out_features"] + one["in_features"])
        for one in entry["layers"]
    )
    assert entry["matrix_parameters"] == sum(one["weight_parameters"] for one in entry["layers"])


def test_every_layer_has_its_prediction_and_its_rivals(built: tuple[Path, dict[str, Any]]) -> None:
    for one in built[1]["files"]["model.onnx"]["layers"]:
        kinds = {(rival["rank"] is None, rival["scheme"]) for rival in one["others"]}
        assert kinds
        for figures in (one["predicted"], *one["others"]):
            known = {
                "scheme",
                "structure",
                "rank",
                "loss",
                "size_bytes",
                "ram_bytes",
                "latency_s",
                "source",
                "alternative",
            }
            assert set(figures) == known
            assert figures["alternative"] is None
            assert figures["source"].startswith("emulated cost table")
        assert one["reason"].isprintable()
        assert one["reason"]


def test_the_same_build_writes_the_same_bytes(
    built: tuple[Path, dict[str, Any]], classifier: Path, tmp_path: Path
) -> None:
    """With another cache, so that everything is computed again."""
    build(options(classifier, out=tmp_path / "pack", max_drop=40.0), cache=Cache(tmp_path / "cache"))
    for path in built[0].rglob("*"):
        if path.is_file():
            assert (tmp_path / "pack" / path.relative_to(built[0])).read_bytes() == path.read_bytes(), path.name
