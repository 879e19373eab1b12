"""Whole recoveries of small models: better factors, never worse ones, the same bits again and after an interruption."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgepack.backends.onnx.schemes import INT8_DYNAMIC, NBITS4
from edgepack.distill import (
    Budget,
    Distilled,
    Epochs,
    Seconds,
    build_student,
    distil,
    distill_factors,
    rounding_of,
    training,
)
from edgepack.distill.distil import Training
from edgepack.distill.samples import make_data
from edgepack.errors import DataError, EdgepackError, ModelError, OutputError
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array
from edgepack.sources.onnx import open_onnx
from edgepack.sources.torch import program_to_onnx
from edgepack.torchgraph import flat_module, with_factors
from edgepack.torchgraph.from_onnx import onnx_to_program
from tests.distill.distill_models import Encoder, Mixed, classifier, factored, samples, taken_apart

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

X = samples(200, 20)
THREE_EPOCHS = Epochs(3)
Answer = Mapping[str, Replacement]


class InterruptedError(Exception):
    pass


def distilled(
    *,
    budget: Budget = THREE_EPOCHS,
    seed: int = 0,
    checkpoint: Path | None = None,
    stop: int | None = None,
    rank: int = 4,
) -> Distilled:
    def progress(stage: str, done: int = 0, total: int = 0) -> None:
        if stop is not None and done >= stop:
            raise InterruptedError

    program, layers, factors = factored(classifier(), rank, torch.zeros(1, 20))
    how = Training(True, budget, seed, checkpoint=checkpoint, threads=1)
    roundings = {name: rounding_of(INT8_DYNAMIC, pair) for name, pair in factors.items()}
    return distill_factors(program, layers, factors, {"x": X}, roundings, training=how, progress=progress)


def same_bits(a: Answer, b: Answer) -> bool:
    return a.keys() == b.keys() and all(
        np.array_equal(a[n].A, b[n].A) and np.array_equal(a[n].B, b[n].B) and np.array_equal(a[n].bias, b[n].bias)
        for n in a
    )


def test_class_scores_come_closer_to_the_originals_on_samples_never_seen() -> None:
    model = classifier()
    program, layers, factors = factored(model, 4, torch.zeros(1, 20))
    found = distill_factors(program, layers, factors, {"x": X}, training=Training(True, Epochs(10), threads=1))
    fresh = torch.from_numpy(samples(500, 20, seed=9))

    def divergence(pairs: Answer) -> float:
        thin = with_factors(flat_module(program), layers, pairs)
        with torch.no_grad():
            scores = torch.cat([thin(x[None])[0] for x in fresh]).log_softmax(-1)
            wanted = model(fresh).log_softmax(-1)
        return float((wanted.exp() * (wanted - scores)).sum(-1).mean())

    assert divergence(found.factors) < 0.95 * divergence(factors)
    assert {n: p.A.shape for n, p in found.factors.items()} == {n: p.A.shape for n, p in factors.items()}
    assert all(p.A.dtype == p.B.dtype == np.float32 for p in found.factors.values())
    assert found.history[0].step == 0
    assert math.isnan(found.history[0].loss)


def test_staged_features_improve() -> None:
    program, layers, factors = factored(Encoder(), 8, torch.zeros(1, 4, 16))
    inputs = {"x": samples(120, 4, 16)}
    found = distill_factors(program, layers, factors, inputs, training=Training(False, Epochs(6), threads=1))
    assert {point.stage for point in found.history} > {0}
    assert min(p.held_out for p in found.history) < 0.9 * found.history[0].held_out


def test_every_kind_of_layer_learns_in_programs_that_take_several_samples() -> None:
    program, layers, factors = factored(Mixed(), 3, torch.zeros(4, 6, 6, 6))
    inputs = {"x": samples(160, 6, 6, 6)}
    found = distill_factors(program, layers, factors, inputs, training=Training(False, Epochs(8), threads=1))
    assert min(p.held_out for p in found.history) < 0.9 * found.history[0].held_out
    assert not any(np.array_equal(found.factors[name].A, factors[name].A) for name in factors)


def test_kernels_that_are_taken_apart_learn() -> None:
    program, layers, parts = taken_apart("tucker-2")
    inputs, training = {"x": samples(160, 5, 8, 8)}, Training(False, Epochs(6), threads=1)
    found = distill_factors(program, layers, parts, inputs, training=training)
    assert min(p.held_out for p in found.history) < 0.9 * found.history[0].held_out
    assert {part.structure for part in found.factors.values()} == {part.structure for part in parts.values()}


def test_two_runs_give_the_same_bits_and_another_seed_does_not() -> None:
    first = distilled()
    assert same_bits(first.factors, distilled().factors)
    assert [p.held_out for p in first.history] == [p.held_out for p in distilled().history]
    assert not same_bits(first.factors, distilled(seed=1).factors)


@pytest.mark.parametrize("stop", [0, 1, 5, 12, 18])
def test_an_interrupted_run_goes_on_to_the_same_bits(stop: int, tmp_path: Path) -> None:
    whole = distilled()
    path = tmp_path / "run.pt"
    with pytest.raises(InterruptedError):
        distilled(checkpoint=path, stop=stop)
    assert path.exists() == (stop > 1)
    found = distilled(checkpoint=path)
    assert same_bits(found.factors, whole.factors)
    assert repr(found.history) == repr(whole.history)
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def test_a_finished_run_is_read_back_without_another_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.pt"
    first = distilled(checkpoint=path)
    monkeypatch.setattr(training.Trainer, "step", None)
    assert same_bits(distilled(checkpoint=path).factors, first.factors)


class Spy:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_checkpoints_of_others_and_damaged_ones_are_refused_and_no_code_is_run(tmp_path: Path) -> None:
    path, written = tmp_path / "run.pt", tmp_path / "written"
    distilled(checkpoint=path)
    for other in ({"seed": 1}, {"budget": Epochs(4)}, {"rank": 5}):
        with pytest.raises(DataError, match="another model"):
            distilled(checkpoint=path, **other)  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="damaged"):
        distilled(checkpoint=path)
    blob = io.BytesIO()
    torch.save({"version": 1, "state": Spy(written)}, blob)
    path.write_bytes(blob.getvalue())
    with pytest.raises(DataError):
        distilled(checkpoint=path)
    assert not written.exists()
    with pytest.raises(OutputError):
        distilled(checkpoint=tmp_path / "nowhere" / "run.pt")


def test_training_that_goes_astray_goes_back_and_on_more_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "RELATIVE_RATE", 3.0)
    held_out = [point.held_out for point in distilled(budget=Epochs(10)).history]
    assert max(held_out) > 10 * held_out[0] > 10 * min(held_out)


def test_the_result_is_never_worse_than_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "RELATIVE_RATE", 1e30)
    program, layers, factors = factored(classifier(), 4, torch.zeros(1, 20))
    student = build_student(flat_module(program), layers, factors)
    found = distil(student, {"x": X}, Training(True, Epochs(2), threads=1))
    assert not any(p.held_out < found.history[0].held_out for p in found.history)
    assert same_bits(found.factors, factors)
    assert all(np.array_equal(p.detach().numpy(), student.start[n]) for n, p in student.parameters.items())


def test_epochs_are_passes_over_all_samples_that_are_not_held_out() -> None:
    found = distilled(budget=Epochs(2))
    assert found.samples == 180
    assert found.history[-1].step == 2 * math.ceil(180 / 32)
    program, _, _ = factored(classifier(), 4, torch.zeros(1, 20))
    data = make_data(flat_module(program), {"x": X}, 32, seed=0)
    for epoch in range(2):
        steps = range(epoch * data.steps_per_epoch, (epoch + 1) * data.steps_per_epoch)
        rows = torch.cat([data.batch(step)[0] for step in steps]).flatten(1)
        assert sorted(rows.tolist()) == sorted(X[data.training].tolist())


def test_training_in_four_bits_makes_up_for_their_rounding() -> None:
    program, layers, factors = factored(classifier(), 8, torch.zeros(1, 20))
    roundings = {name: rounding_of(NBITS4, pair) for name, pair in factors.items()}
    how = Training(True, Epochs(20), threads=1)
    aware = distill_factors(program, layers, factors, {"x": X}, roundings, training=how)
    unaware = distill_factors(program, layers, factors, {"x": X}, training=how)
    student = build_student(flat_module(program), layers, unaware.factors, roundings)
    rounded = distil(student, {"x": X}, Training(True, Epochs(1), threads=1)).history[0].held_out
    found = min(p.held_out for p in aware.history)
    assert found < rounded
    assert found < 0.75 * aware.history[0].held_out


def test_time_is_kept_and_the_caller_gets_his_settings_back() -> None:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    state = torch.random.get_rng_state()
    start = time.monotonic()
    found = distilled(budget=Seconds(1.5))
    assert time.monotonic() - start < 10.0
    assert found.history[-1].step > 5
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (threads, deterministic)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_probabilities_are_distilled_like_the_scores_behind_them() -> None:
    losses = []
    for model in (classifier(), nn.Sequential(*classifier(), nn.Softmax(-1))):
        program, layers, factors = factored(model, 4, torch.zeros(1, 20))
        found = distill_factors(program, layers, factors, {"x": X}, training=Training(True, Epochs(2), threads=1))
        losses.append([point.held_out for point in found.history])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-2)


def test_onnx_files_are_recovered_through_their_import(tmp_path: Path) -> None:
    program, _, _ = factored(classifier(), 4, torch.zeros(1, 20))
    program_to_onnx(program, tmp_path / "model.onnx")
    source = open_onnx(tmp_path / "model.onnx")
    imported = onnx_to_program(source.path, {source.inputs[0].name: (1, 20)})
    layers = list(source.layers)
    _, _, by_size = factored(classifier(), 4, torch.zeros(1, 20))
    given = {
        layer.name: next(f for f in by_size.values() if f.A.shape[0] == layer.out_features) for layer in layers[:2]
    }
    strange = {"elsewhere": low_rank(samples(7, 2), samples(2, 7), None)}
    how = Training(True, Epochs(4), threads=1)
    found = distill_factors(imported, layers, {**given, **strange}, {source.inputs[0].name: X}, training=how)
    assert min(p.held_out for p in found.history) < found.history[0].held_out
    assert list(found.factors) == [*given, "elsewhere"]
    assert found.missing == ("elsewhere",)
    assert found.factors["elsewhere"] is strange["elsewhere"]


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.layer(x) > 0).float()


class Overflow(Steps):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * 1e38 * 1e38


def test_what_cannot_be_trained_says_so() -> None:
    def attempt(model: nn.Module, inputs: Mapping[str, Array]) -> EdgepackError:
        program, layers, factors = factored(model, 4, torch.zeros(1, 20))
        with pytest.raises(EdgepackError) as caught:
            distill_factors(program, layers, factors, inputs, training=Training(False, Epochs(1), threads=1))
        return caught.value

    assert isinstance(attempt(classifier(), {"x": X[:1]}), DataError)
    assert isinstance(attempt(classifier(), {"x": X[:, :5]}), DataError)
    assert "finite" in attempt(Overflow(), {"x": X}).message
    once = Training(False, Epochs(1), threads=1)
    wrong = nn.Sequential(nn.Embedding(30, 20), nn.Linear(20, 16))
    program, layers, factors = factored(wrong, 4, torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ModelError, match="cannot be trained"):
        distill_factors(program, layers, factors, {"x": np.full((9, 3), 99)}, training=once)
    assert distill_factors(program, layers, {}, {}, training=once).factors == {}


def test_a_model_that_ends_in_steps_still_learns_layer_by_layer() -> None:
    program, layers, factors = factored(Steps(), 4, torch.zeros(1, 20))
    found = distill_factors(program, layers, factors, {"x": X}, training=Training(False, Epochs(2), threads=1))
    assert min(p.held_out for p in found.history) <= found.history[0].held_out
