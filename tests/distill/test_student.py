"""Students of real modules: the same function as the factored program, and training that comes back as factors."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from edgepack.backends.onnx.schemes import INT8_DYNAMIC, NBITS4
from edgepack.backends.tflite.schemes import INT4_DYNAMIC
from edgepack.distill import Rounding, build_student, rounding_of
from edgepack.distill.graphs import thin_index
from edgepack.errors import ModelError
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.scheme import Scheme
from edgepack.quantize.grids import quantize_weight
from edgepack.torchgraph import find_linears, flat_module, with_factors
from tests.distill.distill_models import Encoder, Mixed, classifier, factored, samples, taken_apart

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def every_rounding(scheme: Scheme, factors: dict[str, Replacement], qmax: int = 127) -> dict[str, Rounding]:
    """All of these layers in one scheme."""
    return {n: rounding_of(scheme, pair, qmax=qmax) for n, pair in factors.items()}


CASES = [
    pytest.param(classifier(), 6, (2, 20), id="mlp"),
    pytest.param(Mixed(), 3, (2, 6, 6, 6), id="mixed"),
    pytest.param(Encoder(), 5, (1, 4, 16), id="encoder"),
]


@pytest.mark.parametrize(("model", "rank", "shape"), CASES)
def test_at_the_start_a_student_is_the_factored_program(model: nn.Module, rank: int, shape: tuple[int, ...]) -> None:
    x = torch.from_numpy(samples(*shape))
    program, layers, factors = factored(model, rank, torch.zeros(shape))
    module = flat_module(program)
    student = build_student(module, layers, factors)
    last = student.stages[-1]
    with torch.no_grad():
        wanted = with_factors(module, layers, factors)(x)[0]
        found, dense = last.student(x), last.teacher(x)
        torch.testing.assert_close(found[0], wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(dense[0], module(x)[0], rtol=1e-5, atol=1e-6)
    assert [value.shape for value in found] == [value.shape for value in dense]
    assert not student.missing
    given = student.trained(student.start)
    assert set(given) == set(factors)
    for name, pair in given.items():
        np.testing.assert_array_equal(pair.A, factors[name].A)
        np.testing.assert_array_equal(pair.B, factors[name].B)


@pytest.mark.parametrize(("model", "rank", "shape"), CASES)
def test_a_layers_watched_output_is_that_of_the_dense_layer_for_exact_factors(
    model: nn.Module, rank: int, shape: tuple[int, ...]
) -> None:
    # W = I W: every thin layer computes what the dense one does, so every watched pair has to agree.
    program, layers, factors = factored(model, rank, torch.zeros(shape))
    exact = {
        layer.name: low_rank(np.eye(len(layer.weight), dtype=np.float32), layer.weight, layer.bias)
        for layer in layers
        if layer.name in factors
    }
    student = build_student(flat_module(program), layers, exact)
    x = torch.from_numpy(samples(*shape))
    uses = sum(site.name in exact for site in find_linears(flat_module(program)))
    for stage, count in zip(student.stages, [None] * (len(student.stages) - 1) + [uses], strict=True):
        with torch.no_grad():
            found, wanted = stage.student(x), stage.teacher(x)
        for f, w in zip(found, wanted, strict=True):
            torch.testing.assert_close(f, w, rtol=1e-4, atol=1e-5)
        floats = sum(bool(v.is_floating_point()) for v in flat_module(program)(x))
        assert count is None or len(found) == floats + count


@pytest.mark.parametrize(("model", "rank", "shape"), CASES)
def test_what_was_trained_comes_back_as_factors(model: nn.Module, rank: int, shape: tuple[int, ...]) -> None:
    program, layers, factors = factored(model, rank, torch.zeros(shape))
    module = flat_module(program)
    student = build_student(module, layers, factors)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters.values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        x = torch.from_numpy(samples(*shape))
        trained = student.trained({name: p.detach().numpy() for name, p in student.parameters.items()})
        torch.testing.assert_close(
            with_factors(module, layers, trained)(x)[0], student.stages[-1].student(x)[0], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(("model", "rank", "shape"), CASES)
def test_gradients_reach_the_factors_through_rounding_and_nothing_else(
    model: nn.Module, rank: int, shape: tuple[int, ...]
) -> None:
    program, layers, factors = factored(model, rank, torch.zeros(shape))
    required = {name: p.requires_grad for name, p in program.named_parameters()}
    module, x = flat_module(program), torch.from_numpy(samples(*shape))
    for roundings in ({}, every_rounding(NBITS4, factors), every_rounding(INT8_DYNAMIC, factors)):
        student = build_student(module, layers, factors, roundings)
        graph = student.stages[-1].student
        sum(value.square().mean() for value in graph(x)).backward()
        for name, parameter in student.parameters.items():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
            parameter.grad = None
        # The keys of an encoder's packed projection are three layers in one weight: all that learns is thin.
        assert {n for n, p in graph.named_parameters() if p.requires_grad} == set(student.parameters)
    assert all(thin_index(name) is not None for name in student.parameters)
    assert {name: p.requires_grad for name, p in program.named_parameters()} == required


@pytest.mark.parametrize(("scheme", "qmax"), [(INT8_DYNAMIC, 127), (INT8_DYNAMIC, 63), (INT4_DYNAMIC, 127)])
def test_the_rounded_student_multiplies_what_a_file_holds(scheme: Scheme, qmax: int) -> None:
    program, layers, factors = factored(nn.Sequential(nn.Linear(20, 16)), 4, torch.zeros(1, 20))
    roundings = every_rounding(scheme, factors, qmax)
    student = build_student(flat_module(program), layers, factors, roundings)
    qmax = scheme.qmax_within(qmax)
    x = samples(1, 20)

    def on_grid(values: np.ndarray) -> np.ndarray:
        low, high = min(values.min(), 0.0), max(values.max(), 0.0)
        scale = (high - low) / 255
        zero = np.rint(-128 - low / scale)
        return (np.clip(np.rint(values / scale) + zero, -128, 127) - zero) * scale

    pair = next(iter(factors.values()))
    (codes_a, scales_a), (codes_b, scales_b) = [quantize_weight(w, qmax=qmax) for w in (pair.A, pair.B)]
    latent = on_grid(x) @ (codes_b * scales_b[:, None]).T
    wanted = on_grid(latent) @ (codes_a * scales_a[:, None]).T + pair.bias
    with torch.no_grad():
        found = student.stages[-1].student(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("structure", ["spatial-svd", "input-svd", "tucker-2"])
def test_all_stages_of_a_kernel_that_is_taken_apart_learn_and_come_back(structure: str) -> None:
    program, layers, parts = taken_apart(structure)
    module, x = flat_module(program), torch.from_numpy(samples(1, 5, 8, 8))
    student = build_student(module, layers, parts, every_rounding(INT8_DYNAMIC, parts))
    last = student.stages[-1].student
    sum(value.square().mean() for value in last(x)).backward()
    trained = [f"edgepack_{i}_{role}" for i, part in enumerate(parts.values()) for role in part.tensors]
    assert set(student.parameters) == {*trained, "edgepack_0_bias"}
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters.values())
    plain = build_student(module, layers, parts)
    with torch.no_grad():
        exact, rounded = plain.stages[-1].student(x)[0], last(x)[0]
        torch.testing.assert_close(exact, with_factors(module, layers, parts)(x)[0], rtol=1e-5, atol=1e-6)
        assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.05
        for parameter in plain.parameters.values():
            parameter += 0.1
        found = plain.trained({name: p.detach().numpy() for name, p in plain.parameters.items()})
        again = with_factors(module, layers, found)(x)[0]
        torch.testing.assert_close(again, plain.stages[-1].student(x)[0], rtol=1e-5, atol=1e-6)
    assert {part.structure.name for part in found.values()} == {structure}


def test_layers_of_one_model_round_each_as_their_own_scheme_does() -> None:
    program, layers, factors = factored(classifier(), 4, torch.zeros(1, 20))
    module, x = flat_module(program), torch.from_numpy(samples(1, 20))
    first, second = factors
    mixed = every_rounding(NBITS4, {first: factors[first]}) | every_rounding(INT8_DYNAMIC, {second: factors[second]})

    def answer(roundings: dict[str, Rounding]) -> torch.Tensor:
        with torch.no_grad():
            return build_student(module, layers, factors, roundings).stages[-1].student(x)[0]

    found = [answer(roundings) for roundings in ({}, mixed, every_rounding(NBITS4, factors))]
    errors = [float((value - found[0]).norm() / found[0].norm()) for value in found]
    assert 0.0 == errors[0] < errors[1] < errors[2] < 0.5


def test_deep_models_become_thin_from_the_input_on_with_shared_parameters() -> None:
    program, layers, factors = factored(Encoder(), 5, torch.zeros(1, 4, 16))
    student = build_student(flat_module(program), layers, dict(reversed(factors.items())))
    assert len(student.stages) > 1
    assert list(student.factors) == [layer.name for layer in layers if layer.name in factors]
    thin = [{n for n, _ in s.student.named_parameters() if thin_index(n) is not None} for s in student.stages]
    assert all(earlier < later for earlier, later in pairwise(thin))
    for stage in student.stages:
        for name, parameter in stage.student.named_parameters():
            assert thin_index(name) is None or parameter is student.parameters[name]
    assert len(build_student(flat_module(program), layers, factors, staged=False).stages) == 1


def test_other_vectors_train_only_if_asked_and_never_in_the_program_itself() -> None:
    program, layers, factors = factored(Mixed(), 3, torch.zeros(1, 6, 6, 6))
    plain = build_student(flat_module(program), layers, factors)
    assert plain.others(plain.start) == {}
    student = build_student(flat_module(program), layers, factors, others=True)
    others = student.others(student.start)
    assert {"norm.weight", "norm.bias", "shift"} <= set(others)
    before = {name: p.detach().clone() for name, p in program.named_parameters()}
    with torch.no_grad():
        for name in others:
            student.parameters[name] += 1
    assert all(torch.equal(p, before[name]) for name, p in program.named_parameters())


def test_layers_that_the_program_lacks_are_named() -> None:
    program, layers, factors = factored(classifier(), 6, torch.zeros(1, 20))
    _, strange, theirs = factored(nn.Linear(20, 20), 6, torch.zeros(1, 20))
    student = build_student(flat_module(program), [*layers, *strange], {**factors, **theirs})
    assert student.missing == tuple(theirs)
    with pytest.raises(ModelError, match="none of the 1 factored layers"):
        build_student(flat_module(program), strange, theirs)


def test_half_precision_is_refused() -> None:
    program, layers, factors = factored(nn.Linear(20, 20).bfloat16(), 6, torch.zeros(1, 20, dtype=torch.bfloat16))
    with pytest.raises(ModelError, match="bfloat16"):
        build_student(flat_module(program), layers, factors)
