"""Shapes of inputs that a model leaves open."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack.errors import ModelError, UsageError
from edgepack.model.types import TensorSpec
from edgepack.sources.inputs import GivenInput, check_sizes, parse_input, usual_sides, with_shapes

FLOAT, INT = np.dtype("float32"), np.dtype("int64")


def spec(*shape: int | None, name: str = "x", dtype: np.dtype = FLOAT) -> TensorSpec:
    return TensorSpec(name, shape, dtype)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x=1x3x320x320", GivenInput("x", (1, 3, 320, 320))),
        ("ids=1x64:int64", GivenInput("ids", (1, 64), "int64")),
        ("serving:a=b:0=7", GivenInput("serving:a=b:0", (7,))),
    ],
)
def test_what_is_read(text: str, expected: GivenInput) -> None:
    assert parse_input(text) == expected
    assert parse_input(str(expected).removeprefix("--input ")) == expected


@pytest.mark.parametrize(
    "text", ["x", "x=", "=1x3", "x=1x", "x=1,3", "x=-1x3", "x=1x3:", "x=1xNx3", "x=99999999999x1", "x=1x3:Float 32"]
)
def test_what_is_no_shape(text: str) -> None:
    with pytest.raises(UsageError, match="expected NAME=1x3x224x224"):
        parse_input(text)


@pytest.mark.parametrize("text", ["x=1x0x3", "x=65536x65536", f"x={2**31}"])
def test_sizes_are_bounded(text: str) -> None:
    with pytest.raises(UsageError, match="expected from 1 to 2147483647 numbers"):
        parse_input(text)


def test_open_sides_are_fixed_and_a_batch_of_one_stays_open() -> None:
    given = [parse_input("x=1x3x320x640"), parse_input("ids=2x64:int64")]
    found = with_shapes(
        [spec(None, 3, None, None), spec(None, None, name="ids", dtype=INT), spec(1, 5, name="z")], given
    )
    assert [one.shape for one in found] == [(None, 3, 320, 640), (2, 64), (1, 5)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("y=1x3x8x8", "the model has no such input"),
        ("x=1x4x8x8", r"the model takes \?x3x\?x\?"),
        ("x=1x3x8", r"the model takes \?x3x\?x\?"),
        ("x=1x3x8x8:int8", "the model takes float32"),
    ],
)
def test_what_the_model_does_not_take(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=rf"--input {text}: {says}"):
        with_shapes([spec(None, 3, None, None)], [parse_input(text)])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((None, 3, None, None), [(None, 3, 224, 224), (None, 3, 48, 320), (None, 3, 320, 320)]),
        ((1, 3, 48, None), [(1, 3, 48, 224), (1, 3, 48, 320)]),
        ((None, None, None, 1), [(None, 224, 224, 1), (None, 48, 320, 1), (None, 320, 320, 1)]),
        ((None, 3, 8, 8), [(None, 3, 8, 8)]),
        ((None, None), [(None, None), (None, 16), (None, 512), (None, 256), (None, 16000)]),
        ((None, None, 80), [(None, None, 80), (None, 16, 80), (None, 512, 80), (None, 256, 80), (None, 16000, 80)]),
        ((None,), [(None,)]),
        ((), [()]),
    ],
)
def test_usual_sides(shape: tuple[int | None, ...], expected: list[tuple[int | None, ...]]) -> None:
    assert [found.shape for (found,) in usual_sides([spec(*shape)])] == expected


def test_a_length_is_tried_along_the_last_axes_alone_before_all() -> None:
    tried = [[one.shape for one in found] for found in usual_sides([spec(None, None), spec(2, None, 128)])]
    assert tried[:3] == [
        [(None, None), (2, None, 128)],
        [(None, 16), (2, None, 128)],
        [(None, 16), (2, 16, 128)],
    ]


@pytest.mark.parametrize("wrong", [spec(*[1] * 33), spec(1, name="n" * 1001)], ids=["axes", "name"])
def test_what_no_array_or_archive_can_hold_is_refused(wrong: TensorSpec) -> None:
    check_sizes([spec(*[1] * 32), spec(1, name="n" * 1000)], "m.onnx")
    with pytest.raises(ModelError, match=r"m\.onnx: its input .* expected at most 1000 and 32"):
        check_sizes([wrong], "m.onnx")
