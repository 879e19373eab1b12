"""The sections of bench/RESULTS.md: what their tables count."""

from __future__ import annotations

import re
from typing import Any

import built_here
import dtln
import measure_dominance
import measure_dtln
import measure_pairs
import measure_prices
import measure_same
import measure_tflite
import measure_tiny
import numpy as np
import pytest
import results_page
import resumable
import tiny_models
import zoo
import zoo_files
from promise import measure as promise

from edgepack.errors import ModelError
from edgepack.model.types import TensorSpec


def file(option: str, size: int, latency_s: float, accuracy: float, *, refused: bool = False) -> dict[str, Any]:
    return {
        "model": "m", "option": option, "format": "onnx", "scheme": "int8", "refused": refused, "bytes": size,
        "latency_s": latency_s, "accuracy": accuracy,
    }  # fmt: skip


def test_a_file_is_beaten_only_by_one_that_is_better_in_everything_and_keeps_the_limit() -> None:
    own = file("the default", 100, 1e-3, 90.0)
    better, refused = file("--rank 0.5", 99, 9e-4, 90.1), file("--optimize size", 50, 1e-4, 99.0, refused=True)
    partly = [file("--precision int8", 99, 9e-4, 90.0), {**better, "format": "tflite"}, {**better, "model": "n"}]
    assert measure_dominance.beaten_by(own, [own, *partly, refused]) == []
    assert measure_dominance.beaten_by(own, [own, *partly, refused, better]) == [better]
    table = measure_dominance.render([own, better])
    assert "| the default | 1 | 1 | m, onnx, by `--rank 0.5`: 0.1 → 0.1 kB, 1000 → 900 µs, 90.00 → 90.10 |" in table
    assert "| `--rank 0.5` | 1 | 0 |  |" in table


def test_claims_between_a_file_and_itself_are_counted_in_both_directions() -> None:
    verdicts = (("no difference", 1.0), ("faster", 1.2), ("slower", 0.5), ("no difference", 1.1))
    rows = [{"verdict": name, "ratio": ratio, "processes": 5, "seconds": 9.0} for name, ratio in verdicts]
    assert "| quick | 4 | 2 (50.0 %) | 2.000 | 5 | 9 s |" in measure_same.render({"quick": rows, "full": []})


def test_a_pack_stands_beside_dense_int8() -> None:
    row = {
        "model": "m", "format": "onnx", "scheme": "int8", "refused": False, "kept": True, "bytes": 1500,
        "int8_bytes": 3000, "faster": 1.5, "interval": [1.4, 1.6], "verdict": "faster", "processes": 5,
    }  # fmt: skip
    line = "| m | ONNX Runtime | int8 | 1.5 | 3.0 | 1.50× (1.40–1.60) | faster | kept |"
    assert line in measure_pairs.render([row])


def test_predictions_are_held_against_counts_with_and_without_convolutions() -> None:
    rows = [
        {"model": "ResNet-8", "format": "onnx", "off": off, "off_as_matrices": 4 * off} for off in (0.01, -0.02, 0.05)
    ]
    table = measure_prices.render([*rows, {"model": "MNIST MLP", "format": "tflite", "off": -0.03}])
    assert "| ResNet-8 | ONNX Runtime | 3 | 2.0 % | 2.0 % | 8.0 % | 8.0 % |" in table
    assert "| MNIST MLP | LiteRT | 1 | 3.0 % | 3.0 % | 3.0 % | 3.0 % |" in table
    assert "| all with convolutions |  | 3 | 2.0 % |" in table
    assert "| all |  | 4 | 2.0 % |" in table


def test_kinds_are_means_over_the_seeds_with_every_verdict() -> None:
    row = {
        "model": "m", "seed": 0, "build": "b", "format": "onnx", "refused": False, "fewer_macs": 3.0, "bytes": 1500,
        "int8_bytes": 3000, "drop": 0.1, "int8_drop": 0.0, "faster": 1.5, "verdict": "faster",
    }  # fmt: skip
    other = {
        **row,
        "seed": 1,
        "fewer_macs": 2.0,
        "drop": 0.4,
        "faster": 1.0,
        "verdict": "no difference",
        "refused": True,
    }
    line = (
        "| VGG | b | ONNX Runtime | 2.50× | 1.5 | 3.0 | +0.25 | +0.00 | 1.25× | 1 faster, 1 no difference, 1 refused |"
    )
    assert line in built_here.table_of([row, other], {"m": "VGG"})


def test_an_experiment_goes_on_where_it_was_and_keeps_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = [[{"model": "b", "size": 2}]]
    monkeypatch.setattr(resumable.figures_file, "rows", lambda _: list(kept[-1]))
    monkeypatch.setattr(resumable.figures_file, "store", lambda _, figures: kept.append(list(figures["rows"])))
    monkeypatch.setattr(resumable.figures_file, "load", lambda _: {})
    shown: list[str] = []
    monkeypatch.setattr(resumable, "put_section", lambda *given: shown.append(given[-1]))
    asked: list[str] = []

    def measure(model: str) -> list[Any]:
        asked.append(model)
        return [{"size": 1}]

    parser = resumable.options("command", "about", ["a", "b", "c"])
    for arguments in (["--only", "a"], [], ["--render"]):
        given = parser.parse_args(arguments)
        keys = [{"model": name} for name in "abc"]
        resumable.carry_out("n", "command", keys, measure, lambda rows: "".join(r["model"] for r in rows), given)
    assert asked == ["a", "c"], "b was there"
    assert [[row["model"] for row in rows] for rows in kept] == [["b"], ["a", "b"], ["a", "b", "c"]]
    assert shown == ["ab", "abc", "abc"]


def test_files_of_a_board_stand_beside_those_that_are_published() -> None:
    row = {
        "model": "ad", "target": "rpi4", "file": "pack", "inputs": [157, 39], "max_drop": 66.0, "bytes": 45600,
        "macs": 264192, "instructions": 120000, "misses": {"L1d": 900, "L2": 12}, "refused": False, "low_rank": 9,
        "agree": 0.5, "sqnr_db": 31.25,
    }  # fmt: skip
    published = {**row, "file": "int8", "low_rank": 0, "model": "kws", "refused": True}
    table = measure_tiny.render([row, published])
    assert "AD01: windows of one recording, 157 and 39, 66.00 allowed; keyword spotting" in table
    assert "| anomaly detection, AD01 | pack | 9 | 45.6 | 264 k | 120 k | 900 | 12 |  | 31.2 |" in table
    assert "| keyword spotting, DS-CNN | int8 (refused) |  | 45.6 | 264 k | 120 k | 900 | 12 | 0.5000 | 31.2 |" in table


def test_pairs_of_parts_that_a_smaller_one_is_as_good_as_are_left_out() -> None:
    def row(file: str, size: int, choice: float, **more: Any) -> dict[str, Any]:
        scored = {"file": file, "bytes": [size, size], "chosen": False, "noisy_db": 5.0}
        return scored | {"si_sdr_db": {"choice": choice, "test": choice + 1}} | more

    dense = [row("fp32", 4000, 12.0, bound_s=[0.001, 0.003]), row("int8", 1000, 11.9, bound_s=[0.001, 0.002])]
    pairs = [row("large", 900, 11.8), row("chosen", 700, 11.9, chosen=True, bound_s=[0.001, 0.002])]
    table = measure_dtln.render([*dense, *pairs, row("small", 500, 11.0)])
    assert "| fp32 | 4.0 | 4.0 | 8.0 | +0.00 | +0.00 | 1.00 – 3.00 | 9.6 (+380%) |" in table
    assert "| **chosen** | 0.7 | 0.7 | 1.4 | +0.10 | +0.10 | 1.00 – 2.00 |  |" in table
    assert "| small | 0.5" in table
    assert "| large |" not in table
    assert "5.00 dB before, 13.00 dB behind" in table


def test_parts_that_change_nothing_give_a_sound_back_in_time_with_itself() -> None:
    class Part:
        def __init__(self, *shape: int, out: float) -> None:
            self.inputs = [TensorSpec("x", shape, np.dtype("f4")), TensorSpec("h", (1, 2, 4, 2), np.dtype("f4"))]
            self.out = out

        def run(self, feed: dict[str, Any]) -> list[Any]:
            return [np.ones_like(feed["x"]) if self.out == 1 else feed["x"] * self.out, feed["h"] + 1]

    noisy = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    parts: Any = [Part(1, 1, 257, out=1), Part(1, 1, 512, out=dtln.STEP / dtln.FRAME)]
    answer, (first, second) = dtln.suppressed(parts, noisy)
    np.testing.assert_allclose(answer, noisy, atol=1e-5)
    assert len(first) == len(second)
    assert first[3]["h"].min() == first[3]["h"].max() == 3
    assert dtln.si_sdr_db(2 * noisy + 1e-3 * noisy[::-1], noisy) > 50


def test_mel_bands_are_triangles_that_overlap_by_halves() -> None:
    matrix = tiny_models._mel_matrix(40, 257, 20.0, 4000.0)
    assert matrix.shape == (257, 40)
    assert (matrix >= 0).all()
    assert not matrix[0].any()
    np.testing.assert_allclose(matrix[10:120].sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("drop", "bound", "refused", "expected"),
    [(0.2, 0.25, False, (0, 1)), (0.4, 0.25, False, (1, 0)), (0.4, 0.5, True, (0, 1)), (0.4, 0.25, True, (0, 0))],
)
def test_a_drop_over_the_limit_counts_unless_the_build_said_so(
    drop: float, bound: float, refused: bool, expected: tuple[int, int]
) -> None:
    row = {"drop": drop, "bound": bound, "max_drop": 0.3, "refused": refused, "bytes": 1, "int8_bytes": 2}
    found = promise.summary([row])
    assert (found.over, found.held) == expected
    assert (found.builds, found.refused, found.of_int8) == (1, int(refused), 0.5)


def test_the_zoo_counts_packs_that_are_larger_or_slower_than_they_may_be() -> None:
    row = {
        "name": "a", "bytes": 4000, "int8_bytes": 1000, "int8_is_rival": True, "pack_bytes": 500, "low_rank": 1,
        "layers": 3, "scheme": "int8", "inputs": "seeded", "agree": 1.0, "sqnr_db": None, "seconds": 5, "exit": 0,
    }  # fmt: skip
    counts = {"int8": {"instructions": 4.2e6, "l2_misses": 999}, "pack": {"instructions": 1.05e6, "l2_misses": -3}}
    kinds = {"linear": {"factors": 1, "no rank saves": 2}, "transposed convolution": {"no layer": 4}}
    measured = {**row, "faster": 2.5, "counts": counts, "kinds": kinds}
    larger = {**row, "name": "b", "pack_bytes": 2000, "sqnr_db": 31.25, "exit": 5, "faster": 0.9}
    allowed = {**larger, "name": "c", "int8_is_rival": False, "faster": 0.98, "counts": None}
    stopped = {"name": "d", "bytes": 100, "exit": 3, "reason": "no\n such | thing"}
    table = zoo.render([measured, larger, allowed, stopped])
    assert "3 of 4 files have a pack, in the geometric mean 0.79 times smaller than int8; 1 are larger" in table
    assert "within the budget: b; of 3 timed here 1 are over 3 % slower than int8: b." in table
    assert (
        "| a | 4.0 | 1.0 | 0.5 | 1 of 3 | int8 | seeded | 1.0000 | equal | 2.50× | 4.2 → 1.05 | 0.999 → 0 | 5 |"
        in table
    )
    assert "| b (exit 5) | 4.0 | 1.0 | 2.0 | 1 of 3 | int8 | seeded | 1.0000 | 31.2 | 0.90× | – | – | 5 |" in table
    assert "| linear | 1 | 3 | 1 | 2 | 0 |" in table
    assert "| transposed convolution | 1 | 4 | – |" in table
    assert "| d | 0.1 | 3 | no such \\| thing |" in table


def test_files_of_the_zoo_have_names_of_their_own() -> None:
    names = [file.name for file in zoo_files.ZOO]
    assert len(set(names)) == len(names)
    assert {"magika/model.onnx", "@mediapipe/pose/pose_landmark_lite.tflite"} <= set(names)


def test_conversions_are_counted_by_file_and_by_opset() -> None:
    done = {
        "name": "a", "bytes": 4000, "sqnr_db": None, "operators": 9, "transposes": 2, "ideal": 1, "real": False,
        "seconds": 1.25,
    }  # fmt: skip
    stopped = {"name": "b", "bytes": 100, "reason": "no | thing"}
    suite = {
        "relu": [7, ["Relu"], "right", ""], "relu_wide": [7, ["Relu"], "cannot", "float64"],
        "erf": [13, ["Erf"], "wrong", "other values"], "bits": [13, ["BitShift"], "cannot", "uint64"],
    }  # fmt: skip
    table = measure_tflite.render({"rows": [done, stopped], "suite": suite, "every": 12})
    assert "1 of 2 files were converted." in table
    assert "one in 12 of the cases" in table
    assert "| a | 4.0 | equal \\* | 9 | 2 | 1 | 1.2 |" in table
    assert "| b | 0.1 | no \\| thing |" in table
    assert "| 7 | 2 | 1 | 0 | 0 | 1 | 100% |" in table
    assert "| all | 4 | 1 | 1 | 0 | 2 | 50% |" in table
    assert "1 of 2 operators (50%) have a case that is right; never: Erf." in table


def test_a_new_section_leaves_the_rest_of_the_page_as_it_is() -> None:
    head, first, last = "# Results\n\nText.\n\n", "## One\n\n<!-- figures:x -->\n1\n", "## Own heading\n\nText.\n"
    page = f"{head}{first}\n## Two\n\nold\n\n{last}"
    assert results_page.with_section(page, "## Two\n\nnew\n") == page.replace("old", "new")
    assert results_page.with_section(page, "## Three\n\nnew\n") == f"{page}\n## Three\n\nnew\n"


def test_a_section_that_is_put_again_leaves_the_page_as_it_is() -> None:
    page = results_page.RESULTS_PAGE.read_text()
    for section in re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]:
        assert results_page.with_section(page, section.rstrip("\n") + "\n") == page


def test_what_stopped_a_conversion_is_one_line_without_the_folder_that_was_worked_in() -> None:
    folder = "/somewhere/edgepack-bench-t2wpo46_"
    err = ModelError(f"{folder}/model.tflite: the runtime refuses the file.\n  | Traceback of {folder}/worker.py")
    assert measure_tflite._told(err) == "model.tflite: the runtime refuses the file."
