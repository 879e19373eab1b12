"""Sparse constants are laid out as DENSIFY does it, and layers like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.backends.runtime import load, predict
from edgepack.backends.tflite.sparse import densified
from edgepack.data import Samples
from edgepack.errors import ModelError
from edgepack.model.types import Array
from edgepack.natives import native
from edgepack.sources import open_model
from tests.backends.tflite.given_files import GivenFile

WEIGHT = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float16)
WEIGHT[np.random.default_rng(1).random(WEIGHT.shape) < 0.4] = 0


def vector(numbers: Array) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    made = schema.Int32VectorT()
    made.values = np.asarray(numbers, np.int32)
    return made


def dense_level(size: int) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    made = schema.DimensionMetadataT()
    made.format, made.denseSize = 0, size
    return made


def listed_level(mask: Array) -> Any:
    """The places of each row of a mask (rows, places)."""
    from ai_edge_litert import schema_py_generated as schema

    made = schema.DimensionMetadataT()
    made.format, made.arraySegmentsType, made.arrayIndicesType = 1, 1, 1
    made.arraySegments = vector(np.concatenate([[0], np.cumsum(mask.sum(axis=1))]))
    made.arrayIndices = vector(np.nonzero(mask)[1])
    return made


def sparsity(order: list[int], levels: list[Any], blocks: list[int] | None = None) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    made = schema.SparsityParametersT()
    made.traversalOrder, made.dimMetadata, made.blockMap = order, levels, blocks
    return made


def by_rows(dense: Array) -> tuple[Array, Any]:
    return dense[dense != 0], sparsity([0, 1], [dense_level(len(dense)), listed_level(dense != 0)])


def by_columns(dense: Array) -> tuple[Array, Any]:
    values, (_, level) = dense.T[dense.T != 0], by_rows(dense.T)[1].dimMetadata
    return values, sparsity([1, 0], [dense_level(dense.shape[1]), level])


def in_blocks(dense: Array) -> tuple[Array, Any]:
    """Blocks of 2×4, those that are not all zeros."""
    tiles = dense.reshape(3, 2, 2, 4).transpose(0, 2, 1, 3)
    mask = (tiles != 0).any(axis=(2, 3))
    levels = [dense_level(3), listed_level(mask), dense_level(2), dense_level(4)]
    return tiles[mask].reshape(-1), sparsity([0, 1, 2, 3], levels, [0, 1])


def listed_twice(dense: Array) -> tuple[Array, Any]:
    """Both axes in lists: rows of zeros are left out."""
    rows = (dense != 0).any(axis=1)
    return dense[dense != 0], sparsity([0, 1], [listed_level(rows[None]), listed_level(dense[rows] != 0)])


FORMS = (by_rows, by_columns, in_blocks, listed_twice)


@pytest.mark.parametrize("form", FORMS)
def test_zeros_are_put_back(form: Callable[[Array], tuple[Array, Any]]) -> None:
    dense = WEIGHT.copy()
    dense[2:4], dense[:2, :4] = 0, 0
    values, made = form(dense)
    np.testing.assert_array_equal(densified(values, dense.shape, made), dense)


def sparse_file(folder: Path, change: Callable[[Any], None] | None = None) -> Path:
    """FULLY_CONNECTED behind DEQUANTIZE behind DENSIFY, as converters write pruned weights in float16."""
    file = GivenFile()
    x = file.tensor("x", (1, 8))
    values, made = by_rows(WEIGHT)
    held = file.tensor("fc", WEIGHT.shape, "float16", values)
    file.graph.tensors[held].sparsity = made
    dense = file.op("DENSIFY", [held], file.tensor("fc_densify", WEIGHT.shape, "float16"), "Densify")
    wide = file.op("DEQUANTIZE", [dense], file.tensor("fc_dequantize", WEIGHT.shape), "Dequantize")
    y = file.op("FULLY_CONNECTED", [x, wide, -1], file.tensor("y", (1, 6)), "FullyConnected")
    file.graph.inputs, file.graph.outputs = [x], [y]
    for code in file.model.operatorCodes:
        code.version = 1 if code.builtinCode == file.schema.BuiltinOperator.DENSIFY else code.version
    if change is not None:
        change(made)
    return file.save(folder / "m.tflite")


def test_sparse_weights_are_those_of_layers(tmp_path: Path) -> None:
    path = sparse_file(tmp_path)
    opened = open_model(str(path), tmp_path)
    (layer,) = opened.layers
    assert layer.name == "fc"
    np.testing.assert_array_equal(layer.weight, WEIGHT.astype(np.float32))
    samples = Samples({"x": np.random.default_rng(2).standard_normal((4, 8)).astype(np.float32)})
    ours = predict(native("tflite").session(opened.content, {}, threads=1), samples)
    np.testing.assert_allclose(ours, predict(load(path, "tflite"), samples), rtol=1e-5, atol=1e-6)


def test_sparse_weights_that_are_smaller_than_in_8_bits_stay(tmp_path: Path) -> None:
    def bare(made: Any) -> None:
        made.dimMetadata[1].arraySegments, made.dimMetadata[1].arrayIndices = (
            narrow(each) for each in (made.dimMetadata[1].arraySegments, made.dimMetadata[1].arrayIndices)
        )
        made.dimMetadata[1].arraySegmentsType = made.dimMetadata[1].arrayIndicesType = 3

    opened = open_model(str(sparse_file(tmp_path, bare)), tmp_path)
    assert opened.layers == ()
    assert opened.left == "weights that stay sparse, in fewer bytes than in 8 bits: 1"


def narrow(held: Any) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    made = schema.Uint8VectorT()
    made.values = np.asarray(held.values, np.uint8)
    return made


def far(made: Any) -> None:
    made.dimMetadata[1].arrayIndices.values[0] = 8


def behind(made: Any) -> None:
    made.dimMetadata[1].arraySegments.values[1] = 1000


def wide(made: Any) -> None:
    made.dimMetadata[0].denseSize = 1 << 30


def twice(made: Any) -> None:
    made.traversalOrder = [0, 0]


def short(made: Any) -> None:
    made.dimMetadata[1].arraySegments.values = made.dimMetadata[1].arraySegments.values[:3]


def fewer(made: Any) -> None:
    made.dimMetadata[1].arraySegments.values[-1] -= 1


@pytest.mark.parametrize("change", [far, behind, wide, twice, short, fewer])
def test_lists_that_lie_are_refused(change: Callable[[Any], None], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="damaged or truncated TFLite file"):
        open_model(str(sparse_file(tmp_path, change)), tmp_path)


def test_a_few_numbers_do_not_stand_for_many() -> None:
    values, made = by_rows(WEIGHT)
    with pytest.raises(ValueError, match="at most 1024 times"):
        densified(values, (1 << 20, 1 << 10), made)
