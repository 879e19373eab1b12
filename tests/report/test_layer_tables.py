"""The tables of inspect, doctor, targets and build, to the letter."""

# The tables are wider than a line of code on purpose.
# ruff: noqa: E501

from __future__ import annotations

import io
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from edgepack.doctor import Finding
from edgepack.emulator.install import Installed
from edgepack.report.build_summary import render_build
from edgepack.report.doctor_table import render_doctor, render_installed
from edgepack.report.layers import Energy, render_layers
from edgepack.report.tables import plain_table
from edgepack.report.targets_table import bandwidth_cell, cache_cell, render_target, render_targets
from edgepack.targets import Bandwidth, Cache, Cluster, KnownBad, Target


def text(renderable: RenderableType, width: int = 160) -> str:
    """As a terminal of this width shows it, without the blanks at the ends of lines."""
    stream = io.StringIO()
    Console(file=stream, width=width).print(renderable)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).strip("\n")


def test_cells_are_not_markup_and_long_ones_fold() -> None:
    table = plain_table(("name", "n"), [("[red]x[/red] [/]", "1"), ("a" * 30, "22")], right=("n",))
    assert (
        text(table, 26)
        == """\
 name                   n
 ────────────────────────
 [red]x[/red] [/]       1
 aaaaaaaaaaaaaaaaaaa   22
 aaaaaaaaaaa"""
    )


@dataclass
class Layer:
    name: str
    op: str
    out_features: int
    in_features: int
    rows: int | None
    bytes_share: float
    macs_share: float | None
    break_even: int
    rank_90: int
    rank_99: int
    uses: int = 1
    weight_bytes: int = 0
    break_even_int8_int4: int = 0
    energy: Energy = "output"


@dataclass
class Model:
    model: str
    weight_bytes: int
    linear_bytes: int
    method: str
    layers: list[Layer]
    has_data: bool = True


FC1 = Layer("fc1", "Gemm", 512, 784, 1, 0.9838, 0.9874, 309, 12, 41, break_even_int8_int4=154)
FC2 = Layer("fc2.weight", "MatMul", 10, 512, None, 0.0126, None, 9, 7, 9, uses=3, break_even_int8_int4=4)


def test_layers_of_inspect() -> None:
    report = Model("m.onnx", 1_628_160, 1_626_112, "whitened", [FC1, replace(FC2, rank_99=10)])
    assert text(render_layers(report)) == LAYERS


LAYERS = """\
m.onnx: 1.63 MB of weights, 100% of them in 2 linear layers

 layer        op           out×in   rows   bytes    MACs   break-even   int8 vs int4   rank 90 %   rank 99 %   pays
 ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────
 fc1          Gemm        512×784      1   98.4%   98.7%          309            154          12          41   yes
 fc2.weight   MatMul ×3    10×512      –    1.3%       –            9              4           7          10   no

break-even: a pair of this rank or less has fewer weights and multiplications than the dense layer at the same precision (fp32 or int8); int8 vs int4: the same
in bytes, an int8 pair against a dense int4 layer.
rank 90 % / 99 %: keeps that share of output energy on the calibration data. pays: rank 99 % is not above break-even."""


def test_layers_without_data() -> None:
    shown = text(render_layers(Model("m.onnx", 0, 0, "svd", [replace(FC2, energy="weight")], has_data=False)))
    assert shown.startswith("m.onnx: 0 B of weights, 0% of them in 1 linear layers")
    assert "keeps that share of weight energy (no data)" in shown
    assert shown.splitlines()[4].endswith("yes"), "rank 99 % equal to break-even still pays"


@pytest.mark.parametrize(
    ("energies", "said"),
    [
        (("weight",), "weight energy"),
        (("output", "output"), "output energy on the calibration data"),
        (("weighed output",), "output energy on the calibration data, weighed by output gradients"),
        (
            ("output", "weighed output", "weight", "weighed output"),
            "output energy on the calibration data, weighed by output gradients; in l0 of output energy on the "
            "calibration data; in l2 of weight energy",
        ),
    ],
)
def test_what_ranks_keep_a_share_of_is_said_as_it_is(energies: tuple[Energy, ...], said: str) -> None:
    layers = [replace(FC2, name=f"l{number}", energy=energy) for number, energy in enumerate(energies)]
    shown = text(render_layers(Model("m.onnx", 0, 0, "two-sided", layers)), width=400)
    assert f"rank 90 % / 99 %: keeps that share of {said}. pays:" in shown


def test_doctor() -> None:
    tools = [
        Finding("onnxruntime", "runs .onnx files", "1.31.0", "pip install onnxruntime"),
        Finding("ai-edge-litert", "runs .tflite files", "2.4.0", "pip install 'edgepack[tflite]'", tested="2.3.0"),
        Finding("adb", "reaches Android devices", None, "apt-get install adb"),
        Finding("emulator aarch64", "counts", None, "edgepack emulator install", "cc, the aarch64 system"),
    ]
    assert text(render_doctor(tools)) == DOCTOR


DOCTOR = """\
 tool               for                       here
 ──────────────────────────────────────────────────────────────────────────────────────────────────────
 onnxruntime        runs .onnx files          1.31.0
 ai-edge-litert     runs .tflite files        2.4.0, newer than the tested 2.3.0
 adb                reaches Android devices   missing: apt-get install adb
 emulator aarch64   counts                    missing cc, the aarch64 system: edgepack emulator install"""


def test_emulator_install() -> None:
    arm = Installed("aarch64", "/usr/bin/qemu-aarch64", "/cache/plugin/a.so", "/cache/root-[x]", "1.31.1")
    assert text(render_installed(arm)) == INSTALLED
    assert "root folder" not in text(render_installed(replace(arm, arch="x86_64", root=None)))


INSTALLED = """\
 emulator aarch64
 ─────────────────────────────────────────
 QEMU                /usr/bin/qemu-aarch64
 cache model         /cache/plugin/a.so
 root folder         /cache/root-[x]
 onnxruntime there   1.31.1"""

K, M, G = 1 << 10, 1 << 20, 1 << 30
BIG = Cluster(
    "big", "cortex-a76", 2, 2300, L1d=Cache(64 * K, "core", 4), L2=Cache(512 * K, "core", None, 64, "estimate"),
    L3=Cache(3 * M, "all", 12), read=Bandwidth(17.0, 21.0),
)  # fmt: skip
LITTLE = Cluster("little", "cortex-a55", 4, None)
BOARD = Target(
    "board", "A board", "aarch64", ("neon", "dotprod"), (BIG, LITTLE), 4 * G, 32 * G,
    runtimes={"onnx": "onnxruntime", "tflite": "ai-edge-litert"},
    known_bad=(KnownBad("onnxruntime", "1.21.0", "dies"),), hosts=("pi@board.local",),
)  # fmt: skip
OLD = Target(
    "old", "An old one", "armv7l", (), (replace(LITTLE, cores=1, frequency_mhz=1000, frequency_source="estimate"),),
    512 * M, no_runtime_reason="no wheels",
)  # fmt: skip


def test_targets_list() -> None:
    assert text(render_targets([BOARD, OLD])) == TARGETS


TARGETS = """\
 target   CPU                               SIMD           L1d      L2   L3    RAM   read GB/s   formats
 ────────────────────────────────────────────────────────────────────────────────────────────────────────────
 board    2×cortex-a76 2.3 + 4×cortex-a55   neon dotprod   64K   ~512K   3M     4G       17–21   onnx, tflite
 old      1×cortex-a55 1                    –                –       –    –   512M           –   none"""


def test_target_show() -> None:
    assert text(render_target(BOARD)) == BOARD_SHOWN
    assert text(render_target(OLD)) == OLD_SHOWN


BOARD_SHOWN = """\
 board
 ─────────────────────────────────────────────────────────────────
 description                A board
 arch                       aarch64
 SIMD                       neon dotprod
 RAM                        4G–32G
 cluster big                2× cortex-a76, 2300 MHz
   instructions per cycle   –
   L1d                      64K, 4-way, 64 B lines, shared by core
   L1i                      –
   L2                       ~512K, 64 B lines, shared by core
   L3                       3M, 12-way, 64 B lines, shared by all
   read, one core           17–21 GB/s
 cluster little             4× cortex-a55
   instructions per cycle   –
   L1d                      –
   L1i                      –
   L2                       –
   L3                       –
   read, one core           –
 onnx                       onnxruntime
 tflite                     ai-edge-litert
 known bad                  onnxruntime 1.21.0: dies
 host                       pi@board.local"""
OLD_SHOWN = """\
 old
 ─────────────────────────────────────────────────────────────
 description                An old one
 arch                       armv7l
 SIMD                       –
 RAM                        512M
 cluster little             1× cortex-a55, 1000 MHz (estimate)
   instructions per cycle   –
   L1d                      –
   L1i                      –
   L2                       –
   L3                       –
   read, one core           –
 no runtime                 no wheels"""


@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        (None, "–"),
        (Cache(32 * K, "core"), "32K"),
        (Cache(1536 * K, "core"), "1.5M"),
        (Cache(8 * M, "all", source="estimate"), "~8M"),
        (Cache(48 * K, "core", source="probed"), "48K"),
        (Cache(512, "core"), "512"),
        (Cache(1 * G, "all"), "1G"),
    ],
)
def test_caches(cache: Cache | None, expected: str) -> None:
    assert cache_cell(cache) == expected


def test_bandwidths() -> None:
    assert bandwidth_cell(None) == "–"
    assert bandwidth_cell(Bandwidth(3.7, 4.4)) == "3.7–4.4"
    assert bandwidth_cell(Bandwidth(5.0, 5.0, "estimate")) == "~5"


def planned(layer: str, out: int, inn: int, rank: int | None, limit: int, reason: str) -> dict[str, Any]:
    return {
        "layer": layer, "out_features": out, "in_features": inn, "rank": rank, "break_even_rank": limit, "reason": reason,
        "structure": "dense" if rank is None else "low-rank",
        "weight_parameters": out * inn if rank is None else rank * (out + inn),
    }  # fmt: skip


def file(fmt: str, scheme: str, size: int, metric: float | None, scored_on: str | None = "guard") -> dict[str, Any]:
    return {"format": fmt, "scheme": scheme, "size_bytes": size, "metric": metric, "scored_on": scored_on}


HEAD = planned("fc2", 10, 512, None, 9, "a pair of rank 8 saves too little: break-even rank is 9")
MANIFEST: dict[str, Any] = {
    "model": {"name": "mnist-mlp"},
    "target": {"name": "rpi4"},
    "metric": {"name": "accuracy", "guarded": True},
    "data": {"labelled": True},
    "warnings": [],
    "files": {
        "model.onnx": file("onnx", "int8-static-qdq", 51_200, 97.60)
        | {"layers": [planned("fc1", 512, 784, 24, 309, "smallest rank"), HEAD]},
        "model.tflite": file("tflite", "int8-dynamic-range", 48_000, 98.004)
        | {"layers": [planned("fc1", 512, 784, 24, 309, "smallest rank"), HEAD]},
        "baseline/fp32.onnx": file("onnx", "fp32", 1_630_000, 98.00),
        "baseline/int8.onnx": file("onnx", "int8-dynamic", 412_000, 97.95),
        "baseline/fp32.tflite": file("tflite", "fp32", 1_629_000, 98.00),
    },
}


def test_build() -> None:
    assert text(render_build(Path("dist/p"), MANIFEST)) == BUILD


BUILD = """\
dist/p: mnist-mlp for rpi4, guard: accuracy

 file                   scheme                  size   vs fp32   vs int8   metric    drop   scored on
 ────────────────────────────────────────────────────────────────────────────────────────────────────
 model.tflite           int8-dynamic-range   48.0 kB     33.9×         –    98.00   +0.00   guard
 model.onnx             int8-static-qdq      51.2 kB     31.8×      8.0×    97.60   +0.40   guard
 baseline/int8.onnx     int8-dynamic          412 kB      4.0×         –    97.95   +0.05   guard
 baseline/fp32.tflite   fp32                 1.63 MB         –         –    98.00   +0.00   guard
 baseline/fp32.onnx     fp32                 1.63 MB         –      0.3×    98.00   +0.00   guard


 layer    out×in   scheme    rank   weights   why
 ────────────────────────────────────────────────────────────────────────────────────────────────────
 fc1     512×784   –           24      7.7%   smallest rank
 fc2      10×512   –        dense    100.0%   a pair of rank 8 saves too little: break-even rank is 9"""


def test_build_with_a_plan_per_format_shows_each() -> None:
    manifest = deepcopy(MANIFEST)
    manifest["files"]["model.tflite"]["layers"][0]["rank"] = 16
    shown = text(render_build(Path("p"), manifest))
    onnx, tflite = shown.index("layers of model.onnx"), shown.index("layers of model.tflite")
    assert " 24 " in shown[onnx:tflite]
    assert " 16 " in shown[tflite:]
    assert " 24 " not in shown[tflite:]


def test_build_without_data_or_baseline() -> None:
    manifest = deepcopy(MANIFEST)
    manifest |= {"metric": {"name": "agreement", "guarded": False}, "warnings": ["no [data]", "second"]}
    manifest["files"] = {"model.onnx": MANIFEST["files"]["model.onnx"] | {"metric": None, "scored_on": None}}
    shown = text(render_build(Path("p"), manifest)).splitlines()
    assert shown[0] == "p: mnist-mlp for rpi4, guard: none: no data"
    assert shown[4].split() == ["model.onnx", "int8-static-qdq", "51.2", "kB", "–", "–", "–", "–", "–"]
    assert shown[-2:] == ["warning: no [data]", "warning: second"]


def test_build_says_what_agreement_means() -> None:
    manifest = MANIFEST | {"metric": {"name": "agreement", "guarded": True}, "data": {"labelled": False}}
    first = text(render_build(Path("p"), manifest)).splitlines()[0]
    assert first == "p: mnist-mlp for rpi4, guard: agreement with the original model (no labels)"
