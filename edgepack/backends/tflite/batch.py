"""A batch that can be resized: sizes of 1 that a file's operators hold are opened, and what comes of it is tried.

A converter writes a file for one batch. Most operators take theirs from their input; RESHAPE, SLICE and STRIDED_SLICE
have it among their constants. Where none needs it as a number, a runtime may resize the inputs.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.backends.tflite.decoded import operator_name
from edgepack.backends.tflite.file import KEEPS_AXES, File, Writing, drop_unused, objects, packed, text
from edgepack.backends.tflite.read import DTYPES
from edgepack.backends.tflite.runtime import interpreter, session
from edgepack.errors import ModelError
from edgepack.metrics.values import LEAST_ERROR, sqnr_db
from edgepack.model.types import Array
from edgepack.torchgraph.run import first_line

ROWS = 3
"""Of the batch that is tried."""
_LEAST_DB = 60.0
"""Signal over noise of a batch against its rows one by one: kernels may sum in another order."""
_OPEN = -1  # in shapes and shape signatures


def open_batch(path: Path, inputs: Collection[str], feed: Mapping[str, Array]) -> str | None:
    """Let the first axis of inputs be resized by a runtime, in place; the file's own answers stay the same.

    Args:
        path: of a file with a signature, in float32 or in integers.
        inputs: names of those whose first axis is the batch.
        feed: inputs of one run, of which others are made for the trial.

    Returns:
        None where a batch of several answers as its rows one by one, else why not; the file is left as it was then.
    """
    content = path.read_bytes()
    reasons = []
    for flat in (False, True):
        model = objects(content)
        try:
            outputs = _opened(model, inputs, flat=flat)
            opened = packed(model)
            _try(content, opened, feed, inputs, outputs)
        except _FixedError as err:
            reasons.append(str(err))
        else:
            path.write_bytes(opened)
            return None
    return reasons[0]


def _opened(model: Any, inputs: Collection[str], *, flat: bool) -> list[int | None]:
    """Open what holds the batch, in place; returns its axis in every output.

    Args:
        flat: see `_Opening`.

    Raises:
        _FixedError: as of `_Opening.run`, or an output has no place for it.
    """
    entries = [entry for entry in model.signatureDefs[0].inputs if text(entry.name) in inputs]
    graph = model.subgraphs[0]
    batches = {int(size) for entry in entries for size in graph.tensors[entry.tensorIndex].shape[:1]}
    if len(batches) != 1:
        raise _FixedError(f"the inputs have batches of {sorted(batches)}")
    axes = {int(entry.tensorIndex): 0 for entry in entries}
    ends = _Opening(File(model), 0, axes, batches.pop(), flat=flat).run()
    known = axes | {int(tensor): axis for tensor, axis in zip(graph.outputs, ends, strict=True) if axis is not None}
    for number, axis in known.items():
        tensor = graph.tensors[number]
        tensor.shapeSignature = [_OPEN if at == axis else int(size) for at, size in enumerate(tensor.shape)]
    drop_unused(model)
    return ends


class _FixedError(Exception):
    """Why a batch stays as it is."""


def _try(
    content: bytes, opened: bytes, feed: Mapping[str, Array], inputs: Collection[str], axes: Sequence[int | None]
) -> None:
    """Compare a batch with its rows, and one row with what the file answered before.

    Args:
        axes: of the batch, in each output; None in one without it.

    Raises:
        _FixedError: they differ, or the runtime does not run it.
    """
    rows = [
        {name: np.roll(array, at, -1) if name in inputs else array for name, array in feed.items()}
        for at in range(ROWS)
    ]
    whole = {name: np.concatenate([row[name] for row in rows]) if name in inputs else feed[name] for name in feed}
    with tempfile.TemporaryDirectory(prefix="edgepack-batch-") as folder:
        paths = [Path(folder, name) for name in ("fixed.tflite", "open.tflite")]
        for path, each in zip(paths, (content, opened), strict=True):
            path.write_bytes(each)
        single = session(interpreter(paths[0]))
        singles = [single.run(row) for row in rows]
        try:
            made = interpreter(paths[1])
            one = session(made).run(feed)
            _resize(made, whole)
            batch = session(made).run(whole)
        except (ModelError, RuntimeError, ValueError) as err:
            raise _FixedError(f"the runtime does not take another batch ({first_line(err)})") from err
    for number, axis in enumerate(axes):
        apart = [answers[number] for answers in singles]
        together = apart[0] if axis is None else np.concatenate(apart, axis)
        if not (_alike(one[number], apart[0]) and _alike(batch[number], together)):
            raise _FixedError(f"output {number + 1} of several samples at once is another one")


def _resize(made: Any, feed: Mapping[str, Array]) -> None:
    """Of an interpreter: the inputs to those of a run."""
    named = made.get_signature_runner(next(iter(made.get_signature_list()))).get_input_details()
    for name, array in feed.items():
        made.resize_tensor_input(named[name]["index"], array.shape)
    made.allocate_tensors()


def _alike(have: Array, want: Array) -> bool:
    if have.shape != want.shape or not np.array_equal(numbers := np.isfinite(want), np.isfinite(have)):
        return False
    return sqnr_db(have[numbers].astype(np.float64), want[numbers].astype(np.float64), LEAST_ERROR) >= _LEAST_DB


class _Opening:
    """A graph's objects while the batch is followed from its inputs to its outputs.

    Converters leave out a batch of 1 wherever they can. A tensor without it is lifted: it has the batch as one more
    axis, the first, from there on.

    Args:
        flat: what products take off their inputs' axes is all but the batch, where that is possible. Nobody can tell
            whether a single axis of 1 is the batch.
    """

    def __init__(self, file: File, number: int, axes: Mapping[int, int], batch: int, *, flat: bool) -> None:
        self._flat = flat
        self._model = file.model
        self._writing = Writing(file, number)
        self._graph = self._writing.graph
        if any(text(tensor.name).isdigit() for tensor in self._graph.tensors):
            self._writing.prefix = f"batch{number}."  # numbers that are names already would come twice
        self._axes = dict(axes)
        """By tensor with the batch: the axis that grows with it."""
        self._outer: dict[int, int] = {}
        """By tensor where it is not 1: how many elements of that axis the batch stands within."""
        self._batch = batch
        self._kept: list[Any] = []
        """Operators of the graph as it will be."""
        self._lifted: set[int] = set()
        self._extra: set[int] = set()
        """Of the inputs of the operator at hand: those that are lifted."""
        self._opened: dict[int, list[int | None]] = {}
        """By number of a graph of a loop's step: the axis of the batch in each of its outputs."""
        self._same: dict[int, int] = {}
        """By tensor: the one that stands in its place now."""
        self._one_axis = {int(op.inputs[0]) for op in self._graph.operators if self._name(op) == "EMBEDDING_LOOKUP"}

    def run(self) -> list[int | None]:
        """Open what holds the batch; returns its axis in every output.

        Raises:
            _FixedError: an operator needs the batch as a number, or mixes what is of several samples.
        """
        for op in self._graph.operators:
            self._extra = {self._same.get(int(each), int(each)) for each in op.inputs if int(each) in self._lifted}
            op.inputs = [self._same.get(int(each), int(each)) for each in op.inputs]
            if any(each in self._axes for each in op.inputs):
                self._follow(self._name(op), op)
            if int(op.outputs[0]) not in self._same:
                self._kept.append(op)
        self._graph.operators = self._kept
        ends = [int(each) for each in self._graph.outputs]
        if self._lifted & {*ends}:
            raise _FixedError("an output has no axis for it")
        return [self._axes.get(each) for each in ends]

    def _name(self, op: Any) -> str:
        return operator_name(self._model, op)

    def _follow(self, name: str, op: Any) -> None:
        """Where the batch is in what an operator writes."""
        held = name not in _RECURRENT and any(self._graph.tensors[each].isVariable for each in op.inputs if each >= 0)
        if name in _HELD or held:
            raise _FixedError(f"{name} needs it as a number")
        if name not in _LIFTED and self._extra:
            raise self._mixed(name)
        if name == "WHILE":
            self._looped(name, op)
            return
        outer = {self._outer.get(each, 1) for each in op.inputs if each in self._axes}
        axis = _RULES.get(name, _Opening._aligned)(self, name, op)
        if len(outer) > 1:
            raise self._mixed(name)
        for output in map(int, op.outputs):
            if not 0 <= axis < len(self._shape(output)):
                raise self._mixed(name)
            self._axes[output] = axis
            self._outer.setdefault(output, outer.copy().pop())

    def _writes(self, op: Any, shape: Sequence[int], *, lifted: bool) -> None:
        """Note the shape of what an operator writes."""
        self._graph.tensors[op.outputs[0]].shape = list(shape)
        if lifted:
            self._lifted.add(int(op.outputs[0]))

    def _aligned(self, name: str, op: Any) -> int:
        """Of an operator that broadcasts its inputs against each other, or keeps the axes of its only one."""
        if self._extra:
            shapes = [self._shape(each) for each in op.inputs if each >= 0]
            if name == "BATCH_MATMUL":
                shapes = [*(shape[:-2] for shape in shapes), []]
            self._broadcast(name, op, shapes)
        rank = len(self._shape(op.outputs[0]))
        found = {rank - len(self._shape(each)) + self._axes[each] for each in op.inputs if each in self._axes}
        if len(found) > 1:
            raise self._mixed(name)
        return found.pop()

    def _broadcast(self, name: str, op: Any, shapes: Sequence[Sequence[int]]) -> None:
        before = self._shape(op.outputs[0])
        try:
            shape = list(np.broadcast_shapes(*map(tuple, shapes)))
        except ValueError as err:
            raise self._mixed(name) from err
        shape += before[-2:] if name == "BATCH_MATMUL" else []
        self._writes(op, shape, lifted=len(shape) > len(before))

    def _reshape(self, name: str, op: Any) -> int:
        """The batch stays what is counted behind the same number of elements; its size is left to the runtime."""
        source, output = op.inputs[0], int(op.outputs[0])
        before, after, axis = self._shape(source), self._shape(output), self._axes[source]
        if self._batch == 1 and axis < 2 and self._swaps(before, after, axis):
            self._becomes(op, "TRANSPOSE", [[1, 0, 2]])
            return 1 - axis
        outside = prod(before[:axis]) * self._outer.get(source, 1)
        places = [at for at in range(len(after)) if prod(after[:at]) == outside]
        single = [at for at in places if after[at] == self._batch]
        bound = output in {*map(int, self._graph.outputs)} | self._one_axis
        if not single and outside == 1 == self._batch and not bound:
            after, places = [1, *after], [0]
            self._writes(op, after, lifted=True)
        if not single:
            places = places if outside == 1 == self._batch else self._within(after, outside)
        if not single and not places:
            raise self._mixed(name)
        updated = [int(each.inputs[0]) for each in self._graph.operators if self._updates(each, output)]
        opened = next((self._axes[each] for each in updated if self._axes.get(each) in single), (single or places)[0])
        self._outer[output], rest = divmod(outside, prod(after[:opened]))
        if rest:
            raise self._mixed(name)
        if after == before and opened == axis and not bound:
            self._same[output] = source
            return axis
        self._becomes(op, "RESHAPE", [[*after[:opened], _OPEN, *after[opened + 1 :]]])
        return opened

    def _swaps(self, before: Sequence[int], after: Sequence[int], axis: int) -> bool:
        """Whether a batch of 1 changes places with steps, which converters write as a RESHAPE."""
        alike = len(before) == len(after) == 3 and after == [before[1], before[0], before[2]] and after != before
        return alike and before[axis] == 1 and (axis == 1 or any(map(self._takes_steps_first, self._graph.operators)))

    def _takes_steps_first(self, op: Any) -> bool:
        name = self._name(op)
        if name == "WHILE":
            body = self._model.subgraphs[int(op.builtinOptions.bodySubgraphIndex)].operators
            return any(self._name(each) == "GATHER" and int(each.builtinOptions.axis) == 0 for each in body)
        return name in _RECURRENT and bool(op.builtinOptions.timeMajor)

    def _within(self, shape: Sequence[int], outside: int) -> list[int]:
        """Axes with which a batch may have been put together that stands within so many elements."""
        ends = [(at, prod(shape[:at]), prod(shape[: at + 1])) for at in range(len(shape))]
        if self._batch > 1:
            return [at for at, start, end in ends if outside % start == 0 and end % (outside * self._batch) == 0]
        return [at for at, start, end in ends if start < outside <= end]  # that in front of it

    def _becomes(self, op: Any, other: str, constants: Sequence[Sequence[int]], **fields: int) -> None:
        """Make it another operator on its first input, with these constants behind it."""
        made = self._writing
        inputs = [op.inputs[0], *(made.constant(np.array(each, np.int32)) for each in constants)]
        made.add(other, inputs, op.outputs, "StridedSlice" if fields else None, fields)
        new = made.made.pop()
        op.opcodeIndex, op.inputs = new.opcodeIndex, new.inputs
        op.builtinOptionsType, op.builtinOptions = new.builtinOptionsType, new.builtinOptions

    def _gather_all(self, name: str, op: Any) -> int:
        """Elements that are gathered all, in their order, are reshaped."""
        shape = self._shape(op.inputs[0])
        data = np.array(self._numbers(name, op.inputs[1]), np.int64).reshape(self._shape(op.inputs[1]))
        every = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, len(shape))
        if data.shape[-1] != len(shape) or not np.array_equal(data.reshape(-1, len(shape)), every):
            raise self._mixed(name)
        return self._reshape(name, op)

    def _slice(self, name: str, op: Any) -> int:
        """All along the batch, by an operator that takes an axis to its end."""
        axis, shape = self._axes[op.inputs[0]], self._shape(op.inputs[0])
        begin, size = (self._numbers(name, each) for each in op.inputs[1:3])
        if self._extra:
            begin, size = [0, *begin], [_OPEN, *size]
            self._writes(op, [1, *self._shape(op.outputs[0])], lifted=True)
        end = [whole if each == _OPEN else at + each for at, each, whole in zip(begin, size, shape, strict=True)]
        if begin[axis] or end[axis] != shape[axis]:
            raise self._mixed(name)
        self._becomes(op, "STRIDED_SLICE", [begin, end, [1] * len(shape)], endMask=1 << axis)
        return axis

    def _strided(self, name: str, op: Any) -> int:
        """All along the batch."""
        axis, bit = self._axes[op.inputs[0]], 1 << self._axes[op.inputs[0]]
        options = op.builtinOptions = copy.copy(op.builtinOptions)
        begin, end, step = (self._numbers(name, each) for each in op.inputs[1:4])
        whole = (begin[axis], step[axis]) == (0, 1) and end[axis] == self._shape(op.inputs[0])[axis]
        if not whole or options.ellipsisMask or options.newAxisMask or options.shrinkAxisMask & bit:
            raise self._mixed(name)
        options.endMask |= bit
        return axis - int(options.shrinkAxisMask & (bit - 1)).bit_count()

    def _transpose(self, name: str, op: Any) -> int:
        order = self._numbers(name, op.inputs[1])
        if self._extra:
            order = [0, *(axis + 1 for axis in order)]
            op.inputs = [op.inputs[0], self._writing.constant(np.array(order, np.int32))]
            self._writes(op, [1, *self._shape(op.outputs[0])], lifted=True)
        axis = self._axes[op.inputs[0]]
        readers = [self._name(each) for each in self._graph.operators if int(op.outputs[0]) in {*map(int, each.inputs)}]
        if self._batch == 1 and order[0] != axis and readers and {*readers} == {"RESHAPE"}:
            # Nobody can tell where a batch of 1 stands; in front of all else it does not part what is reshaped.
            order = [axis, *(each for each in order if each != axis)]
            op.inputs = [op.inputs[0], self._writing.constant(np.array(order, np.int32))]
            shape = self._shape(op.inputs[0])
            self._writes(op, [shape[each] for each in order], lifted=bool(self._extra))
        return order.index(axis)

    def _reduced(self, name: str, op: Any) -> int:
        """Along other axes; with a batch of 1, converters reduce along it as well."""
        axis, shape = self._axes.get(op.inputs[0]), self._shape(op.inputs[0])
        lifted, before = bool(self._extra), self._shape(op.outputs[0])
        keeps = len(before) == len(shape) - lifted
        axes = {each % (len(shape) - lifted) + lifted for each in self._numbers(name, op.inputs[1])}
        if axis is None or (axis in axes and (self._batch != 1 or axis or name not in _REDUCING)):
            raise self._mixed(name)
        if lifted or axis in axes:
            axes -= {axis}
            op.inputs = [op.inputs[0], self._writing.constant(np.array(sorted(axes), np.int32))]
            lost = not keeps or lifted
            self._writes(op, [1, *before] if lost else before, lifted=lost)
        return axis if keeps else axis - sum(each < axis for each in axes)

    def _along_last(self, name: str, op: Any) -> int:
        axis = self._aligned(name, op)
        if axis == len(self._shape(op.outputs[0])) - 1:
            raise self._mixed(name)
        return axis

    def _joined(self, name: str, op: Any) -> int:
        """Inputs of which each has the batch, along another axis."""
        axis = self._aligned(name, op)
        along = op.builtinOptions.axis % len(self._shape(op.outputs[0]))
        if along == axis:
            raise self._mixed(name)
        if not all(each in self._axes for each in op.inputs):
            raise _FixedError(f"{name} has a constant for one sample")
        return axis

    def _gathered(self, name: str, op: Any) -> int:
        data, places = op.inputs
        along = int(op.builtinOptions.axis) % len(self._shape(data))
        if op.builtinOptions.batchDims or self._axes.get(data) == along or {data, places} <= set(self._axes):
            raise self._mixed(name)
        if places in self._axes:
            return along + self._axes[places]
        axis = self._axes[data]
        return axis if axis < along else axis - 1 + len(self._shape(places))

    def _looked_up(self, name: str, op: Any) -> int:
        return self._axes[op.inputs[0]]

    def _multiplied(self, name: str, op: Any) -> int:
        """By a matrix, which all samples share; vectors stay where they are."""
        axis, shape = self._axes.get(op.inputs[0]), self._shape(op.inputs[0])
        before, (_, columns) = self._shape(op.outputs[0]), self._shape(op.inputs[1])
        if axis is None or axis == len(shape) - 1:
            raise self._mixed(name)
        drops = not op.builtinOptions.keepNumDims and len(before) == 2 and shape[-1] == columns
        if self._flat and drops and prod(shape[:-1]) == self._batch:
            return 0
        if op.builtinOptions.keepNumDims or (len(shape) > 2 and shape[-1] == columns):
            op.builtinOptions = copy.copy(op.builtinOptions)
            op.builtinOptions.keepNumDims = True
            op.opcodeIndex = self._writing.file.operator_code(name, KEEPS_AXES)
            self._writes(op, [*shape[:-1], before[-1]], lifted=len(shape) > len(before))
            return axis
        if axis:
            raise self._mixed(name)
        return axis

    def _image(self, name: str, op: Any) -> int:
        if self._axes.get(op.inputs[0]) != 0:
            raise self._mixed(name)
        return 0

    def _parted(self, name: str, op: Any) -> int:
        """Along another axis."""
        place, data = (op.inputs[0], op.inputs[1]) if name == "SPLIT" else (op.inputs[2], op.inputs[0])
        axis, (along,) = self._axes[data], self._numbers(name, place)
        if along % len(self._shape(data)) == axis:
            raise self._mixed(name)
        return axis

    def _updates(self, op: Any, part: int) -> bool:
        return self._name(op) == "DYNAMIC_UPDATE_SLICE" and int(op.inputs[1]) == part

    def _updated(self, name: str, op: Any) -> int:
        """Along another axis, in something that has the batch as well."""
        axes = {self._axes.get(each) for each in op.inputs[:2]}
        if len(axes) > 1 or None in axes:
            raise self._mixed(name)
        return self._axes[op.inputs[0]]

    def _recurrent(self, name: str, op: Any) -> int:
        """First states grow with the batch. Cells of both directions mix up samples that stand before steps."""
        x, both = int(op.inputs[0]), name.startswith("BI")
        axis = 1 if op.builtinOptions.timeMajor else 0
        if self._axes.get(x) != axis or (both and not op.builtinOptions.timeMajor):
            raise self._mixed(name)
        for at, each in enumerate(map(int, op.inputs)):
            if each >= 0 and self._graph.tensors[each].isVariable and each not in self._axes:
                op.inputs[at] = self._grown(name, each, x)
                self._same[each] = int(op.inputs[at])
        return axis

    def _looped(self, name: str, op: Any) -> None:
        """What a loop carries grows with the batch, and keeps the place of it; its step is opened as well."""
        source = max(
            (each for each in map(int, op.inputs) if each in self._axes), key=lambda each: len(self._shape(each))
        )
        op.inputs = [
            each if each in self._axes or not self._shape(each) else self._grown(name, each, source)
            for each in map(int, op.inputs)
        ]
        places = [self._axes.get(each) for each in op.inputs]
        number = int(op.builtinOptions.bodySubgraphIndex)
        body = self._writing.file.model.subgraphs[number]
        if number not in self._opened:
            given = {int(one): axis for one, axis in zip(body.inputs, places, strict=True) if axis is not None}
            self._opened[number] = _Opening(self._writing.file, number, given, self._batch, flat=self._flat).run()
        if self._opened[number] != places:
            raise self._mixed(name)
        self._axes |= {int(one): axis for one, axis in zip(op.outputs, places, strict=True) if axis is not None}

    def _grown(self, name: str, tensor: int, source: int) -> int:
        """In the place of a constant, or of what one is copied into: the same for every sample.

        Args:
            source: a tensor (samples, steps, …) or (steps, samples, …), by which the batch is known.
        """
        shape, axis = self._shape(tensor), self._axes[source]
        writers = [each for each in self._kept if tensor in map(int, each.outputs)]
        held = self._writing.constant(self._row(name, int(writers[0].inputs[-1]) if writers else tensor, shape))
        self._kept = [each for each in self._kept if each not in writers]
        is_state = len(shape) == 2
        end = [size if at == axis else 1 for at, size in enumerate(self._shape(source))] if is_state else shape
        places = [self._writing.constant(np.array(each, np.int32)) for each in ([0] * 3, end, [1] * 3)]
        masks = {"endMask": 1 << axis, "shrinkAxisMask": (1 << (1 - axis)) * is_state}
        rows = [end[axis], end[2]] if is_state else end
        part = self._writing.op("STRIDED_SLICE", [source, *places], rows, np.float32, options="StridedSlice", **masks)
        # Nothing is less than itself: what stands for it in as many samples as there are is always the same.
        never = self._writing.op("LESS", [part, part], rows, np.bool_, options="Less")
        result = self._writing.op("SELECT_V2", [never, held, held], shape, np.float32)
        self._graph.tensors[result].isVariable = self._graph.tensors[tensor].isVariable
        self._kept += self._writing.made
        self._writing.made.clear()
        self._axes[result] = 0 if is_state else axis
        return result

    def _row(self, name: str, tensor: int, shape: Sequence[int]) -> Array:
        """What a constant (samples, units) holds for each sample; of one that is 0 throughout as little as can be."""
        try:
            value = self._writing.value(tensor)
        except ModelError:
            value = np.zeros(0)
        if not value.size or len(shape) not in (2, 3):
            raise _FixedError(f"{name} begins with what is computed for one batch")
        if not value.any():
            return np.zeros((1, shape[1]) if len(shape) == 2 else (), np.float32)
        if list(value.shape) != list(shape) or len(shape) != 2 or (value != value[:1]).any():
            raise self._mixed(name)
        return value[:1]

    def _numbers(self, name: str, tensor: int) -> list[int]:
        """Of a constant."""
        if not self._writing.holds(tensor):
            raise _FixedError(f"{name} has computed sizes")
        held = self._graph.tensors[tensor]
        data = bytes(self._model.buffers[held.buffer].data)
        return [int(number) for number in np.frombuffer(data, DTYPES[held.type])]

    def _shape(self, tensor: int) -> list[int]:
        shape = self._graph.tensors[tensor].shape
        return [] if shape is None else [int(size) for size in shape]

    @staticmethod
    def _mixed(name: str) -> _FixedError:
        return _FixedError(f"{name} works across it")


_HELD = ("BROADCAST_TO", "FILL", "TILE", "TRANSPOSE_CONV", "SHAPE", "PACK", "UNPACK", "IF", "CUSTOM")
"""Operators that hold sizes of what they write, or whose axes are counted in another way."""
_RECURRENT = ("UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM")
_REDUCING = ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REDUCE_ANY", "REDUCE_ALL")
_ELEMENTWISE = (
    *("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "POW", "FLOOR_DIV", "FLOOR_MOD"),
    *("SELECT", "SELECT_V2", "EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL"),
    *("LOGICAL_AND", "LOGICAL_OR", "LOGICAL_NOT", "ABS", "NEG", "EXP", "LOG", "SQRT", "RSQRT", "SQUARE", "SIN", "COS"),
    *("RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1", "LEAKY_RELU", "ELU", "HARD_SWISH", "GELU", "TANH", "LOGISTIC"),
    *("CAST", "FLOOR", "CEIL", "ROUND", "SIGN"),
)
_LIFTED = frozenset(
    (
        *_ELEMENTWISE,
        *_REDUCING,
        "BATCH_MATMUL",
        "SOFTMAX",
        "LOG_SOFTMAX",
        "RESHAPE",
        "FULLY_CONNECTED",
        "TRANSPOSE",
        "SLICE",
    )
)
"""Operators that take one more axis."""
_RULES: Mapping[str, Callable[[_Opening, str, Any], int]] = {
    "RESHAPE": _Opening._reshape,
    "GATHER_ND": _Opening._gather_all,
    "SLICE": _Opening._slice,
    "STRIDED_SLICE": _Opening._strided,
    "TRANSPOSE": _Opening._transpose,
    **dict.fromkeys((*_REDUCING, "ARG_MAX", "ARG_MIN"), _Opening._reduced),
    **dict.fromkeys(("SOFTMAX", "LOG_SOFTMAX", "L2_NORMALIZATION", "TOPK_V2"), _Opening._along_last),
    "CONCATENATION": _Opening._joined,
    "GATHER": _Opening._gathered,
    "EMBEDDING_LOOKUP": _Opening._looked_up,
    "FULLY_CONNECTED": _Opening._multiplied,
    **dict.fromkeys(("SPLIT", "SPLIT_V"), _Opening._parted),
    "DYNAMIC_UPDATE_SLICE": _Opening._updated,
    **dict.fromkeys(_RECURRENT, _Opening._recurrent),
    **dict.fromkeys(
        (
            "CONV_2D",
            "DEPTHWISE_CONV_2D",
            "MAX_POOL_2D",
            "AVERAGE_POOL_2D",
            "RESIZE_BILINEAR",
            "RESIZE_NEAREST_NEIGHBOR",
        ),
        _Opening._image,
    ),
}
