"""Torch programs in `.pt2` files; module → exported program → ONNX file."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.errors import ModelError, install_command
from edgepack.model.model import Model, NativeName
from edgepack.model.scheme import Format
from edgepack.natives.torch import read_torch
from edgepack.sources.inputs import GivenInput
from edgepack.sources.onnx import onnx_model
from edgepack.sources.source import FileOfSuffix
from edgepack.torchgraph import flat_module, fold_batch_norms, load_program
from edgepack.torchgraph.digest import program_digest
from edgepack.torchgraph.flat import keep_keys, output_names
from edgepack.torchgraph.layers import vectors
from edgepack.torchgraph.run import input_specs
from edgepack.torchgraph.tidy import tidy
from edgepack.workspace import uncollected

if TYPE_CHECKING:
    import onnx_ir
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.nn import Module

# One protobuf message holds at most 2 GiB; above this the weights go into a file beside the model.
_EXTERNAL_DATA_BYTES = 1_900_000_000
_NOISY_LOGGERS = ("torch.onnx", "torch.export", "torch._export", "torch._dynamo", "onnxscript", "onnx_ir", "torch.fx")


TITLE = "torch models"
PACKAGES = ("torch",)
INSTALL = install_command("torch")
"""Of every source that gives a torch program."""
HEAVY = ("torch.export", "torch.fx")


class ProgramFile(FileOfSuffix):
    """`model.pt2`: see `Source`."""

    name = "pt2"
    title = TITLE
    suffix = ".pt2"
    forms: tuple[str, ...] = ("model.pt2",)
    advice: str | None = "export a torch module with torch.export.save"
    native: NativeName = "torch"
    packages: tuple[str, ...] = PACKAGES
    install = INSTALL
    heavy: tuple[str, ...] = HEAVY

    def open(
        self, spec: str, name: str, work: Path, formats: Collection[Format], given: Sequence[GivenInput] = ()
    ) -> Model:
        """See `Source.open`."""
        program = load_program(Path(spec))
        model = program_model(spec, name, self.name, _at_examples(program, spec), work, formats)
        return replace(model, batched=_batched(program))


def program_model(
    spec: str, name: str, kind: str, program: ExportedProgram, work: Path, formats: Collection[Format]
) -> Model:
    """The model of a torch program, which is written into the folder `work`; with its ONNX export beside it, in which
    the model is the truth then, where such a file is to be written.

    Args:
        spec: as the user gave it.
        name: see `Model`.
        kind: name of its source.
        program: with folded batch norms.
        work: the folder.
        formats: of the files that will be written.

    Raises:
        ModelError: it cannot be exported, or what was exported cannot be read; it takes no inputs.
    """
    path = work / "dense.pt2"
    save_program(program, path)
    if "onnx" in formats:
        program_to_onnx(program, work / "dense.onnx")
        return replace(onnx_model(spec, name, kind, work / "dense.onnx", work), program=path)
    content = read_torch(path)
    inputs = input_specs(content.module)
    if not inputs:
        raise ModelError(f"{spec}: the model takes no inputs")
    return Model(
        name=name,
        kind=kind,
        sha256=program_digest(content.module),
        native="torch",
        content=content,
        inputs=inputs,
        layers=content.layers,
        files={},
        program=path,
        recipe=None,
        vectors=vectors(content.module),
    )


def export_program(model: Module, example_inputs: tuple[Tensor, ...], *, tidied: bool = False) -> ExportedProgram:
    """Trace the model in eval mode with the static shapes of the example inputs; batch norms are folded.

    Args:
        model: in any mode.
        example_inputs: of one run.
        tidied: see `edgepack.torchgraph.tidy`.

    Raises:
        ModelError: torch.export cannot trace the model.
    """
    import torch

    model.eval()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # The fused attention kernel hides its four matrices in one operator that no exporter knows.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _quiet(), uncollected():
            program = torch.export.export(model, example_inputs, strict=False)
    except KeyboardInterrupt:
        raise
    except BaseException as err:  # whatever the model's own code raises
        raise ModelError(
            f"torch.export cannot trace {type(model).__name__}: {_summary(err)}",
            hint="see that model(*example_inputs) runs and that its control flow does not depend on values",
        ) from err
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return _folded(program, example_inputs, tidied=tidied)


def load_pt2(path: Path | str) -> ExportedProgram:
    """Read a `.pt2` file without unpickling; batch norms are folded.

    Raises:
        ModelError: not a program, damaged, with dynamic shapes but without example inputs, or with parts that only
            running code from the file could read.
    """
    return _at_examples(load_program(path), path)


def _at_examples(program: ExportedProgram, path: Path | str) -> ExportedProgram:
    """See `load_pt2`."""
    if program.example_inputs is None:
        raise ModelError(f"{path}: it holds no example inputs", hint="save it from torch.export.export with its inputs")
    args, kwargs = program.example_inputs
    if program.range_constraints or kwargs:
        program = _static(program, args, kwargs)
    return _folded(program, tuple(program.example_inputs[0]))


def _batched(program: ExportedProgram) -> frozenset[str]:
    """Inputs whose first axis is of any size."""
    import torch

    given = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    shapes = {node.name: node.meta["val"].shape for node in given if isinstance(node.meta.get("val"), torch.Tensor)}
    return frozenset(name for name, shape in shapes.items() if len(shape) and isinstance(shape[0], torch.SymInt))


def _static(program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    """The same program with the shapes of its example inputs and positional inputs only."""
    import torch
    from torch.utils import _pytree as pytree

    module = flat_module(program)
    keep_keys(module)
    inputs = tuple(leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
    try:
        with _quiet():
            return torch.export.export(module, inputs, strict=False)
    except Exception as err:
        raise ModelError(f"the program does not fit the shapes of its example inputs: {_summary(err)}") from err


def _folded(program: ExportedProgram, inputs: tuple[Tensor, ...], *, tidied: bool = False) -> ExportedProgram:
    import torch

    module = flat_module(program)
    if tidied:
        tidy(module)
    if not fold_batch_norms(module) and not tidied:
        return program
    keep_keys(module)
    with _quiet():
        return torch.export.export(module, inputs, strict=False)


def save_program(program: ExportedProgram, path: Path | str) -> None:
    """Write the program as a `.pt2` file that `load_pt2` reads."""
    import torch

    with _quiet():
        # Not into the file itself: where a write fails, torch ends the process.
        content = io.BytesIO()
        torch.export.save(program, content)
    Path(path).write_bytes(content.getbuffer())


def program_to_onnx(program: ExportedProgram, path: Path | str) -> None:
    """Write the program as an fp32 ONNX file.

    Input names are the argument names of forward(), output names the keys of the dict that it returns; the same program
    gives the same bytes. Weights go into `<name>.data` beside the file only if they do not fit into it. Nothing about
    the machine or the source code that the exporter notes (stack traces, module paths) is kept.

    Raises:
        ModelError: an operator has no ONNX counterpart; it is named.
    """
    import onnx_ir
    import torch

    path = Path(path)
    try:
        with _quiet(), uncollected():
            exported = torch.onnx.export(program, (), dynamo=True, verbose=False)
    except Exception as err:
        raise ModelError(
            f"torch.onnx cannot export {_operator(err) or 'the model'}: {_summary(err)}",
            hint="replace this operator in the model, or build only the TFLite file (--formats tflite)",
        ) from err
    model = exported.model
    _strip(model)
    _name_outputs(model, output_names(flat_module(program)))
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    external = f"{path.name}.data" if size > _EXTERNAL_DATA_BYTES else None
    onnx_ir.save(model, path, external_data=external)


def _name_outputs(model: onnx_ir.Model, names: Sequence[str]) -> None:
    """Give the outputs the names that they have in other formats; an input or a weight that is returned keeps its own.

    A value inside of the graph that has such a name already gets another one.
    """
    graph = model.graph
    fixed = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    inner = {value.name: value for node in graph.all_nodes() for value in node.outputs}
    outputs = list(graph.outputs)
    for value, name in zip(outputs, names, strict=True):
        if value.name in fixed or name in fixed or outputs.count(value) > 1 or value.name == name:
            continue
        if (other := inner.get(name)) is not None:
            other.name = next(free for n in count() if (free := f"{name}_{n}") not in fixed | inner.keys())
            inner[other.name] = other
        value.name = name
        inner[name] = value


def _strip(model: onnx_ir.Model) -> None:
    """Remove what the exporter notes for debugging: it holds local paths and changes with them."""
    model.metadata_props.clear()
    model.doc_string = None
    graphs: list[Any] = [model.graph, *model.functions.values()]
    for graph in graphs:
        graph.metadata_props.clear()
        graph.doc_string = None
        values = [*graph.inputs]
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            values += node.outputs
        values += getattr(graph, "initializers", {}).values()
        for value in values:
            value.metadata_props.clear()
            value.doc_string = None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's prints, warnings and log lines away from the user; exceptions pass."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    sink = io.StringIO()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _operator(err: BaseException | None) -> str | None:
    """The aten operator that an exporter's error chain speaks of."""
    while err is not None:
        if found := re.search(r"\b(?:torch\.ops\.)?((?:aten|prims|[a-z]\w*)(?:::|\.)\w+\.(?:default|\w+))\b", str(err)):
            return found.group(1)
        err = err.__cause__ or err.__context__
    return None


def _summary(err: BaseException) -> str:
    """The first telling line of the innermost cause."""
    while err.__cause__ is not None:
        err = err.__cause__
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return f"{type(err).__name__}: {lines[0]}" if lines else type(err).__name__
