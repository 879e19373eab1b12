"""What `edgepack build` says at its end, to the letter."""

# The tables are wider than a line of code on purpose.
# ruff: noqa: E501

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from edgepack.report.build import build_report
from edgepack.report.render import csv
from tests.manifests import whole
from tests.report.shown import text


def planned(layer: str, out: int, inn: int, rank: int | None, scheme: str, reason: str) -> dict[str, Any]:
    return {
        "layer": layer, "out_features": out, "in_features": inn, "rank": rank, "break_even_rank": 9, "scheme": scheme, "reason": reason,
        "structure": "dense" if rank is None else "low-rank",
        "weight_parameters": out * inn if rank is None else rank * (out + inn),
    }  # fmt: skip


def file(
    fmt: str, scheme: str, size: int, metric: float | None, scored_on: str | None = "confirmation"
) -> dict[str, Any]:
    found = {"format": fmt, "scheme": scheme, "size_bytes": size, "metric": metric, "scored_on": scored_on}
    return found if metric is None else found | {"confirmation": dropped(98.0 - metric)}


def dropped(drop: float) -> dict[str, Any]:
    return {
        "metric": "accuracy", "dense": 98.0, "emitted": 98.0 - drop, "drop": drop, "bound": drop + 0.1,
        "confidence": 0.9, "standard_error": 0.05, "samples": 1334, "output": 0,
    }  # fmt: skip


LAYERS = [
    planned("fc1", 512, 784, 24, "int8-dynamic", "rank 24 int8-dynamic: 6.1× faster than dense int8-dynamic"),
    planned("fc2", 10, 512, None, "fp32", "dense fp32: rank 8 saves too little, as the break-even rank is 9"),
]
MANIFEST: dict[str, Any] = {
    "model": {"name": "mnist-mlp"},
    "target": {"name": "rpi4"},
    "metric": {
        "name": "accuracy",
        "why": "labels",
        "validated": True,
        "outputs": [
            {"output": 0, "metric": "accuracy", "labelled": True, "why": "labels are the classes that it scores"}
        ],
    },
    "data": {"labelled": True},
    "warnings": [],
    "files": {
        "model.onnx": file("onnx", "mixed", 51_200, 97.60) | {"layers": deepcopy(LAYERS)},
        "model.tflite": file("tflite", "int8-dynamic-range", 48_000, 98.004) | {"layers": deepcopy(LAYERS)},
        "baseline/fp32.onnx": file("onnx", "fp32", 1_630_000, 98.00),
        "baseline/int8.onnx": file("onnx", "int8-dynamic", 412_000, 97.95),
        "baseline/fp32.tflite": file("tflite", "fp32", 1_629_000, 98.00),
    },
}


def test_build() -> None:
    assert text(build_report(Path("dist/p"), whole(MANIFEST))) == BUILD


BUILD = """\
dist/p: mnist-mlp for rpi4, metric: accuracy

 file                   scheme                  size   vs fp32   vs int8   accuracy    drop   at most
 ────────────────────────────────────────────────────────────────────────────────────────────────────
 model.tflite           int8-dynamic-range   48.0 kB     33.9×         –      98.00   +0.00     +0.10
 model.onnx             mixed                51.2 kB     31.8×      8.0×      97.60   +0.40     +0.50
 baseline/int8.onnx     int8-dynamic          412 kB      4.0×         –      97.95   +0.05     +0.15
 baseline/fp32.tflite   fp32                 1.63 MB         –         –      98.00   +0.00     +0.10
 baseline/fp32.onnx     fp32                 1.63 MB         –      0.3×      98.00   +0.00     +0.10

on the confirmation samples: accuracy, since labels are the classes that it scores
at most: 90% sure with all plans that were looked at, one-sided, on 1334 samples kept back from every choice
model.onnx, model.tflite: 1 of 2 layers low-rank (rank 24); 1 in int8-dynamic, 1 in fp32
-v, or edgepack inspect dist/p, shows each layer with its rank and its reason
dist/p/model.onnx: 51.2 kB, 8.0× smaller than dense int8, accuracy 97.60, drop +0.40 (at most +0.50)
dist/p/model.tflite: 48.0 kB, 33.9× smaller than dense fp32, accuracy 98.00, drop +0.00 (at most +0.10)"""


def test_build_in_80_columns_is_one_table() -> None:
    shown = text(build_report(Path("dist/p"), whole(MANIFEST)), width=80)
    assert shown.startswith(NARROW)
    assert max(map(len, shown.splitlines())) <= 80


NARROW = """\
dist/p: mnist-mlp for rpi4, metric: accuracy

                                                    vs   vs                   at
file                 scheme                size   fp32 int8 accuracy  drop  most
────────────────────────────────────────────────────────────────────────────────
model.tflite         int8-dynamic-range 48.0 kB  33.9×    –    98.00 +0.00 +0.10
model.onnx           mixed              51.2 kB  31.8× 8.0×    97.60 +0.40 +0.50
baseline/int8.onnx   int8-dynamic        412 kB   4.0×    –    97.95 +0.05 +0.15
baseline/fp32.tflite fp32               1.63 MB      –    –    98.00 +0.00 +0.10
baseline/fp32.onnx   fp32               1.63 MB      – 0.3×    98.00 +0.00 +0.10
"""


def test_reasons_are_shown_where_they_are_asked_for() -> None:
    shown = text(build_report(Path("dist/p"), whole(MANIFEST), reasons=True))
    assert REASONS in shown
    assert "inspect" not in shown


REASONS = """\
layers of model.onnx, model.tflite

 layer    out×in   scheme          rank   weights   why
 ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────
 fc1     512×784   int8-dynamic      24      7.7%   rank 24 int8-dynamic: 6.1× faster than dense int8-dynamic
 fc2      10×512   fp32           dense    100.0%   dense fp32: rank 8 saves too little, as the break-even rank is 9
"""


def test_data_have_a_row_for_each_layer_anyway() -> None:
    table = csv.render(build_report(Path("dist/p"), whole(MANIFEST)))
    assert "break-even rank is 9" in table
    assert table == csv.render(build_report(Path("dist/p"), whole(MANIFEST), reasons=True))


def test_a_file_that_was_scored_on_other_samples_says_so() -> None:
    manifest = deepcopy(MANIFEST)
    manifest["files"]["model.onnx"]["scored_on"] = "validation"
    shown = text(build_report(Path("p"), whole(manifest)))
    assert " 97.60   +0.40     +0.50   validation\n" in shown
    assert "\naccuracy, since labels" in shown


def test_of_a_file_alone_only_that_is_shown() -> None:
    report = build_report(Path("models/small.onnx"), whole(MANIFEST))
    shown = text(report)
    assert shown.startswith("models/small.onnx: mnist-mlp for rpi4, metric: accuracy\n")
    assert " small.onnx   mixed    51.2 kB     31.8×      8.0×      97.60   +0.40     +0.50\n" in shown
    assert "-v shows each layer" in shown
    assert shown.endswith(
        "small.onnx: 51.2 kB, 8.0× smaller than dense int8, accuracy 97.60, drop +0.40 (at most +0.50)"
    )
    assert not any(name in shown for name in ("model.onnx", "tflite", "baseline"))
    assert report.record == {"file": "models/small.onnx", "manifest": whole(MANIFEST).record()}


def test_build_with_a_plan_per_format_shows_each() -> None:
    manifest = deepcopy(MANIFEST)
    manifest["files"]["model.tflite"]["layers"][0]["rank"] = 16
    shown = text(build_report(Path("p"), whole(manifest), reasons=True))
    onnx, tflite = shown.index("layers of model.onnx"), shown.index("layers of model.tflite")
    assert " 24 " in shown[onnx:tflite]
    assert " 16 " in shown[tflite:]
    assert " 24   " not in shown[tflite:]
    counted = text(build_report(Path("p"), whole(manifest)))
    assert "model.onnx: 1 of 2 layers low-rank (rank 24)" in counted
    assert "model.tflite: 1 of 2 layers low-rank (rank 16)" in counted


def test_build_without_data_or_baseline() -> None:
    manifest = deepcopy(MANIFEST)
    manifest |= {"metric": {"name": "agreement", "validated": False}, "warnings": ["no [data]", "second"]}
    manifest["files"] = {
        "model.onnx": MANIFEST["files"]["model.onnx"] | {"metric": None, "scored_on": None, "confirmation": None}
    }
    shown = text(build_report(Path("p"), whole(manifest))).splitlines()
    assert shown[0] == "p: mnist-mlp for rpi4, metric: none, since there are no data"
    assert shown[1:3] == ["warning: no [data]", "warning: second"]
    assert shown[6].split() == ["model.onnx", "mixed", "51.2", "kB", "–", "–"]
    assert shown[-1] == "p/model.onnx: 51.2 kB"


def test_build_says_what_agreement_means() -> None:
    manifest = MANIFEST | {"metric": {"name": "agreement", "validated": True}, "data": {"labelled": False}}
    first = text(build_report(Path("p"), whole(manifest))).splitlines()[0]
    assert first == "p: mnist-mlp for rpi4, metric: agreement with the original model (no labels)"


def test_build_says_what_travels_where_that_was_asked() -> None:
    manifest = deepcopy(MANIFEST)
    manifest["files"]["model.onnx"]["archive_bytes"] = 38_400
    lines = text(build_report(Path("dist/p"), whole(manifest))).splitlines()
    assert lines[2].split()[:6] == ["file", "scheme", "size", "on", "the", "wire"]
    assert lines[4].split()[2:6] == ["48.0", "kB", "–", "33.9×"], "the TFLite file was not packed"
    assert lines[5].split()[2:7] == ["51.2", "kB", "38.4", "kB", "31.8×"]
    assert "on the wire" not in text(build_report(Path("dist/p"), whole(MANIFEST)))


def test_build_names_the_other_corners_in_a_line_each() -> None:
    manifest = deepcopy(MANIFEST)
    manifest["files"]["model.onnx"]["corners"] = [
        {"optimize": "balanced", "size_bytes": 51_200, "latency_s": 5.05e-5},
        {"optimize": "latency", "size_bytes": 232_000, "latency_s": 2.99e-5},
        {"optimize": "size", "size_bytes": 43_000, "latency_s": 7.1e-5},
    ]
    report = build_report(Path("p"), whole(manifest))
    lines = text(report).splitlines()
    first = lines.index(
        "--optimize latency would make model.onnx 232 kB instead of 51.2 kB and 29.9 µs instead of 50.5 µs "
        "(predicted, at an equal loss)"
    )
    assert lines[first + 1].startswith("--optimize size would make model.onnx 43.0 kB instead of 51.2 kB and 71.0 µs ")
    assert report.record["manifest"]["files"]["model.onnx"]["corners"] == manifest["files"]["model.onnx"]["corners"]
    assert "--optimize" not in text(build_report(Path("p"), whole(MANIFEST)))
