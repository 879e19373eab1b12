from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import blocks_accuracy
import numpy as np
import pytest
from accuracy.measure import measure_model, merged, shortened
from accuracy.subjects import make_subject, similarity_order

RANK = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The perceptron at one rank, with one epoch of recovery."""
    subject = shortened(make_subject("mnist", tmp_path_factory.mktemp("accuracy")))
    return {**measure_model(replace(subject, levels=(RANK,), distilled=(RANK,))), "seeds": 1}


def row(model: dict[str, Any], way: str, bits: int) -> dict[str, Any]:
    return next(one for one in model["rows"] if (one["way"], one["bits"]) == (way, bits))


def share(model: dict[str, Any], kind: str, bits: int, way: str) -> float:
    found = next(o for o in model["rounding"] if (o["kind"], o["bits"], o["way"]) == (kind, bits, way))
    return float(found["share"][0])


def test_there_is_a_row_for_every_way(model: dict[str, Any]) -> None:
    ways = [(one["way"], one["bits"], one["level"]) for one in model["rows"]]
    dense = [("dense", 32), ("dense", 8), ("dense GPTQ", 8), ("dense", 4), ("dense GPTQ", 4)]
    pairs = [(way, 8) for way in ("plain SVD", "whitened", "+ latent rotation", "+ alternation", "+ distillation")]
    pairs += [(way, 4) for way in ("whitened", "+ latent rotation", "+ alternation", "+ distillation")]
    assert sorted(ways, key=str) == sorted(
        [*((*key, None) for key in dense), *((*key, RANK) for key in pairs)], key=str
    )
    assert len(set(ways)) == len(ways)


def test_a_better_way_takes_no_more_bytes(model: dict[str, Any]) -> None:
    for bits in (8, 4):
        assert len({one["size_bytes"][0] for one in model["rows"] if one["level"] and one["bits"] == bits}) == 1
    sizes = [row(model, way, bits)["size_bytes"][0] for way, bits in (("dense", 32), ("dense", 8), ("dense", 4))]
    pairs = [row(model, "whitened", bits)["size_bytes"][0] for bits in (8, 4)]
    assert sizes + pairs == sorted(sizes + pairs, reverse=True)


def test_the_dense_file_is_what_all_are_compared_with(model: dict[str, Any]) -> None:
    assert row(model, "dense", 32)["validation_off"] == [0.0]
    assert row(model, "dense", 32)["scores"]["accuracy"][0] > 95
    assert all(one["validation_off"][0] > 0 for one in model["rows"][1:])


def test_weighting_by_the_inputs_is_worth_points(model: dict[str, Any]) -> None:
    plain, pair = (row(model, way, 8)["scores"]["accuracy"][0] for way in ("plain SVD", "+ alternation"))
    assert pair >= plain + 2


def test_recovery_brings_the_answers_nearer(model: dict[str, Any]) -> None:
    for bits in (8, 4):
        assert (
            row(model, "+ distillation", bits)["validation_off"][0]
            < row(model, "+ alternation", bits)["validation_off"][0]
        )


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_with_the_inputs_in_mind_loses_less(model: dict[str, Any], bits: int) -> None:
    nearest, latent_rotation, alternation = (
        share(model, "pair", bits, way) for way in ("whitened", "+ latent rotation", "+ alternation")
    )
    assert 0 < alternation <= 0.6 * nearest
    assert alternation < latent_rotation < nearest
    assert 0 < share(model, "dense", bits, "GPTQ") < share(model, "dense", bits, "to nearest")
    assert row(model, "dense GPTQ", bits)["validation_off"][0] < row(model, "dense", bits)["validation_off"][0]


def test_the_block_says_what_was_reached(model: dict[str, Any]) -> None:
    text = blocks_accuracy.render_accuracy({"models": [model]})
    assert "| plain SVD | " in text
    assert "bytes: met, by " in text
    lost = copy.deepcopy(model)
    row(lost, "plain SVD", 8)["scores"] = row(lost, "+ alternation", 8)["scores"]
    assert "bytes: missed, by 0.0 points" in blocks_accuracy.render_accuracy({"models": [lost]})


def test_rows_of_several_seeds_become_one() -> None:
    rows = [[{"way": "dense", "level": None, "scores": {"accuracy": [value]}}] for value in (96.0, 97.0)]
    assert merged(rows) == [{"way": "dense", "level": None, "scores": {"accuracy": [96.0, 97.0]}}]


def test_the_order_of_similarities_is_that_of_directions() -> None:
    rows = np.random.default_rng(0).standard_normal((20, 8))
    assert similarity_order(3 * rows, rows) == pytest.approx(1.0)
    assert similarity_order(np.random.default_rng(1).standard_normal((20, 8)), rows) < 0.5


@pytest.fixture(autouse=True, scope="module")
def _scripts() -> Iterator[None]:
    yield
    for name in [name for name in sys.modules if name == "accuracy" or name.startswith("accuracy.")]:
        sys.modules.pop(name)
