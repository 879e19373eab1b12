"""Distillation of a student from its teacher: staged, rounding as the file does, best state kept."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgepack.distill import state as states
from edgepack.distill.budget import Budget, Epochs
from edgepack.distill.samples import Data, make_data
from edgepack.distill.schedule import LOOK_BATCHES, LOOKS, make_schedule
from edgepack.distill.state import Point
from edgepack.distill.student import Student
from edgepack.distill.training import Trainer, make_trainer, reproducible
from edgepack.errors import ModelError
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array
from edgepack.workspace import Progress, silent

BATCH = 32
SMALL_STEP = 1 << 28
"""Multiplications of a step up to which one thread makes it: a second one would wait more than it works."""

ASTRAY = 1.25
"""Times the best held-out loss, above which training goes back to the best state and on at half the rate."""

OVERTIME = 1.1
"""Share of a time budget after which training stops wherever it is."""

TIMED = 3
"""Steps that are timed to tell how many there can be."""


@dataclass(frozen=True)
class Distilled:
    """What distillation came to.

    Attributes:
        factors: by layer name, the best that the held-out samples have seen, those at the start included.
        history: looks at the held-out samples, in order; the first is before any training.
        samples: runs of the program in an epoch.
        vectors: other parameters that were trained along, by their names in the program.
        missing: layers that the program does not have.
    """

    factors: Mapping[str, Replacement]
    history: tuple[Point, ...]
    samples: int = 0
    vectors: Mapping[str, Array] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Training:
    """How a student is trained.

    Attributes:
        classes: whether the first output holds class scores, or probabilities, on its last axis.
        budget: how long to train; with a checkpoint, over all sittings.
        seed: of the held-out split and of the order of the samples.
        batch: samples per step; a run of the program is never divided.
        checkpoint: written at every look at the held-out samples, read at the start; None for none.
        threads: of torch meanwhile; one gives the same bits on machines with more cores. None for one where steps are
            small, else as many as torch uses anyway.
    """

    classes: bool
    budget: Budget
    seed: int = 0
    batch: int = BATCH
    checkpoint: Path | None = None
    threads: int | None = None


def distil(
    student: Student, inputs: Mapping[str, Array], training: Training, *, progress: Progress = silent
) -> Distilled:
    """Train a student to answer like its teacher.

    The loss is the KL divergence of class scores, or the error of features, plus the error of each thin layer's output
    against that of the dense layer it replaces (Hinton, Vinyals and Dean, 2015; Romero et al., 2015). Same seed, data,
    number of threads and steps: same bits. A time budget is turned into a number of steps once, by timing a few.

    Args:
        student: from `build_student`; its parameters end at the state that is returned.
        inputs: calibration samples without labels, by input name or in the order of the program's inputs.
        training: how, and how long.
        progress: told of every step, with the held-out loss in the stage's text.

    Raises:
        ModelError: the program cannot be run on the inputs, or differentiated, or answers with infinities.
        DataError: the inputs do not fit, are too few, or the checkpoint is of another run.
        OutputError: the checkpoint cannot be written.
    """
    data = make_data(student.stages[-1].teacher, inputs, training.batch, training.seed)
    small = 1 if data.size * student.products <= SMALL_STEP else None
    with reproducible(training.threads or small, training.seed):
        trainer = make_trainer(student, data, classes=training.classes)
        settings = [training.classes, repr(training.budget), training.seed, training.batch, repr(student.roundings)]
        key = data.key(student, settings)
        state = None
        if training.checkpoint is not None:
            state = states.restore(training.checkpoint, key, student.parameters, trainer.optimizer)
        run = _Run(student, data, trainer, training, key, progress)
        best = run.train(state or run.begin())
    values = {name: value.numpy() for name, value in best.best.items()}
    others, history = student.others(values), tuple(best.history)
    return Distilled(student.trained(values), history, len(data.training), others, student.missing)


@dataclass(frozen=True, eq=False)
class _Run:
    student: Student
    data: Data
    trainer: Trainer
    training: Training
    key: str
    progress: Progress

    def begin(self) -> states.State:
        """A new run, whose best state is the one at the start."""
        start = time.monotonic()
        state = states.State(1, {})
        self._look(state, 0)
        look_s = time.monotonic() - start
        if not math.isfinite(state.history[0].held_out):
            raise ModelError(
                "the model's answers on the calibration samples are not finite numbers, which cannot be compared",
                hint="see what the model returns for these inputs",
            )
        state.total = self._steps(look_s)
        state.elapsed_s = time.monotonic() - start
        return state

    def _steps(self, look_s: float) -> int:
        """Optimizer steps within the budget, timed on the last stage; nothing is changed by that."""
        if isinstance(self.training.budget, Epochs):
            return self.training.budget.count * self.data.steps_per_epoch
        begun = time.monotonic()
        step_s = float("inf")
        for step in range(TIMED):
            start = time.monotonic()
            self.trainer.gradients(self.student.stages[-1], self.data.batch(step))
            step_s = min(step_s, time.monotonic() - start)
        step_s = max(step_s, 1e-6)
        left_s = self.training.budget.seconds - look_s - (time.monotonic() - begun)
        looks = min(LOOKS, left_s / (LOOK_BATCHES * len(self.trainer.answers) * step_s + look_s))
        return max(1, int((left_s - looks * look_s) / step_s))

    def train(self, state: states.State) -> states.State:
        """Steps and looks until the steps or the time end; then the parameters are the best seen."""
        held_out = len(self.trainer.answers)
        schedule = make_schedule(state.total, len(self.student.stages), held_out=held_out)
        start = time.monotonic() - state.elapsed_s
        while state.step < state.total:
            stage = schedule.stage(state.step)
            self._tell(state)
            loss = self.trainer.step(
                self.student.stages[stage],
                self.data.batch(state.step),
                rate=schedule.rate(state.step) * state.slower,
            )
            state.losses.append(loss)
            state.step += 1
            state.elapsed_s = time.monotonic() - start
            late = self._late(state.elapsed_s)
            if late or state.step % schedule.every == 0 or state.step == state.total:
                self._look(state, stage)
                self._back(state)
                state.step = state.total if late else state.step
                self._save(state)
        states.put(state.best, self.student.parameters)
        self._tell(state)
        return state

    def _look(self, state: states.State, stage: int) -> None:
        held_out = self.trainer.held_out(self.student.stages[-1].student, self.data)
        loss = sum(state.losses) / len(state.losses) if state.losses else float("nan")
        state.note(Point(state.step, stage, loss, held_out), self.student.parameters)

    def _back(self, state: states.State) -> None:
        """To the best state, and on more slowly, where training went astray."""
        if not state.history[-1].held_out <= ASTRAY * state.best_loss:  # NaN is astray too
            states.put(state.best, self.student.parameters)
            self.trainer.optimizer.state.clear()
            state.slower *= 0.5

    def _late(self, elapsed_s: float) -> bool:
        return not isinstance(self.training.budget, Epochs) and elapsed_s > OVERTIME * self.training.budget.seconds

    def _save(self, state: states.State) -> None:
        if self.training.checkpoint is not None:
            states.save(self.training.checkpoint, self.key, state, self.student.parameters, self.trainer.optimizer)

    def _tell(self, state: states.State) -> None:
        first, best = state.history[0].held_out, state.best_loss
        self.progress(f"distill, held-out loss {first:.4g} → {best:.4g}", state.step, state.total)
