"""Embedding tables in LiteRT: in integers of their own, or once with the layer whose weight they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgepack.backends.backend import WriterData
from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.quantizer import quantize
from edgepack.backends.tflite.read import linear_ops, operators, weight_bytes
from edgepack.backends.tflite.runtime import load
from edgepack.backends.tflite.schemes import FP32, INT4_DYNAMIC, INT8_DYNAMIC, INT8_STATIC, TABLES4, WEIGHTS8
from edgepack.backends.tflite.tables import embedding_tables, lookups, untied
from edgepack.backends.tflite.writer import TfliteWriter
from edgepack.metrics.values import sqnr_db
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.model.structure import Op
from edgepack.model.types import Array
from edgepack.sources.torch import export_program, program_model
from edgepack.workspace import Cache, Workspace

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

TOKENS, KINDS, WIDTH = 80, 48, 32
IDS = np.array([[0, 47, 7, 7, 20, 1]], np.int64)
BITS = {FP32: 32, WEIGHTS8: 8, INT8_DYNAMIC: 8, INT4_DYNAMIC: 4}


class Tied(nn.Module):
    """A table of tokens that is the weight of the head as well, and one of kinds that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.kinds = nn.Embedding(TOKENS, WIDTH), nn.Embedding(KINDS, WIDTH)
        self.head = nn.Linear(WIDTH, TOKENS, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.tokens(ids)) + self.kinds(ids))


@pytest.fixture(scope="module")
def files(emitter: TfliteEmitter, tmp_path_factory: pytest.TempPathFactory) -> TfliteWriter:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tied")
    program = export_program(Tied(), (torch.from_numpy(IDS),))
    opened = program_model("tied", "tied", "pt2", program, folder, ("tflite",))
    return TfliteWriter(
        emitter, opened, WriterData(None, {"ids": IDS}, 127), Workspace(Cache(folder / "cache"), folder)
    )


@pytest.fixture(scope="module")
def tied(files: TfliteWriter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "m.tflite"
    files.write_dense(path)
    return path


@pytest.fixture
def written(tied: Path, tmp_path: Path) -> Callable[..., Path]:
    """The file with a scheme for the head alone and one for all else."""

    def write(rest: Scheme, head: Scheme, tables: Scheme | None = None) -> Path:
        (op,) = linear_ops(tied)
        path = tmp_path / "q.tflite"
        own = {} if tables is None else {one.output: tables for one in untied(tied)}
        quantize(tied, path, rest, None, own if head == rest else {op.output: head, **own})
        return path

    return write


def answer(path: Path) -> Array:
    session = load(path, threads=1)
    (spec,) = session.inputs
    return session.run({spec.name: IDS.astype(spec.dtype)})[0]


def test_lookups_are_found_and_told_from_those_of_a_layer(tied: Path) -> None:
    assert sorted(one.sides for one in lookups(tied)) == [(KINDS, WIDTH), (TOKENS, WIDTH)]
    assert [one.sides for one in untied(tied)] == [(KINDS, WIDTH)]


@pytest.mark.parametrize(
    ("rest", "head"),
    [
        (INT8_DYNAMIC, INT8_DYNAMIC),
        (INT8_DYNAMIC, WEIGHTS8),
        (INT8_DYNAMIC, INT4_DYNAMIC),
        (WEIGHTS8, INT8_DYNAMIC),
        (INT4_DYNAMIC, INT4_DYNAMIC),
        (INT8_DYNAMIC, FP32),
    ],
    ids=str,
)
def test_a_tied_table_is_stored_once_in_the_scheme_of_its_layer(
    tied: Path, written: Callable[..., Path], rest: Scheme, head: Scheme
) -> None:
    path = written(rest, head)
    assert weight_bytes(path) == TOKENS * WIDTH * BITS[head] // 8 + KINDS * WIDTH
    assert sqnr_db(answer(path), answer(tied)) > min(rest.min_sqnr_db, head.min_sqnr_db)


def test_a_static_file_has_its_tables_in_integers_as_well(tied: Path, tmp_path: Path) -> None:
    path, (spec,) = tmp_path / "static.tflite", load(tied, threads=1).inputs
    rows = np.random.default_rng(0).integers(0, KINDS, (8, *IDS.shape)).astype(spec.dtype)
    quantize(tied, path, INT8_STATIC, {spec.name: rows})
    assert weight_bytes(path) == TOKENS * WIDTH + KINDS * WIDTH
    assert sqnr_db(answer(path), answer(tied)) > INT8_STATIC.min_sqnr_db


def test_rows_of_a_table_alone_can_have_four_bits(tied: Path, written: Callable[..., Path]) -> None:
    path = written(INT8_DYNAMIC, INT8_DYNAMIC, INT4_DYNAMIC)
    assert weight_bytes(path) == TOKENS * WIDTH + KINDS * WIDTH // 2
    assert 10 < sqnr_db(answer(path), answer(tied)) < 30, "rounded, and no more than to 4 bits"


def test_a_table_in_integers_is_none_to_plan(tied: Path, written: Callable[..., Path]) -> None:
    assert [one.layer.weight.shape for one in embedding_tables(tied, None)] == [(KINDS, WIDTH)]
    assert embedding_tables(written(INT8_DYNAMIC, INT8_DYNAMIC), None) == ()


def test_a_table_is_not_decoded_as_a_whole_beside_weights_that_are(written: Callable[..., Path]) -> None:
    assert operators(written(WEIGHTS8, WEIGHTS8)).count("DEQUANTIZE") == 1, "of the layer"
    assert operators(written(WEIGHTS8, INT8_DYNAMIC)).count("DEQUANTIZE") == 0


def test_a_file_with_its_tables_in_four_bits(files: TfliteWriter, tmp_path: Path) -> None:
    assert [scheme for _, scheme in files.tables] == [TABLES4], "that of the head has the scheme of the head"
    plain = FileScheme.of(INT4_DYNAMIC)
    held = []
    for scheme in (replace(plain, single=files.tables), plain):
        files.write({}, scheme, tmp_path / "m.tflite")
        held.append(weight_bytes(tmp_path / "m.tflite"))
    assert held == [TOKENS * WIDTH // 2 + KINDS * WIDTH // 2, TOKENS * WIDTH // 2 + KINDS * WIDTH]


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_a_table_as_low_rank_factors(files: TfliteWriter, tied: Path, tmp_path: Path, bits: int) -> None:
    """A narrower table and a product in float; that of the head stays."""
    (table,) = files.embeddings
    np.testing.assert_array_equal(table.layer.weight.shape, (KINDS, WIDTH))
    assert not table.counts.any()
    path, name = tmp_path / "m.tflite", table.layer.name
    plain = FileScheme.of(FP32 if bits == 32 else INT8_DYNAMIC)
    single = ((name, TABLES4),) if bits == 4 else ()
    errors = []
    for rank in (WIDTH, 8):
        factored = ((name, Op("A", "matmul", WIDTH, rank)),)
        files.write({}, replace(plain, single=single, factored=factored), path)
        ops, product = linear_ops(tied), (rank, WIDTH, 32 if bits == 32 else 8)
        assert Counter(one[:2] for one in files.read(path).weights)[product[:2]] == 1
        assert product in files.read(path).weights
        assert len(linear_ops(path)) == len(ops) + 1
        assert weight_bytes(path) * 8 == (TOKENS * WIDTH + rank * WIDTH) * product[2] + KINDS * rank * bits
        errors.append(sqnr_db(answer(path), answer(tied)))
    assert errors[0] > {32: 90, 8: 20, 4: 10}[bits]
    assert errors[0] > errors[1] > 3
