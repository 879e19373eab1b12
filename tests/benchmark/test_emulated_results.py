"""Emulated results: round trip, and what a stranger's file may not hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepack.benchmark.results import EmulatedResult, EmulatedVariant, Emulation, LayerCounts
from edgepack.benchmark.results_file import load_emulated, load_results, problems, save_result
from edgepack.emulator.counts import Counts
from edgepack.errors import PackError
from tests.benchmark.test_results import RESULT as MEASURED
from tests.benchmark.test_results import put

COUNTS = Counts(100.0, 40.5, 320.0, {"L1i": 3.0, "L1d": 5.25, "L2": -0.5})
LAYER = LayerCounts("0.weight", True, Counts(-2.0, 0.0, 0.0, {"L1i": 0.0, "L1d": -1.0, "L2": 0.0}))
VARIANT = EmulatedVariant("edgepack", "onnx", "model.onnx", 123, "ab" * 32, (COUNTS, COUNTS), (LAYER,), None, 84.5)
CACHES = ("l1i=49152:3:64", "l1d=32768:2:64", "l2=1048576:16:64:shared")
EMULATION = Emulation(CACHES, "cortex-a72", "qemu 7.2", {"onnxruntime": "1.31"}, ("no LSE",))
RESULT = EmulatedResult(
    created="2026-01-02T03:04:05+00:00",
    edgepack_version="0.1.0",
    model="mlp",
    target="rpi4",
    threads=1,
    inputs="seeded",
    emulation=EMULATION,
    variants=(VARIANT, replace(VARIANT, name="dense-int8", layers=(), layers_missing="no", agreement_db=None)),
)


def save(result: EmulatedResult, pack: Path) -> Path:
    path = pack / "results" / result.file_name
    save_result(result, path)
    return path


def test_round_trip(tmp_path: Path) -> None:
    path = save(RESULT, tmp_path)
    assert path.name == "rpi4.emulated.1t.json"
    assert load_emulated(tmp_path) == [RESULT]
    assert list(load_emulated(tmp_path)[0].variants[0].rounds[0].misses) == ["L1i", "L1d", "L2"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_each_loader_takes_its_own_kind(tmp_path: Path) -> None:
    save(RESULT, tmp_path)
    save_result(MEASURED, tmp_path / "results" / MEASURED.file_name)
    assert load_results(tmp_path) == [MEASURED]
    assert load_emulated(tmp_path) == [RESULT]
    assert load_emulated(tmp_path / "nowhere") == []


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(1, 1e12), min_size=1, max_size=9))
def test_counts_come_back_to_the_last_bit(tmp_path: Path, instructions: list[float]) -> None:
    rounds = tuple(replace(COUNTS, instructions=value) for value in instructions)
    result = replace(RESULT, variants=(replace(VARIANT, rounds=rounds),))
    save(result, tmp_path)
    assert load_emulated(tmp_path) == [result]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put("schema_version", value=2), "schema_version: Input should be 1"),
        (put("kind", value="edgepack-bench"), "not a result of this edgepack"),
        (put("kind", value="x"), "kind: Input should be 'edgepack-bench' or 'edgepack-emulated'"),
        (put("extra", value=1), "extra: Unexpected keyword argument"),
        (put("variants", 0, "rounds", 0, "extra", value=1), "variants.0.rounds.0.extra: Unexpected keyword argument"),
        (put("variants", value=[]), "0 variants; expected 1 to 64"),
        (put("variants", 0, "name", value="dense-int8"), "two variants have the same name and format"),
        (put("variants", 0, "name", value="\x1b[2Jx"), "a name holds control characters"),
        (put("variants", 0, "file", value="x\u2028y"), "a name holds control characters"),
        (put("variants", 0, "sha256", value="x"), "variant edgepack: its size or hash is none"),
        (put("variants", 0, "size_bytes", value=-1), "variant edgepack: its size or hash is none"),
        (put("variants", 0, "rounds", value=[]), "variant edgepack: 0 rounds; expected 1 to 1000"),
        (put("variants", 0, "rounds", 0, "instructions", value=0.0), "its counts are not positive"),
        (put("variants", 0, "rounds", 0, "bytes", value=-1), "its counts are not positive"),
        (put("variants", 0, "rounds", 0, "instructions", value=float("inf")), "Input should be a finite number"),
        (put("variants", 0, "rounds", 0, "instructions", value="9"), "Input should be a valid number"),
        (put("variants", 0, "rounds", 1, "misses", "L2", value=1e9), "more misses than its instructions"),
        (put("variants", 0, "rounds", 1, "misses", "L2", value=-1e9), "more misses than its instructions"),
        (put("variants", 0, "rounds", 1, "misses", value={"L1d": 1.0}), "its misses are not by L1i, L1d, L2"),
        (put("variants", 0, "rounds", 1, "misses", "L3", value=1.0), "its misses are not by L1i, L1d, L2"),
        (put("variants", 0, "layers", 0, "counts", "misses", value={}), "its misses are not by L1i, L1d, L2"),
        (put("variants", 0, "layers", 0, "name", value="a\nb"), "a name holds control characters"),
        (put("variants", 0, "layers", 0, "layer", value=1), "layers.0.layer: Input should be a valid boolean"),
        (put("variants", 0, "layers", 0, "name", value="x" * 2000), "String should have at most 1000 characters"),
        (put("variants", 1, "layers_missing", value="\x00"), "a name holds control characters"),
        (put("variants", 0, "agreement_db", value=201), "an agreement of 201 dB; expected at most 200"),
        (put("threads", value=0), "threads is 0"),
        (put("target", value="../../x"), "its target's name is none"),
        (put("target", value="rpi4\n"), "a name holds control characters"),
        (put("emulation", "caches", value=[]), "its caches are none"),
        (put("emulation", "caches", 2, value="l3=1:1:1"), "its caches are none"),
        (put("emulation", "caches", 2, value="l2=1:1"), "its caches are none"),
        (put("emulation", "caches", 2, value="l2=0:1:64"), "its caches are none"),
        (put("emulation", "notes", 0, value="\x9b31m"), "a name holds control characters"),
        (put("emulation", "runtimes", value={"\t": "1"}), "a name holds control characters"),
    ],
)
def test_a_strangers_file_is_checked(tmp_path: Path, change: Callable[[dict[str, Any]], None], expected: str) -> None:
    path = save(RESULT, tmp_path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(PackError) as caught:
        load_emulated(tmp_path)
    assert expected in caught.value.message
    assert caught.value.exit_code == 3
    with pytest.raises(PackError):  # a damaged file is an error for whoever reads the pack
        load_results(tmp_path)


def test_a_good_result_has_no_problems() -> None:
    assert list(problems(RESULT)) == []
    assert list(problems(MEASURED)) == []


def test_layers_and_rounds_have_an_end() -> None:
    many = replace(VARIANT, rounds=(COUNTS,) * 1001)
    assert list(problems(replace(RESULT, variants=(many,)))) == ["variant edgepack: 1001 rounds; expected 1 to 1000"]
    twice = replace(VARIANT, layers=(LAYER, LAYER))
    assert list(problems(replace(RESULT, variants=(twice,)))) == ["variant edgepack: two layers have the same name"]
    wide = replace(VARIANT, layers=tuple(replace(LAYER, name=str(number)) for number in range(10_001)))
    assert list(problems(replace(RESULT, variants=(wide,)))) == [
        "variant edgepack: 10001 layers; expected at most 10000"
    ]
