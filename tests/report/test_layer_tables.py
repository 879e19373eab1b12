"""The tables of inspect, doctor and targets, to the letter."""

# The tables are wider than a line of code on purpose.
# ruff: noqa: E501

from __future__ import annotations

from dataclasses import replace

import pytest

from edgepack.devices.doctor import Finding
from edgepack.emulator.install import Installed
from edgepack.pipeline.inspect import Energy, LayerReport, ModelReport
from edgepack.report.doctor import doctor_report, installed_report
from edgepack.report.inspect import model_report
from edgepack.report.render.cells import cell_text
from edgepack.report.report import Column, Report, Table
from edgepack.report.targets import bandwidth_value, cache_value, target_report, targets_report
from edgepack.targets.target import Bandwidth, Cache, Cluster, KnownBad, Target
from tests.report.shown import text


def test_cells_are_not_markup_and_long_ones_fold() -> None:
    table = Table((Column("name", "name"), Column("n", "n", "integer")), (("[red]x[/red] [/]", 1), ("a" * 30, 22)))
    assert (
        text(Report(blocks=(table,)), 26)
        == """\
name                     n
──────────────────────────
[red]x[/red] [/]         1
aaaaaaaaaaaaaaaaaaaaaaa 22
aaaaaaa"""
    )


FC1 = LayerReport(
    "fc1", "Gemm", 512, 784, uses=1, rows=1, weight_bytes=0, bytes_share=0.9838, macs_share=0.9874, break_even=309,
    break_even_int8_int4=154, energy="output", rank_90=12, rank_99=41,
)  # fmt: skip
FC2 = LayerReport(
    "fc2.weight", "MatMul", 10, 512, uses=3, rows=None, weight_bytes=0, bytes_share=0.0126, macs_share=None, break_even=9,
    break_even_int8_int4=4, energy="output", rank_90=7, rank_99=9,
)  # fmt: skip


def test_layers_of_inspect() -> None:
    report = ModelReport("m.onnx", 1_628_160, 1_626_112, "whitened", True, (FC1, replace(FC2, rank_99=10)))
    assert text(model_report(report)) == LAYERS


LAYERS = """\
m.onnx: 1.63 MB of weights, 100% of them in 2 layers

 layer        op           out×in   rows   bytes    MACs   break-even   int8 vs int4   rank 90 %   rank 99 %   pays
 ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────
 fc1          Gemm        512×784      1   98.4%   98.7%          309            154          12          41   yes
 fc2.weight   MatMul ×3    10×512      –    1.3%       –            9              4           7          10   no

break-even: factors of this rank or less have fewer weights and multiplications than the dense layer at the same precision (fp32 or int8); int8 vs int4: the
same in bytes, int8 factors against a dense int4 layer.
rank 90 % / 99 %: keeps that share of output energy on the calibration data. pays: rank 99 % is not above break-even."""


def test_layers_without_data() -> None:
    shown = text(model_report(ModelReport("m.onnx", 0, 0, "svd", False, (replace(FC2, energy="weight"),))))
    assert shown.startswith("m.onnx: 0 B of weights, 0% of them in 1 layer")
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
    layers = tuple(replace(FC2, name=f"l{number}", energy=energy) for number, energy in enumerate(energies))
    shown = text(model_report(ModelReport("m.onnx", 0, 0, "two-sided", True, layers)), width=400)
    assert f"rank 90 % / 99 %: keeps that share of {said}. pays:" in shown


def test_doctor() -> None:
    tools = [
        Finding("onnxruntime", "runs .onnx files", "1.31.0", "pip install onnxruntime"),
        Finding("ai-edge-litert", "runs .tflite files", "2.4.0", "pip install '.[tflite]'", tested="2.3.0"),
        Finding("adb", "reaches Android devices", None, "apt-get install adb"),
        Finding("keras", "opens Keras models", None, "pip install '.[keras]'"),
        Finding("emulator aarch64", "counts", None, "edgepack emulator install", "cc, the aarch64 system"),
    ]
    assert text(doctor_report(tools)) == DOCTOR


DOCTOR = """\
 tool               purpose                   here
 ──────────────────────────────────────────────────────────────────────────────────────────────────────
 onnxruntime        runs .onnx files          1.31.0
 ai-edge-litert     runs .tflite files        2.4.0, newer than the tested 2.3.0
 adb                reaches Android devices   missing: apt-get install adb
 keras              opens Keras models        missing: pip install '.[keras]'
 emulator aarch64   counts                    missing cc, the aarch64 system: edgepack emulator install

pip install '.[…]' (. is edgepack's checkout, or its wheel)"""


def test_emulator_install() -> None:
    arm = Installed("aarch64", "/usr/bin/qemu-aarch64", "/cache/plugin/a.so", "/cache/root-[x]", "1.31.1")
    assert text(installed_report(arm)) == INSTALLED
    assert "root folder" not in text(installed_report(replace(arm, arch="x86_64", root=None)))


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
    assert text(targets_report([BOARD, OLD])) == TARGETS


TARGETS = """\
 target   CPU                               SIMD           L1d      L2   L3    RAM   read GB/s   formats
 ────────────────────────────────────────────────────────────────────────────────────────────────────────────
 board    2×cortex-a76 2.3 + 4×cortex-a55   neon dotprod   64K   ~512K   3M     4G       17–21   onnx, tflite
 old      1×cortex-a55 1                    –                –       –    –   512M           –   none"""


def test_target_show() -> None:
    assert text(target_report(BOARD)) == BOARD_SHOWN
    assert text(target_report(OLD)) == OLD_SHOWN


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
    assert cell_text(cache_value(cache), Column("L2", unit="cache")) == expected


def bandwidth_text(read: Bandwidth | None) -> str:
    return cell_text(bandwidth_value(read), Column("read", unit="bandwidth"))


def test_bandwidths() -> None:
    assert bandwidth_text(None) == "–"
    assert bandwidth_text(Bandwidth(3.7, 4.4)) == "3.7–4.4"
    assert bandwidth_text(Bandwidth(5.0, 5.0, "estimate")) == "~5"
