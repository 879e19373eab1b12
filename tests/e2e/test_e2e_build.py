"""What a build leaves behind, for every kind of model and every option."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgepack import load_target
from edgepack.backends.runtime import load
from edgepack.backends.schemes import SCHEMES, scheme_named
from edgepack.cost.select import cost_source
from edgepack.model.point import linear_point
from tests.e2e.conftest import Built
from tests.e2e.e2e_cli import Done, assert_fails, invoke, run
from tests.e2e.e2e_models import points, samples, write_onnx

MODELS = ("model.onnx", "model.tflite")
BASELINES = tuple(f"baseline/{kind}.{fmt}" for kind in ("fp32", "int8") for fmt in ("onnx", "tflite"))
NAMES = {fmt: {scheme.name for scheme in own} for fmt, own in SCHEMES.items()}
PROOFS = {"outputs", "structure", "weight-bytes", "biases"}


def manifest_of(pack: Path) -> dict[str, Any]:
    return json.loads((pack / "manifest.json").read_text())


def build(model: Path, out: Path, *options: object) -> Done:
    return invoke("build", model, "--target", "rpi4", "--formats", "onnx", "--out", out, *options)


def ranks(manifest: dict[str, Any]) -> list[int | None]:
    return [layer["rank"] for layer in manifest["files"]["model.onnx"]["layers"]]


def test_pack_holds_models_baselines_inputs_and_nothing_else(rpi4_pack: Built) -> None:
    found = {str(p.relative_to(rpi4_pack.path)) for p in rpi4_pack.path.rglob("*") if p.is_file()}
    assert found == {*MODELS, *BASELINES, "manifest.json", "example_inputs.npz", "README.md", "run.py"}
    assert [p.name for p in rpi4_pack.path.parent.iterdir()] == [rpi4_pack.path.name]
    with np.load(rpi4_pack.path / "example_inputs.npz") as inputs:
        assert {name: (array.shape, array.dtype) for name, array in inputs.items()} == {"input": ((1, 64), np.float32)}


def test_sizes_and_digests_in_the_manifest_are_those_of_the_files(rpi4_pack: Built) -> None:
    entries = rpi4_pack.manifest["files"]
    assert set(entries) == {*MODELS, *BASELINES}
    for name, entry in entries.items():
        content = (rpi4_pack.path / name).read_bytes()
        assert (entry["size_bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("name", MODELS)
def test_every_proof_is_there_and_passed(rpi4_pack: Built, name: str) -> None:
    entry = rpi4_pack.manifest["files"][name]
    assert set(entry["proofs"]) == PROOFS
    assert all(proof["passed"] for proof in entry["proofs"].values())
    schemes = {layer["scheme"] for layer in entry["layers"]}
    assert schemes <= NAMES[entry["format"]]
    assert entry["scheme"] == ("mixed" if len(schemes) > 1 else next(iter(schemes)))


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_what_the_target_gains_by(rpi4_pack: Built, name: str) -> None:
    """By the source of costs the plan is faster than the layers of the int8 baseline, and every layer says why."""
    files = rpi4_pack.manifest["files"]
    layers, fmt = files[name]["layers"], files[name]["format"]
    rival = scheme_named(fmt, files[f"baseline/int8.{fmt}"]["scheme"])
    points = [linear_point(rival, layer["out_features"], layer["in_features"], None, 1) for layer in layers]
    found = cost_source(load_target("rpi4"), fmt, points).estimates(points)
    assert files[name]["size_bytes"] < files[f"baseline/int8.{files[name]['format']}"]["size_bytes"]
    chosen = dense = 0.0
    for layer, estimate in zip(layers, found, strict=True):
        own = layer["predicted"]
        assert (own["scheme"], own["rank"]) == (layer["scheme"], layer["rank"])
        assert rpi4_pack.manifest["cost_sources"][files[name]["format"]] == "emulated cost table"
        assert own["source"].startswith("emulated cost table")
        assert estimate is not None
        chosen += own["latency_s"]
        dense += estimate.latency_s
        kept = f"rank {layer['rank']}" if layer["rank"] else "dense"
        assert layer["reason"].startswith(f"{kept} {layer['scheme']}: ")
    assert chosen <= dense
    for entry in (files[name], files[f"baseline/int8.{files[name]['format']}"]):
        assert entry["scheme_chosen_by"] == "emulated cost table"


def test_every_probe_is_kept_with_its_figures(rpi4_pack: Built) -> None:
    manifest = rpi4_pack.manifest
    names = {layer["layer"] for layer in manifest["files"]["model.onnx"]["layers"]}
    dense = sum(one["out_features"] * one["in_features"] for one in manifest["files"]["model.onnx"]["layers"])
    for fmt in ("onnx", "tflite"):
        plan_trials = [plan_trial for plan_trial in manifest["trials"] if plan_trial["format"] == fmt]
        assert len(plan_trials) > 2
        losses = [plan_trial["predicted_loss"] for plan_trial in plan_trials]
        assert losses == sorted(losses)
        for plan_trial in plan_trials:
            assert plan_trial["scheme"] in (*NAMES[fmt], "mixed")
            assert 0 < plan_trial["size_bytes"] <= 1.05 * manifest["files"][f"baseline/fp32.{fmt}"]["size_bytes"]
            assert plan_trial["predicted_latency_s"] > 0
            assert 0 < plan_trial["weight_parameters"] <= dense
            assert set(plan_trial["ranks"]) <= names
            assert plan_trial["drop"]["samples"] == 267
        chosen = {one["layer"]: one["rank"] for one in manifest["files"][f"model.{fmt}"]["layers"] if one["rank"]}
        assert chosen in [plan_trial["ranks"] for plan_trial in plan_trials]
        good = [one for one in plan_trials if one["drop"]["bound"] <= 1]
        taken = sum(one["predicted"]["latency_s"] for one in manifest["files"][f"model.{fmt}"]["layers"])
        product = taken * manifest["files"][f"model.{fmt}"]["size_bytes"]
        best = min(one["predicted_latency_s"] * one["size_bytes"] for one in good)
        assert product <= 1.1 * best, "the least product of latency and size within the budget, or near to it"


@pytest.mark.parametrize("name", MODELS)
def test_the_drop_is_that_of_the_emitted_file(rpi4_pack: Built, name: str) -> None:
    """The drop in the manifest, from a second measurement by the test's own hand."""
    entries, fmt = rpi4_pack.manifest["files"], name.rpartition(".")[2]
    x, y = points(400, 2)
    scores = {}
    for file in (name, f"baseline/fp32.{fmt}"):
        loaded = load(rpi4_pack.path / file, fmt, exact=True)  # type: ignore[arg-type]
        key = loaded.inputs[0].name
        found = np.array([loaded.run({key: row[None]})[0][0].argmax() for row in x])
        scores[file] = float((found == y).mean() * 100)
        assert entries[file]["test"] == pytest.approx(scores[file], abs=1e-4)
        assert entries[file]["scored_on"] == "test"
    validation = entries[name]["validation"]
    assert validation["bound"] <= 1
    assert (validation["metric"], validation["samples"]) == ("accuracy", 267)
    confirmed = entries[name]["confirmation"]
    assert confirmed["drop"] < confirmed["bound"] <= 1
    assert (confirmed["metric"], confirmed["samples"], confirmed["confidence"]) == ("accuracy", 267, 0.9)


def test_manifest_says_what_was_done_with_what(rpi4_pack: Built) -> None:
    manifest = rpi4_pack.manifest
    assert (manifest["schema_version"], manifest["seed"], manifest["budget_met"]) == (1, 0, True)
    assert manifest["data"] == {
        "origin": "recipe",
        "calibration_samples": 266,
        "validation_samples": 267,
        "confirmation_samples": 267,
        "labelled": True,
        "split_seed": 0,
    }
    assert manifest["model"]["kind"] == "recipe"
    assert manifest["model"]["source"] == "points.py:recipe"
    assert len(manifest["model"]["sha256"]) == 64
    assert {"numpy", "onnx", "onnxruntime", "torch", "litert-torch", "litert-quantizer"} <= set(manifest["versions"])
    assert manifest["options"]["max_drop"] == 1.0
    assert manifest["loss_weighted_by"] == "output gradients"
    assert manifest["cost_sources"] == {"onnx": "emulated cost table", "tflite": "emulated cost table"}
    assert manifest["latency_s"] == {}, "this machine's time says nothing about another one's"
    (warning,) = manifest["warnings"]
    assert warning.startswith("the model is right on 100.0 % of 267 samples; was it trained on them?")
    assert str(rpi4_pack.path.parent) not in json.dumps(manifest)
    for layer in manifest["files"]["model.onnx"]["layers"]:
        assert layer["reason"]
        assert layer["rank"] is None or layer["rank"] <= layer["break_even_rank"]


def test_pack_is_never_larger_than_dense_int8(rpi4_pack: Built) -> None:
    sizes = {name: entry["size_bytes"] for name, entry in rpi4_pack.manifest["files"].items()}
    for fmt in ("onnx", "tflite"):
        assert sizes[f"model.{fmt}"] <= sizes[f"baseline/int8.{fmt}"] < sizes[f"baseline/fp32.{fmt}"]
    assert sizes["model.tflite"] < sizes["baseline/int8.tflite"]


def test_summary_shows_every_file_and_how_many_layers_are_low_rank(rpi4_pack: Built) -> None:
    out = rpi4_pack.done.out
    assert f"{rpi4_pack.path}: points for rpi4, metric: accuracy" in "".join(out.splitlines())
    assert all(name in out for name in (*MODELS, *BASELINES))
    assert " of 3 layers low-rank" in out
    assert rpi4_pack.done.err == ""


def test_host_pack_measures_schemes_here(tmp_path: Path, model: Path, data: Path) -> None:
    out = tmp_path / "out"
    done = invoke("build", model, "--target", "host", "--formats", "onnx", "--data", data, "--out", out)
    assert done.code == 0, done.err
    manifest = manifest_of(out)
    assert manifest["target"]["name"] == "host"
    assert manifest["files"]["baseline/int8.onnx"]["scheme_chosen_by"] == "measured on this machine"


@pytest.mark.parametrize(
    ("rank", "expected"), [("3", [3, 3, 3]), ("0.25", [9, 9, 1]), ("auto", None)], ids=["number", "share", "auto"]
)
def test_rank(tmp_path: Path, model: Path, data: Path, rank: str, expected: list[int | None] | None) -> None:
    # There is no cost table for this target, so what the search found stays as it is.
    done = build(model, tmp_path / "out", "--data", data, "--rank", rank, "--target", "jetson-nano")
    assert done.code == 0, done.err
    manifest = manifest_of(tmp_path / "out")
    assert manifest["options"]["rank"] == (rank if rank == "auto" else float(rank))
    found = ranks(manifest)
    if expected is not None:
        assert found == expected
        assert manifest["trials"] == []
    else:
        files = manifest["files"]
        assert files["model.onnx"]["size_bytes"] < files["baseline/int8.onnx"]["size_bytes"]
        assert len(manifest["trials"]) > 2
        assert manifest["files"]["model.onnx"]["validation"]["drop"] <= 0.5


@pytest.mark.parametrize(
    ("precision", "schemes", "width"),
    [
        ("fp32", ("fp32",), 4),
        ("int8", ("int8-weights", "int8-dynamic", "int8-static-qdq", "nbits8"), 1),
        ("int4", ("int4-weights", "nbits4"), 0.5),
    ],
)
def test_precision(
    tmp_path: Path, model: Path, data: Path, precision: str, schemes: tuple[str, ...], width: float
) -> None:
    done = build(model, tmp_path / "out", "--data", data, "--rank", "8", "--precision", precision)
    assert done.code == 0, done.err
    entry = manifest_of(tmp_path / "out")["files"]["model.onnx"]
    assert entry["scheme"] in (*schemes, "mixed")
    # Which is the fastest is for the clock to say.
    assert {layer["scheme"] for layer in entry["layers"]} <= set(schemes)
    assert entry["proofs"]["weight-bytes"]["detail"].endswith(f"{entry['matrix_parameters'] * width:.0f} bytes")


def test_int4_without_a_rank_still_meets_the_budget(tmp_path: Path, model: Path, data: Path) -> None:
    done = build(model, tmp_path / "out", "--data", data, "--precision", "int4", "--max-drop", "2")
    assert done.code == 0, done.err
    manifest = manifest_of(tmp_path / "out")
    entry = manifest["files"]["model.onnx"]
    assert {layer["scheme"] for layer in entry["layers"]} <= {"int4-weights", "nbits4"}
    assert entry["validation"]["drop"] <= 2
    assert entry["size_bytes"] < manifest["files"]["baseline/int8.onnx"]["size_bytes"]


def test_explore_then_pick(tmp_path: Path, model: Path, data: Path) -> None:
    """What --explore lists is what --pick builds; nothing is written before."""
    listed = build(model, tmp_path / "out", "--data", data, "--explore", "--json")
    assert listed.code == 0, listed.err
    assert not (tmp_path / "out").exists()
    shown_json = json.loads(listed.out)
    assert shown_json["warnings"] == []
    rows = shown_json["plans"]
    assert [row["number"] for row in rows] == list(range(1, len(rows) + 1))
    shown = build(model, tmp_path / "out", "--data", data, "--explore").out
    assert len([line for line in shown.splitlines() if " onnx " in line]) == len(rows)
    assert "Build one with --pick NUMBER" in shown
    row = rows[len(rows) // 2]
    done = build(model, tmp_path / "out", "--data", data, "--pick", row["number"])
    assert done.code == 0, done.err
    entry = manifest_of(tmp_path / "out")["files"]["model.onnx"]
    assert entry["scheme"] == row["scheme"]
    assert 0.8 * row["size_bytes"] < entry["size_bytes"] <= row["size_bytes"], "factors may come to share their scales"
    assert entry["validation"]["drop"] == pytest.approx(row["drop"]["value"], abs=0.1), "its pairs are rounded better"
    beyond = build(model, tmp_path / "other", "--data", data, "--pick", len(rows) + 1)
    assert_fails(beyond, 2, [f"--pick {len(rows) + 1}: there are plans 1 to {len(rows)}"], out=tmp_path / "other")
    without = build(model, tmp_path / "other", "--explore")
    assert_fails(without, 2, ["only where data measure what they lose"], out=tmp_path / "other")


def test_a_plan_per_format_can_be_picked(recipe_file: Path, rpi4_pack: Built, tmp_path: Path) -> None:
    asked = ("build", f"{recipe_file}:recipe", "--target", "rpi4")
    env = {"EDGEPACK_CACHE": str(rpi4_pack.cache)}
    rows = json.loads(invoke(*asked, "--explore", "--json", env=env).out)["plans"]
    first = {row["format"]: row for row in reversed(rows)}
    assert set(first) == {"onnx", "tflite"}
    numbers = ",".join(str(row["number"]) for row in first.values())
    done = invoke(*asked, "--pick", numbers, "--out", tmp_path / "pack", env=env)
    assert done.code == 0, done.err
    for fmt, row in first.items():
        assert (tmp_path / "pack" / f"model.{fmt}").stat().st_size == row["size_bytes"]


def test_inspect_tells_what_became_of_each_layer(rpi4_pack: Built) -> None:
    done = invoke("inspect", rpi4_pack.path)
    assert (done.code, done.err) == (0, "")
    assert f"{rpi4_pack.path}: points for rpi4" in "".join(done.out.splitlines())
    for name in MODELS:
        entry = rpi4_pack.manifest["files"][name]
        assert f"{name}: {entry['scheme']}, " in done.out
        for layer in entry["layers"]:
            assert layer["layer"] in done.out
            assert layer["reason"].split(":")[0] in done.out
    assert json.loads(invoke("inspect", rpi4_pack.path, "--json").out) == rpi4_pack.manifest


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [("--max-latency", "0.001us", "--max-latency 1.00 ns"), ("--max-memory", "1kB", "--max-memory 1.00 kB")],
)
def test_limits_that_nobody_meets(tmp_path: Path, model: Path, data: Path, option: str, value: str, says: str) -> None:
    done = build(model, tmp_path / "out", "--data", data, option, value)
    assert_fails(done, 5, [f"no onnx plan fits {says} \\(the least within the other limits is "])
    manifest = manifest_of(tmp_path / "out")
    assert manifest["budget_met"] is False
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_limits_that_are_met(tmp_path: Path, model: Path, data: Path) -> None:
    limits = ("--max-size", "40kB", "--max-latency", "1ms", "--max-memory", "200MB")
    done = build(model, tmp_path / "out", "--data", data, *limits)
    assert done.code == 0, done.err
    manifest = manifest_of(tmp_path / "out")
    assert manifest["budget_met"] is True
    asked = manifest["options"]
    assert (asked["max_size_bytes"], asked["max_latency_s"], asked["max_memory_bytes"]) == (40_000, 1e-3, 200_000_000)
    assert manifest["files"]["model.onnx"]["size_bytes"] <= 40_000


def test_methods_differ_in_their_factors(tmp_path: Path, model: Path, data: Path) -> None:
    digests = {}
    for method in ("svd", "whitened"):
        options = ("--data", data, "--rank", "8", "--precision", "fp32", "--method", method)
        assert build(model, tmp_path / method, *options).code == 0
        manifest = manifest_of(tmp_path / method)
        assert manifest["method"] == method
        digests[method] = manifest["files"]["model.onnx"]["sha256"]
    assert digests["svd"] != digests["whitened"]


def test_no_baseline_leaves_the_dense_models_out(tmp_path: Path, model: Path, data: Path) -> None:
    done = build(model, tmp_path / "out", "--data", data, "--no-baseline")
    assert done.code == 0, done.err
    files = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert files == {"model.onnx", "manifest.json", "example_inputs.npz", "README.md", "run.py"}
    assert list(manifest_of(tmp_path / "out")["files"]) == ["model.onnx"]


@pytest.mark.parametrize(("flash", "code"), [("1MB", 0), ("2KB", 5)])
def test_flash(tmp_path: Path, model: Path, data: Path, flash: str, code: int) -> None:
    done = build(model, tmp_path / "out", "--data", data, "--max-size", flash)
    assert done.code == code, done.err
    manifest = manifest_of(tmp_path / "out")
    assert manifest["budget_met"] is (code == 0)
    if code:
        assert "no onnx plan fits --max-size 2.00 kB (the least within the other limits is " in done.err
        assert manifest["files"]["model.onnx"]["size_bytes"] < 10_000, "the best attempt is the smallest plan"
    else:
        assert manifest["files"]["model.onnx"]["size_bytes"] <= 1_000_000


@pytest.mark.parametrize("metric", ["agreement", "cosine"])
def test_metric_without_labels(tmp_path: Path, model: Path, data: Path, metric: str) -> None:
    done = build(model, tmp_path / "out", "--data", data, "--metric", metric)
    assert done.code == 0, done.err
    manifest = manifest_of(tmp_path / "out")
    assert (manifest["metric"]["name"], manifest["metric"]["validated"]) == (metric, True)
    assert manifest["metric"]["why"] == "it was asked for"
    assert manifest["data"]["labelled"] is False
    assert f"metric: {metric}" in done.out
    assert ("(no labels)" in done.out) == (metric == "agreement")


def test_labels_make_accuracy_the_metric(tmp_path: Path, model: Path) -> None:
    labelled = samples(tmp_path / "labelled.npz", labels=True)
    done = build(model, tmp_path / "out", "--data", labelled)
    assert done.code == 0, done.err
    manifest = manifest_of(tmp_path / "out")
    assert manifest["metric"]["name"] == "accuracy"
    assert manifest["data"]["labelled"] is True
    assert manifest["files"]["baseline/fp32.onnx"]["validation"]["dense"] > 90


def test_the_untouched_test_is_reported_apart(tmp_path: Path, model: Path, data: Path) -> None:
    untouched = samples(tmp_path / "test.npz", count=300, seed=11, labels=True)
    done = build(model, tmp_path / "out", "--data", data, "--test", untouched)
    assert done.code == 0, done.err
    entries = manifest_of(tmp_path / "out")["files"]
    assert all(entry["scored_on"] == "test" for entry in entries.values())
    assert all(entry["validation"]["metric"] == "r2" for entry in entries.values())
    assert entries["baseline/fp32.onnx"]["test"] == 100


def test_without_data_the_build_says_that_nothing_measures_it(tmp_path: Path, model: Path) -> None:
    done = build(model, tmp_path / "out")
    assert done.code == 0, done.err
    manifest = manifest_of(tmp_path / "out")
    warning = next(w for w in manifest["warnings"] if "nothing measures the accuracy" in w)
    assert "int8" in warning
    assert "--data" in warning
    assert "warning: no data" in done.out
    assert all(
        "int8" in layer["scheme"] or "fp32" in layer["scheme"] for layer in manifest["files"]["model.onnx"]["layers"]
    )
    assert "metric: none, since there are no data" in done.out
    assert manifest["method"] == "svd"
    assert manifest["metric"]["validated"] is False
    assert manifest["data"]["origin"] is None
    assert all(entry["validation"] is None and entry["metric"] is None for entry in manifest["files"].values())
    assert set(manifest["files"]["model.onnx"]["proofs"]) == PROOFS


def test_json_is_one_document_with_the_manifest(tmp_path: Path, model: Path, data: Path) -> None:
    done = build(model, tmp_path / "out", "--data", data, "--json")
    assert done.code == 0, done.err
    shown = json.loads(done.out)
    assert Path(shown["pack"]) == tmp_path / "out"
    assert shown["manifest"]["files"] == manifest_of(tmp_path / "out")["files"]
    assert done.err == ""


def test_seed_changes_the_split(tmp_path: Path, model: Path, data: Path) -> None:
    drops = []
    for seed in (0, 1):
        options = ("--data", data, "--rank", "6", "--seed", seed, "--metric", "cosine")
        assert build(model, tmp_path / str(seed), *options).code == 0
        manifest = manifest_of(tmp_path / str(seed))
        assert (manifest["seed"], manifest["data"]["split_seed"]) == (seed, seed)
        drops.append(manifest["files"]["model.onnx"]["validation"]["drop"])
    assert drops[0] != drops[1]


def test_default_folder_is_named_after_model_and_target(tmp_path: Path, model: Path) -> None:
    done = run("build", model, "--target", "rpi4", "--formats", "onnx", cwd=tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "dist" / "points.rpi4" / "model.onnx").is_file()


def test_pt2_source(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 8)).eval()
    example = (torch.zeros(1, 64),)
    torch.export.save(torch.export.export(module, example), tmp_path / "points.pt2")
    inputs = points(600, 5)[0]
    np.savez(tmp_path / "data.npz", input=inputs)
    options = ("--data", tmp_path / "data.npz", "--rank", "16", "--precision", "fp32")
    done = build(tmp_path / "points.pt2", tmp_path / "out", *options)
    assert done.code == 0, done.err
    manifest = manifest_of(tmp_path / "out")
    assert manifest["model"]["kind"] == "pt2"
    assert ranks(manifest) == [16, None]
    dense = load(tmp_path / "out" / "baseline" / "fp32.onnx", "onnx")
    with torch.no_grad():
        expected = module(torch.from_numpy(inputs[:1])).numpy()
    np.testing.assert_allclose(dense.run({"input": inputs[:1]})[0], expected, atol=1e-5)


@pytest.mark.parametrize("asked", [(), ("--rank", "8"), ("--explore",)], ids=" ".join)
def test_a_model_without_layers_gives_a_pack_that_says_so(tmp_path: Path, data: Path, asked: tuple[str, ...]) -> None:
    path = write_onnx(tmp_path / "relu.onnx", [helper.make_node("Relu", ["x"], ["scores"])], {})
    done = build(path, tmp_path / "out", "--data", data, *asked)
    assert done.code == 0, done.err
    assert "no layer of the model can be factored" in " ".join(done.out.split())
    if not asked:
        entry = manifest_of(tmp_path / "out")["files"]["model.onnx"]
        assert entry["layers"] == []
        assert entry["size_bytes"] <= path.stat().st_size, "never larger than its source"


def test_layers_that_are_left_alone(tmp_path: Path, model: Path, data: Path) -> None:
    """They hold their own numbers, also where dense int8 would be smaller; that is said."""
    done = build(model, tmp_path / "out", "--data", data, "--keep", "w[13]")
    assert done.code == 0, done.err
    entry = manifest_of(tmp_path / "out")["files"]["model.onnx"]
    schemes = {layer["layer"]: (layer["scheme"], layer["rank"]) for layer in entry["layers"]}
    assert schemes["w1"] == schemes["w3"] == ("fp32", None)
    assert schemes["w2"][0] != "fp32"
    assert "it is kept, since its options ask for it" in " ".join(done.out.split())
    weights = [
        {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
        for path in (tmp_path / "out/model.onnx", model)
    ]
    held = {array.tobytes() for array in weights[0].values()}
    assert all({weights[1][name].tobytes(), weights[1][name].T.tobytes()} & held for name in ("w1", "w3"))
    only = build(model, tmp_path / "only", "--data", data, "--only", "w2")
    assert only.code == 0, only.err
    assert (tmp_path / "only/model.onnx").read_bytes() == (tmp_path / "out/model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("option", "says"),
    [("fc", r"--(keep|only) fc: found in no layer's name"), ("(", r"--(keep|only) \(: no regular expression")],
)
@pytest.mark.parametrize("name", ["--keep", "--only"])
def test_names_that_no_layer_has(tmp_path: Path, model: Path, data: Path, name: str, option: str, says: str) -> None:
    assert_fails(build(model, tmp_path / "out", "--data", data, name, option), 2, [says], out=tmp_path / "out")


def test_the_size_of_open_images(tmp_path: Path) -> None:
    """As asked, or a usual one that is said; rows of a layer are the places that a kernel of one pixel goes over."""
    kernel = np.random.default_rng(0).standard_normal((8, 3, 1, 1)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(kernel, "w")],
    )
    path = tmp_path / "conv.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    for asked, size in ((("--input", "x=1x3x20x10"), 200), ((), 224 * 224)):
        report = json.loads(invoke("inspect", path, "--json", *asked).out)
        assert [layer["rows"] for layer in report["layers"]] == [size]
    done = build(path, tmp_path / "out", "--input", "x=1x3x20x10")
    assert (done.code, "is assumed" in done.out) == (0, False)
    with np.load(tmp_path / "out" / "example_inputs.npz") as inputs:
        assert inputs["x"].shape == (1, 3, 20, 10)
    assert "--input x=1x3x224x224 is assumed" in build(path, tmp_path / "usual").out
    assert_fails(build(path, tmp_path / "other", "--input", "x=1x4x20x10"), 2, ["the model takes"], hint=False)
