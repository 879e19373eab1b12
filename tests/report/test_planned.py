"""The layers of a pack, to the letter."""

# The tables are wider than a line of code on purpose.
# ruff: noqa: E501

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgepack.pack.manifest import PackedFile
from edgepack.report.build import LONG, SHORT, build_report, layer_table
from edgepack.report.inspect import pack_report
from edgepack.report.report import Report
from tests.manifests import whole
from tests.report.shown import text


def layer(name: str, out: int, inn: int, rank: int | None, reason: str, **more: Any) -> dict[str, Any]:
    return {
        "layer": name, "out_features": out, "in_features": inn, "rank": rank, "break_even_rank": (out * inn - 1) // (out + inn),
        "scheme": "int8-dynamic", "reason": reason, "predicted": None,
        "structure": "dense" if rank is None else "low-rank",
        "weight_parameters": out * inn if rank is None else rank * (out + inn), **more,
    }  # fmt: skip


FC1 = layer(
    "fc1", 512, 784, 24, "rank 24 int8-dynamic: 6.1× faster than dense int8-dynamic",
    predicted={"size_bytes": 33_456, "latency_s": 9.79e-6, "loss": 0.00857},
    lost_shares={"truncation": 0.0082, "rounding": 7.3e-06, "latent": 1e-15},
)  # fmt: skip
FC2 = layer("[b]fc2", 10, 512, None, "dense fp32: nothing else was allowed", scheme="fp32")
OTHER = layer("fc3", 10, 512, None, "the planned file has 9 bytes, dense int8 8", scheme=None)
MANIFEST: dict[str, Any] = {
    "model": {"name": "mnist-mlp"},
    "target": {"name": "rpi4"},
    "loss_weighted_by": "output gradients",
    "files": {
        "model.onnx": {
            "scheme": "mixed",
            "size_bytes": 51_200,
            "scheme_chosen_by": "emulated cost table",
            "layers": [FC1, FC2],
        },
        "model.tflite": {
            "scheme": "int8-dynamic-range",
            "size_bytes": 48_000,
            "scheme_chosen_by": "roofline of targets.yaml",
            "layers": [OTHER],
        },
        "baseline/int8.onnx": {"scheme": "int8-dynamic", "size_bytes": 412_000},
    },
}


def test_a_pack() -> None:
    assert text(pack_report(Path("dist/p"), whole(MANIFEST))) == PACK


PACK = """\
dist/p: mnist-mlp for rpi4

model.onnx: mixed, 51.2 kB, chosen by: emulated cost table

 layer     out×in   scheme          rank   break-even   weights      size   latency     loss                    lost   why
 ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
 fc1      512×784   int8-dynamic      24          309      7.7%   33.5 kB   9.79 µs   0.0086   8.2e-03 + 7.3e-06 + 0   rank 24 int8-dynamic: 6.1× faster than
                                                                                                                       dense int8-dynamic
 [b]fc2    10×512   fp32           dense            9    100.0%         –         –        –                       –   dense fp32: nothing else was allowed


model.tflite: int8-dynamic-range, 48.0 kB, chosen by: roofline of targets.yaml

 layer   out×in   scheme    rank   break-even   weights   size   latency   loss   lost   why
 ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
 fc3     10×512   –        dense            9    100.0%      –         –      –      –   the planned file has 9 bytes, dense int8 8

latency: of the layer alone, predicted. loss: predicted, in nats of the answer's change to second order, quantization included. lost: share of the layer's
output energy on the calibration data: of factors to truncation + rounding of weights + rounding of what flows between the two, of a dense layer to rounding."""


def test_a_pack_without_gradients_says_what_its_losses_are() -> None:
    shown = text(pack_report(Path("p"), whole(MANIFEST | {"loss_weighted_by": "output energy"})))
    assert "loss: predicted share of the layer's output energy, quantization included." in " ".join(shown.split())


def test_a_pack_without_a_model_file_has_no_table() -> None:
    shown = text(
        pack_report(
            Path("p"), whole(MANIFEST | {"files": {"baseline/int8.onnx": MANIFEST["files"]["baseline/int8.onnx"]}})
        )
    )
    assert shown.splitlines()[0] == "p: mnist-mlp for rpi4"
    assert "baseline" not in shown


def table(headers: tuple[str, ...] = SHORT) -> Report:
    """The first layer alone."""
    entry = whole(MANIFEST).files["model.onnx"]
    assert isinstance(entry, PackedFile)
    return Report(blocks=(layer_table(entry.layers[:1], "model.onnx", headers),))


def test_short_and_long_tables() -> None:
    assert text(table()).splitlines()[0].split() == list(SHORT)
    assert text(table(LONG)).splitlines()[0].split() == list(LONG)


def test_long_reasons_stand_below_where_there_is_no_room_beside() -> None:
    wide, narrow = text(table(), 160), text(table(), 80)
    assert wide.splitlines()[0].split()[-1] == "why"
    assert all(len(line) <= 80 for line in narrow.splitlines())
    head, _, reasons = narrow.partition("\nwhy:\n")
    assert "why" not in head
    entry = whole(MANIFEST).packed("onnx").layers[0]
    assert " ".join(reasons.split()) == f"{entry.layer}: {entry.reason}"


def test_what_does_not_fit_goes_into_a_table_of_its_own() -> None:
    every = text(table(LONG), 160)
    for width in (100, 80, 60, 40):
        narrow = text(table(LONG), width)
        assert all(len(line) <= width for line in narrow.splitlines())
        for word in every.split():
            assert word.strip("─") in narrow, "no figure is wrapped or lost"
    files = text(Report(blocks=build_report(Path("p"), whole(MANIFEST)).blocks[:1]), 160)
    for width in (82, 81, 80, 79, 70, 60):
        narrow = text(Report(blocks=build_report(Path("p"), whole(MANIFEST)).blocks[:1]), width)
        assert all(len(line) <= width for line in narrow.splitlines())
        for word in files.split():
            assert word.strip("─") in narrow, (width, word)


def test_what_stands_in_a_layers_place_shows_in_its_scheme_and_rank() -> None:
    both = layer("fc1", 96, 160, 8, "why", scheme="nbits4", structure="low-rank-correction")
    other = {"method": "kmeans", "share": 0.25, "parameters": 4000}
    code = layer("fc2", 96, 160, None, "why", scheme="constexpr", structure="constexpr", alternative=other)
    onnx = MANIFEST["files"]["model.onnx"] | {"layers": [FC1, FC2, both, code]}
    entry = whole(MANIFEST | {"files": MANIFEST["files"] | {"model.onnx": onnx}}).packed("onnx")
    rows = text(Report(blocks=(layer_table(entry.layers, "model.onnx"),))).splitlines()[-4:]
    assert rows[2].split()[:5] == ["fc1", "96×160", "nbits4", "+", "correction"]
    assert rows[2].split()[5] == "8"
    assert rows[3].split()[:5] == ["fc2", "96×160", "kmeans", "constexpr", "–"]
