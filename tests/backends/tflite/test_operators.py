"""The operators of TFLite files, each timed by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgepack.backends.tflite.operators import operators
from edgepack.backends.tflite.schemes import FP32, INT8_STATIC
from edgepack.model.types import Array
from tests.backends.tflite.given_files import GivenFile, Storage, convnet, integer_layer, mlp


def normal(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_convolutions_are_products_of_patches(storage: Storage, tmp_path: Path) -> None:
    file = convnet(normal(4, 3, 3, 2), normal(5, 1, 1, 4), (normal(4), normal(5)), storage=storage)
    path = file.save(tmp_path / "model.tflite")
    found = operators(path, {"image": normal(1, 6, 6, 2)}, timed=True)
    products = [one for one in found if one.products]
    assert [one.macs for one in products] == [4 * 9 * 2 * 36, 5 * 4 * 36]
    assert [op.kind for one in products for op in one.products] == ["conv", "conv"]
    assert all(one.scheme == FP32 and one.seconds is not None for one in products)


def test_open_sides_are_those_of_the_inputs(tmp_path: Path) -> None:
    file = convnet(normal(4, 3, 3, 2), normal(5, 1, 1, 4), (normal(4), normal(5)))
    image = file.graph.tensors[0]
    image.shape, image.shapeSignature = [1, 1, 1, 2], [1, -1, -1, 2]
    found = operators(file.save(tmp_path / "model.tflite"), {"image": normal(1, 8, 8, 2)}, timed=True)
    assert [one.macs for one in found] == [4 * 9 * 2 * 64, 5 * 4 * 64]
    assert all(one.seconds is not None for one in found)


def test_integers_throughout(tmp_path: Path) -> None:
    path = integer_layer(normal(6, 8)).save(tmp_path / "model.tflite")
    (one,) = operators(path, {"x": np.zeros((1, 8), np.int8)}, timed=False)
    assert (one.kind, one.scheme, one.macs, one.doubt, one.seconds) == ("FULLY_CONNECTED", INT8_STATIC, 48, None, None)


def unsigned(file: GivenFile) -> None:
    for tensor in file.graph.tensors:
        tensor.type = 3  # schema.fbs, UINT8


def test_unsigned_weights_are_what_kernels_do_not_want(tmp_path: Path) -> None:
    file = integer_layer(normal(6, 8))
    unsigned(file)
    (one,) = operators(file.save(tmp_path / "model.tflite"), {}, timed=False)
    assert (one.doubt, one.scheme) == ("unsigned weights", INT8_STATIC)


def test_one_matrix_in_many_places_is_a_recurrence(tmp_path: Path) -> None:
    weight = normal(8, 8)
    file = mlp([(weight, normal(8))] * 4, x="x")
    file.graph.operators = list(file.graph.operators)
    first = file.graph.operators[0].inputs[1]
    for operator in file.graph.operators:
        operator.inputs = [operator.inputs[0], first, operator.inputs[2]]
    found = operators(file.save(tmp_path / "model.tflite"), {"x": normal(1, 8)}, timed=True)
    assert [one.doubt for one in found] == ["unrolled"] * 4
    assert all(one.seconds is not None for one in found)
