"""What a build may be asked for."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import TargetsError, UsageError
from edgepack.pipeline.options import (
    BuildOptions,
    Rank,
    parse_duration,
    parse_formats,
    parse_pick,
    parse_rank,
    parse_size,
)
from edgepack.targets.file import get_target

RPI4 = get_target("rpi4")


def options(**changes: Any) -> BuildOptions:
    return BuildOptions("m.onnx", RPI4, **changes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("auto", "auto"), ("32", 32), ("1", 1), ("0.25", 0.25), ("1.0", 1.0), (".5", 0.5), ("1e-1", 0.1)],
)
def test_ranks(text: str, expected: Rank) -> None:
    found = parse_rank(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("text", ["", "AUTO", "a lot", "0", "-3", "0.0", "-0.5", "nan", "1/4", "25%", "-inf"])
def test_bad_ranks(text: str) -> None:
    with pytest.raises(UsageError, match="--rank"):
        parse_rank(text)


@given(st.text(max_size=12))
def test_any_text_is_a_rank_or_a_usage_error(text: str) -> None:
    try:
        rank = parse_rank(text)
    except UsageError:
        return
    assert rank == "auto" or rank > 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2MB", 2_000_000),
        ("512KiB", 524_288),
        ("64kb", 64_000),
        ("1.5 MB", 1_500_000),
        ("12345", 12_345),
        ("10B", 10),
        ("1GiB", 1 << 30),
        (" 2 mib ", 2 << 20),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "MB", "2M", "two MB", "2TB", "nan", "inf", "2MBMB", "1e400", "2MB!", "2 MB 3"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size; write it like 2MB or 512KiB"):
        parse_size(text)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(parse_size(text), int)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5ms", 5e-3),
        ("300us", 3e-4),
        ("300 µs", 3e-4),
        ("300 \u03bcs", 3e-4),
        ("1.5 s", 1.5),
        ("2", 2.0),
        ("1e-3s", 1e-3),
        (" 7ms ", 7e-3),
    ],
)
def test_durations(text: str, expected: float) -> None:
    assert parse_duration(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "ms", "5m", "5d", "five ms", "nan", "inf", "infms", "5mss", "1e400s", "5 m s!"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time; write it like 5ms, 300us or 10min"):
        parse_duration(text)


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_duration(text) < float("inf")


@pytest.mark.parametrize(("text", "expected"), [("3", (3,)), ("3,9", (3, 9)), (" 12 , 1", (12, 1)), ("2,2", (2, 2))])
def test_picks(text: str, expected: tuple[int, ...]) -> None:
    assert parse_pick(text) == expected


@pytest.mark.parametrize("text", ["", ",", "0", "-1", "1.5", "3;4", "best", "3,", "9" * 5000, "1_000"])
def test_bad_picks(text: str) -> None:
    with pytest.raises(UsageError, match="expected numbers of plans as --explore lists them"):
        parse_pick(text)


@given(st.text(max_size=12))
def test_any_text_is_picks_or_a_usage_error(text: str) -> None:
    try:
        picks = parse_pick(text)
    except UsageError:
        return
    assert picks
    assert all(pick > 0 for pick in picks)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("onnx,tflite", ("onnx", "tflite")),
        ("tflite, onnx", ("onnx", "tflite")),
        ("tflite", ("tflite",)),
        ("onnx,onnx,", ("onnx",)),
        ("", ()),
    ],
)
def test_formats(text: str, expected: tuple[str, ...]) -> None:
    assert parse_formats(text) == expected


def test_formats_whose_packages_are_missing_are_left_out_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options().chosen_formats == ("onnx", "tflite")
    monkeypatch.setattr("edgepack.backends.registry.find_spec", lambda name: None if name == "torch" else object())
    assert options().chosen_formats == ("onnx",)
    assert options().unwritable == {"tflite": ("torch",)}
    assert options(formats=("onnx",)).chosen_formats == ("onnx",)
    with pytest.raises(UsageError, match="TFLite files need torch: not installed") as caught:
        options(formats=("onnx", "tflite"))
    assert (
        caught.value.hint
        == "pip install '.[tflite]' (. is edgepack's checkout, or its wheel), or leave tflite out of --formats"
    )


def test_a_target_may_lack_what_cannot_be_written_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    target = replace(RPI4, runtimes={"onnx": "onnxruntime"})
    with pytest.raises(TargetsError, match="cannot run tflite"):
        BuildOptions("m.onnx", target)
    monkeypatch.setattr("edgepack.backends.registry.find_spec", lambda _: None)
    assert BuildOptions("m.onnx", target).chosen_formats == ("onnx",)


def test_unknown_format() -> None:
    with pytest.raises(UsageError, match="unknown format 'coreml'; there are onnx, tflite"):
        parse_formats("onnx,coreml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_drop": -0.1}, "--max-drop -0.1: a drop is 0 or more"),
        ({"max_drop": float("nan")}, "--max-drop nan"),
        ({"max_drop": float("inf")}, "--max-drop inf"),
        ({"formats": ()}, "no format asked for"),
        ({"rank": 1.0}, "--rank 1.0: a share"),
        ({"rank": 0.0}, "--rank 0.0: a share"),
        ({"rank": float("inf")}, "--rank inf: a share"),
        ({"rank": 100.0}, "--rank 100.0: a share"),
        ({"max_size_bytes": 0}, "--max-size must be more than 0"),
        ({"max_size_bytes": -5}, "--max-size must be more than 0"),
        ({"max_memory_bytes": 0}, "--max-memory must be more than 0"),
        ({"max_latency_s": 0.0}, "--max-latency must be more than 0"),
        ({"max_latency_s": -1e-3}, "--max-latency must be more than 0"),
        ({"time_limit_s": 0.0}, "--time-limit 0.0 s: must be more than 0"),
        ({"time_limit_s": -1.0}, "--time-limit -1.0"),
        ({"time_limit_s": float("nan")}, "--time-limit nan"),
        ({"time_limit_s": float("inf")}, "--time-limit inf"),
        ({"pick": (1,), "rank": 8}, "--pick takes a plan that --explore found"),
        ({"seed": -1}, "--seed -1: a seed is 0 or more"),
    ],
)
def test_options_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        options(**changes)
    assert message in caught.value.message


def test_a_target_without_the_runtime() -> None:
    with pytest.raises(TargetsError, match="beaglebone-black cannot run onnx"):
        BuildOptions("m.onnx", get_target("beaglebone-black"))


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({}, 0.5),
        ({"max_drop": 0.0}, 0.0),
        ({"max_drop": 2.0}, 2.0),
        ({"rank": 32}, None),
        ({"rank": 0.25}, None),
        ({"rank": 32, "max_drop": 1.0}, 1.0),
        ({"pick": (3,)}, None),
        ({"pick": (3,), "max_drop": 0.5}, 0.5),
    ],
)
def test_limit_of_the_drop(changes: dict[str, Any], limit: float | None) -> None:
    assert options(**changes).drop_limit == limit


@pytest.mark.parametrize(
    ("name", "arch", "isa", "grids", "exact"),
    [
        ("rpi4", "aarch64", ("neon",), (127,), True),
        ("visionfive2", "riscv64", (), (127,), True),
        ("j4125", "x86_64", ("sse4.2",), (63,), True),
        ("n100", "x86_64", ("avx2", "avx-vnni"), (127,), True),
        ("host", "x86_64", ("avx2",), (127, 63), False),
        ("host", "x86_64", ("avx512_vnni",), (127,), False),
        ("host", "aarch64", ("neon",), (127,), False),
    ],
)
def test_seven_bits_where_products_saturate(
    name: str, arch: str, isa: tuple[str, ...], grids: tuple[int, ...], exact: bool
) -> None:
    """On this machine both grids are tried in its own arithmetic; for another one the safe grid is taken."""
    asked = BuildOptions("m.onnx", replace(RPI4, name=name, arch=arch, isa=isa))
    assert asked.weight_grids == grids
    assert asked.exact is exact
