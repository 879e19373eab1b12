"""A target written as a targets file is good, and reads back as the same target."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepack.targets.file import check_file, load_targets
from edgepack.targets.target import HOST, Bandwidth, Cache, Cluster, Ipc, KnownBad, Target
from edgepack.targets.write import size_text, targets_file_text

SHIPPED = [name for name in load_targets() if name != HOST]
_serial = itertools.count()


def read_back(target: Target, folder: Path, comments: tuple[str, ...] = ()) -> Target:
    path = folder / f"{next(_serial)}.yaml"
    path.write_text(targets_file_text(target, comments), encoding="utf-8")
    assert check_file(path) == []
    return load_targets(path)[target.name]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_target_reads_back_equal_under_its_own_and_another_name(name: str, tmp_path: Path) -> None:
    target = load_targets()[name]
    assert read_back(target, tmp_path) == target
    renamed = dataclasses.replace(target, name="mine")
    assert read_back(renamed, tmp_path) == renamed


def test_it_looks_like_the_shipped_file() -> None:
    target = load_targets()["rpi4"]
    text = targets_file_text(dataclasses.replace(target, name="mine"), ["differs: nothing", "a\nb\x1b[0m"])
    assert text == (
        "schema_version: 1\n"
        "\n"
        "targets:\n"
        "  # differs: nothing\n"
        "  # ab[0m\n"
        "  mine:\n"
        "    description: Raspberry Pi 4 Model B\n"
        "    arch: aarch64\n"
        "    isa: [neon]\n"
        "    clusters:\n"
        "      a72:\n"
        "        core: cortex-a72\n"
        "        cores: 4\n"
        "        frequency_mhz: 1500\n"
        "        ipc: {low: 0.8, high: 3}\n"
        "        L1d: {size_bytes: 32K, shared: core, ways: 2}\n"
        "        L1i: {size_bytes: 48K, shared: core, ways: 3}\n"
        "        L2: {size_bytes: 1M, shared: cluster, ways: 16}\n"
        "        read: {low_gb_s: 3.7, high_gb_s: 4.4}\n"
        "        read_all_cores: {low_gb_s: 3.7, high_gb_s: 4.4}\n"
        "    ram_bytes: 1G\n"
        "    ram_max_bytes: 8G\n"
        "    runtimes: {onnx: onnxruntime, tflite: ai-edge-litert}\n"
        "    known_bad:\n"
        "      - {runtime: onnxruntime, version: 1.21.0, reason: dies with an illegal instruction}\n"
    )


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (512, "512"),
        (1024, "1K"),
        (48 << 10, "48K"),
        (1280 << 10, "1280K"),
        (3 << 20, "3M"),
        (1 << 30, "1G"),
        (1500, "1500"),
    ],
)
def test_sizes_are_short_where_they_are_exact(size: int, text: str) -> None:
    assert size_text(size) == text


words = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,12}", fullmatch=True) | st.sampled_from(
    ["0xd80", "1e3", "null", "on", "1.21", "12_3", "0o7", "1.e+3"]
)
lines = (
    st.text(st.characters(blacklist_categories=("Cc", "Cs", "Co", "Cn", "Zl", "Zp")), min_size=1, max_size=40)
    | st.sampled_from([": ", "# x", "- a", "{", "a: b # c", "'", '"', "%", "yes", "1.5"])
    | st.sampled_from([" lead", "trail ", "\xa0", "a\xa0", "\u3000a"])
)
sources = st.sampled_from(["reference", "estimate", "probed"])
caches = st.builds(
    Cache,
    st.integers(1, 1 << 40),
    st.sampled_from(["core", "cluster", "all"]),
    st.none() | st.integers(1, 64),
    st.sampled_from([16, 32, 64, 128, 256]),
    sources,
)
rates = st.floats(1e-6, 1e5, allow_nan=False)
reads = st.builds(lambda a, b, source: Bandwidth(min(a, b), max(a, b), source), rates, rates, sources)
ipcs = st.builds(lambda a, b, source: Ipc(min(a, b), max(a, b), source), *[st.floats(1e-3, 16)] * 2, sources)
clusters = st.builds(
    Cluster,
    words,
    words,
    st.integers(1, 512),
    st.none() | st.integers(1, 20000),
    sources,
    st.none() | ipcs,
    *[st.none() | caches] * 4,
    *[st.none() | reads] * 2,
)
targets = st.builds(
    Target,
    name=st.just("mine"),
    description=lines,
    arch=st.sampled_from(["aarch64", "armv7l", "x86_64", "riscv64"]),
    isa=st.lists(words, max_size=4).map(tuple),
    clusters=st.lists(clusters, min_size=1, max_size=3, unique_by=lambda cluster: cluster.name).map(tuple),
    ram_bytes=st.integers(1, 1 << 40),
    ram_max_bytes=st.none() | st.just(1 << 41),
    system_cache=st.none() | caches,
    runtimes=st.just({"onnx": "onnxruntime"}),
    no_runtime_reason=st.none() | lines,
    known_bad=st.lists(st.builds(KnownBad, st.just("onnxruntime"), words, lines), max_size=2).map(tuple),
    hosts=st.sampled_from([(), ("pi@board.local",), ("pi@[fe80::1]:22", "u@h")]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(target=targets)
def test_any_target_reads_back_equal(target: Target, tmp_path: Path) -> None:
    assert read_back(target, tmp_path, ("a comment: with signs {",)) == target
