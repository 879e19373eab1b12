"""What every kind of layer keeps within TFLite, and what becomes of those that have no room there."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack.backends.tflite.kinds import KINDS, OPERATORS, matrix, refuses
from edgepack.backends.tflite.schemes import FP32, SCHEMES
from edgepack.model import kinds
from edgepack.model.kinds import kind_of
from edgepack.model.structure import DENSE, low_rank
from edgepack.plan.candidates import GivenRanks
from tests.contracts.test_kinds import EXAMPLES, MAKERS, replaced

ROOMS = [make for name in KINDS for make in EXAMPLES[name]]


def test_rooms_are_of_kinds_that_there_are() -> None:
    assert set(KINDS) <= set(kinds.KINDS)
    assert set(OPERATORS) == {operator for kind in KINDS.values() for operator in kind.operators}


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_every_layer_can_stay_as_it_is(make: object) -> None:
    layer = make().layer  # type: ignore[operator]
    assert refuses(layer, DENSE, FP32) is None
    if layer.kind not in KINDS:
        for scheme in SCHEMES:
            assert refuses(layer, DENSE, scheme) is None
            assert layer.kind in str(refuses(layer, low_rank(4), scheme))


@pytest.mark.parametrize("make", ROOMS, ids=lambda make: make.__name__)
def test_operators_are_known_by_the_matrices_of_a_layer(make: object) -> None:
    layer = make().layer  # type: ignore[operator]
    kind, room = kind_of(layer), KINDS[layer.kind]
    (dense,) = room.wanted(layer, None)
    assert (dense.name, dense.uses) == (layer.name, layer.uses)
    for structure in kind.structures(layer, GivenRanks((4, 8), ())):
        if structure.ranks:
            wanted = room.wanted(layer, replaced(kind, layer, structure))
            ops = kind.ops(layer, structure, 1)
            assert [want.weight.shape for want in wanted] == [(op.rows, op.inputs) for op in ops]
            assert len({layer.name, *(want.name for want in wanted)}) == 1 + len(ops)


SHAPES = {"CONV_2D": ((5, 1, 1, 4), (5, 3, 3, 4)), "DEPTHWISE_CONV_2D": ((1, 2, 2, 5), (1, 6, 6, 5))}
"""Of kernels with 4 and with 36 inputs to each of 5 outputs; all other operators take matrices."""


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_matrix_is_read_as_outputs_by_inputs(operator: str) -> None:
    shapes = SHAPES.get(operator, ((5, 4), (5, 36)))
    found = [matrix(operator, np.zeros(shape, np.float32)) for shape in shapes]
    assert [None if one is None else one.shape for one in found] == [(5, 4), (5, 36)]
    assert matrix(operator, np.zeros((5, 4, 3), np.float32)) is None
