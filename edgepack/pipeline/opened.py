"""Opens whatever MODEL names as a dense fp32 ONNX graph, with a torch program beside it where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgepack.emit.needs import missing
from edgepack.errors import ModelError, UsageError
from edgepack.model.layer import Layer
from edgepack.types import Recipe, TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir

Kind = Literal["recipe", "pt2", "onnx"]


@dataclass(frozen=True)
class Opened:
    """A model, ready to be calibrated, factored and emitted.

    Attributes:
        name: short name for folders and tables.
        sha256: of the dense fp32 ONNX content.
        onnx_path: the dense fp32 ONNX file: the source itself, or an export in the working folder.
        program_path: the exported torch program (`.pt2`), None for an ONNX source.
    """

    name: str
    kind: Kind
    model: ir.Model
    layers: tuple[Layer, ...]
    inputs: tuple[TensorSpec, ...]
    sha256: str
    onnx_path: Path
    program_path: Path | None
    recipe: Recipe | None


def model_kind(spec: str) -> Kind:
    """How `spec` is to be opened.

    Raises:
        UsageError: it is none of the known kinds.
    """
    suffix = Path(spec).suffix.lower()
    if suffix == ".onnx":
        return "onnx"
    if suffix == ".pt2":
        return "pt2"
    head, colon, function = spec.rpartition(":")
    if colon and head and function.isidentifier():
        return "recipe"
    raise UsageError(
        f"cannot tell what {spec!r} is: expected model.onnx, model.pt2, file.py:function or package.module:function",
        hint="export a torch module with torch.export.save, or write a function that returns an edgepack Recipe",
    )


def model_name(spec: str) -> str:
    """`bench/models/mnist_mlp.py:recipe` → `mnist-mlp`; `standard_v3/model.onnx` → `standard-v3`."""
    head = spec.rpartition(":")[0] if model_kind(spec) == "recipe" else spec
    stem = Path(head).stem if head.endswith((".py", ".onnx", ".pt2")) else head.rpartition(".")[2]
    if stem == "model":
        stem = Path(head).resolve().parent.name
    return stem.replace("_", "-").lower() or "model"


def open_model(spec: str, work: Path) -> Opened:
    """Open `spec`; exports of a torch model go into the folder `work`.

    Raises:
        UsageError: `spec` names no model, or what opens it is not installed.
        ModelError: the model is bad or cannot be exported.
    """
    kind = model_kind(spec)
    if kind == "onnx":
        return _opened_onnx(spec, kind, Path(spec), None, None)
    if lacks := missing(("torch", "onnxscript")):
        raise UsageError(
            f"{spec}: torch models need {', '.join(lacks)}: not installed", hint="pip install 'edgepack[torch]'"
        )
    from edgepack.sources.torch import export_program, load_pt2, program_to_onnx, save_program

    recipe = None
    if kind == "pt2":
        program = load_pt2(Path(spec))
    else:
        from edgepack.sources.recipe import load_recipe

        recipe = load_recipe(spec)
        program = export_program(recipe.model, recipe.example_inputs)
    save_program(program, work / "dense.pt2")
    program_to_onnx(program, work / "dense.onnx")
    return _opened_onnx(spec, kind, work / "dense.onnx", work / "dense.pt2", recipe)


def _opened_onnx(spec: str, kind: Kind, path: Path, program: Path | None, recipe: Recipe | None) -> Opened:
    from edgepack.sources.onnx import open_onnx

    try:
        source = open_onnx(path)
    except ModelError as err:
        if str(path) in err.message:
            raise
        raise ModelError(f"{spec}: {err.message}", hint=err.hint) from err
    if not source.inputs:
        raise ModelError(f"{spec}: the model takes no inputs")
    return Opened(
        model_name(spec), kind, source.model, source.layers, source.inputs, source.sha256, path, program, recipe
    )
