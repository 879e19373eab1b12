from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator
from typing import Any

import blocks_seeds
import numpy as np
import pytest
import torch
from models.mnist_mlp import digits
from seeds import claims, deepthin_rows, measure, train
from seeds.deepthin_rows import conv_form, trained_parts, width_at
from seeds.lab import Lab, open_lab
from seeds.pairs import default_pairs, ranks
from seeds.settings import QUICK

from edgepack.backends.onnx.schemes import FP32
from edgepack.model.constexpr import evaluate, stored_bytes
from edgepack.workspace import Cache

SIZES = (784, 24, 10)
SHARE = 0.25


@pytest.fixture(scope="module")
def data() -> tuple[Any, Any]:
    images, labels = digits()[:2]
    return images[:512], labels[:512]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def lab(data: tuple[Any, Any], cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    model = train.trained(cache, train.Wanted("dense", SIZES, 1.0, epochs=2, seed=0), data)
    return open_lab(model, cache, tmp_path_factory.mktemp("lab") / "lab")


def made(accuracy: float, parameters: int, **files: Any) -> dict[str, Any]:
    return {"label": "x", "accuracy": accuracy, "parameters": parameters, "files": files, "refused": None}


def file(p50_s: float) -> dict[str, Any]:
    return {
        "size_bytes": 100_000,
        "wire_bytes": 80_000,
        "resident_bytes": 9_000_000,
        "anonymous_bytes": 8_000_000,
        "process_medians_s": [p50_s, p50_s, p50_s],
    }


@pytest.fixture
def figures() -> dict[str, Any]:
    default = made(97.5, 2_000, onnx=file(5e-6), tflite=file(2e-6))
    own = {**made(0.0, 1_000, onnx=file(1e-5)), "accuracy": [96.0, 97.0, 98.0], "refused": "why not"}
    rows = [
        {"key": "a", "title": "a row", "claim": "a claim", "own": own, "default": default},
        {"key": "b", "title": "another", "claim": "none", "own": None, "default": default, "missing": "no data"},
    ]
    dense = {"fp32": made(98.0, 9_000, onnx=file(2e-5), tflite=file(2e-5)), "int8": made(97.9, 9_000, onnx=file(1e-5))}
    group = {"name": "a", "model": "3-2-1", "dense": dense, "rows": rows}
    return {"quick": False, "epochs": 25, "recovery": 8, "seeds": 3, "ratios": [8], "processes": 4, "groups": [group]}


def cells(text: str, title: str) -> list[str]:
    return next(
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith(title)
    )


def test_a_row_has_claim_own_method_and_default(figures: dict[str, Any]) -> None:
    found = cells(blocks_seeds.render_seeds(figures), "| a row")
    assert found[:5] == ["a row", "a claim", "97.0 ± 1.0", "97.5", "1,000 / 2,000"]
    assert found[8] == "10.0 µs (2.0×) / 5.00 µs (4.0×)"
    assert found[10] == "– / 2.00 µs (10.0×)"


def test_what_was_not_reproduced_says_why(figures: dict[str, Any]) -> None:
    assert cells(blocks_seeds.render_seeds(figures), "| another")[2] == "not reproduced: no data"


def test_a_table_has_one_number_of_columns(figures: dict[str, Any]) -> None:
    lines = [line for line in blocks_seeds.render_seeds(figures).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {len(blocks_seeds.HEADERS) + 1}


def test_fewer_errors_are_counted_as_the_source_counts_them(figures: dict[str, Any]) -> None:
    def row(key: str, accuracy: float) -> dict[str, Any]:
        one = {**made(0.0, 1, onnx=file(1e-5)), "accuracy": [accuracy]}
        other = {**made(0.0, 1, onnx=file(1e-5)), "accuracy": [97.0]}
        return {"key": f"{key}-8", "title": key, "claim": "none", "own": one, "default": other}

    rivals = {"deepthin": 96.0, "low-rank": 92.0, "pruning": 95.0, "hand-tuned": 96.0, "hashednet": 98.0}
    figures["groups"][0] |= {"name": "deepthin", "rows": [row(*one) for one in rivals.items()]}
    text = blocks_seeds.render_seeds(figures)
    assert cells(text, "| low rank")[2] == "50 %"
    assert cells(text, "| pruning | 57")[2] == "20 %"
    assert cells(text, "| a smaller")[2] == "0 % (within the spread)"
    assert cells(text, "| HashedNets")[2] == "−100 %"
    assert cells(text, "| default pairs")[2] == "−33 %"


def test_a_difference_within_the_spread_of_the_seeds_is_called_so(figures: dict[str, Any]) -> None:
    default = {**made(0.0, 1, onnx=file(1e-5)), "accuracy": [96.8, 97.0]}
    rows = []
    for key, values in (("deepthin", [97.0, 97.2]), ("low-rank", [96.0, 96.1])):
        own = {**made(0.0, 1, onnx=file(1e-5)), "accuracy": values}
        rows.append({"key": f"{key}-8", "title": key, "claim": "none", "own": own, "default": default})
    figures["groups"][0] |= {"name": "deepthin", "rows": rows}
    text = blocks_seeds.render_seeds(figures)
    assert "within" not in cells(text, "| low rank")[2]
    assert cells(text, "| default pairs")[2] == "6 % (within the spread)"


def test_what_has_no_tflite_file_says_why(figures: dict[str, Any]) -> None:
    assert "No LiteRT file: a row: why not." in blocks_seeds.render_seeds(figures)


def test_an_emulator_that_is_not_there_is_said_to_be_missing(figures: dict[str, Any]) -> None:
    lacking = copy.deepcopy(figures)
    lacking["groups"][0]["emulated"] = "no emulator"
    assert "not measured: no emulator" in blocks_seeds.render_seeds(lacking)


def test_claims_agree_with_one_another() -> None:
    before, after = claims.REDUCIBLE_PARAMETERS
    assert round(100 * (1 - after / before), 1) == 43.4
    assert before == sum(a * b + b for a, b in zip((784, 128, 128, 128), (128, 128, 128, 10), strict=True))
    for figure in (f"{before:,}", f"{after:,}", *(f"{size:,}" for size in claims.REDUCIBLE_BYTES)):
        assert figure in claims.CLAIMS["reducible-128"]
    assert "84.3 % at 50 %" in claims.operator_claim(0.5)
    assert "83.9 % at 66 %" in claims.operator_claim(0.34)


def test_no_figure_of_deepthin_is_claimed_but_those_of_its_abstract() -> None:
    text = claims.CLAIMS["deepthin"]
    assert re.findall(r"[\d.]+", text.replace(". ", " ")) == ["60", "57", "23", "6"]


def test_a_hand_tuned_network_has_as_many_weights() -> None:
    for ratio in (8, 16, 32, 64):
        inputs, hidden, outputs = deepthin_rows.SIZES
        wanted = inputs * hidden / ratio + hidden * outputs
        assert abs(width_at(ratio) * (inputs + outputs) - wanted) <= (inputs + outputs) / 2


@pytest.mark.parametrize("how", ["low-rank", "hashednet", "deepthin", "pruning"])
def test_every_form_trains_and_takes_no_more_than_its_share(
    how: str, lab: Lab, cache: Cache, data: tuple[Any, Any]
) -> None:
    model = train.trained(cache, train.Wanted(how, SIZES, SHARE, epochs=20, seed=0), data)
    parts = trained_parts(model, lab.layers, SHARE)
    hidden, last = (parts[layer.name] for layer in lab.layers)
    allowed = SHARE * 784 * 24
    assert last.structure.is_dense
    assert hidden.structure.is_low_rank == (how == "low-rank")
    if hidden.structure.is_low_rank:
        assert 0.8 * allowed < hidden.A.size + hidden.B.size <= allowed
    else:
        assert hidden.structure.is_constexpr
        assert 0.8 * allowed < stored_bytes(hidden) <= allowed
    found = lab.make(how, [SHARE], lambda: parts)
    answers = model(torch.from_numpy(lab.test.inputs["x"])).argmax(dim=1).numpy()
    wanted = float((answers == lab.test.labels).mean() * 100)
    assert wanted > 50
    assert found["accuracy"] == pytest.approx(wanted, abs=3.0)
    assert found["parameters"] < lab.parameters({})
    assert found["files"]["onnx"]["wire_bytes"] > 1000


def test_what_was_trained_is_not_trained_again(cache: Cache, data: tuple[Any, Any]) -> None:
    one = train.trained(cache, train.Wanted("deepthin", SIZES, SHARE, epochs=1, seed=3), data)
    before = len(cache.hits)
    other = train.trained(cache, train.Wanted("deepthin", SIZES, SHARE, epochs=1, seed=3), data)
    assert len(cache.hits) == before + 1
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert np.array_equal(a.numpy(), b.numpy())


def test_both_forms_of_deepthin_are_one_function(cache: Cache, data: tuple[Any, Any]) -> None:
    model = train.trained(cache, train.Wanted("deepthin", SIZES, SHARE, epochs=1, seed=3), data)
    x = data[0][:8]
    wanted = evaluate(model[0].to_constexpr(), x)
    found = evaluate(conv_form(model[0]), x)
    assert np.linalg.norm(found - wanted) < 0.02 * np.linalg.norm(wanted)  # 8 bits apart


def test_files_are_made_once_and_measured(lab: Lab) -> None:
    asked = ranks(lab.layers[:1], SHARE)
    calls = []

    def parts() -> Any:
        calls.append(1)
        return default_pairs(lab, asked)

    first, second = (lab.make("default", [asked], parts) for _ in range(2))
    assert first == second
    assert len(calls) == 1
    dense = {"fp32": lab.make("dense fp32", [], dict, FP32), "int8": lab.make("dense int8", [], dict)}
    group = {"name": "x", "dense": dense, "rows": [{"own": first, "default": None}]}
    assert [one["label"] for one in measure.distinct(group)] == ["dense fp32", "dense int8", "default"]
    measure.measure_group(group, QUICK)
    assert len(first["files"]["onnx"]["process_medians_s"]) == QUICK.schedule.processes


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    """The folder's modules are no packages of the project: leave nothing behind."""
    yield
    for name in [name for name in sys.modules if name == "seeds" or name.startswith("seeds.")]:
        del sys.modules[name]
