"""Opens whatever MODEL names: one module per kind of input, each gives a `Model`."""

from __future__ import annotations

from pathlib import Path

from edgepack.backends.registry import missing
from edgepack.errors import ModelError, UsageError
from edgepack.model.model import Kind, Model
from edgepack.model.scheme import Format
from edgepack.model.types import Recipe


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


def file_format(spec: str) -> Format | None:
    """The format of the file that `spec` names; None for a torch program.

    Raises:
        UsageError: see `model_kind`.
    """
    return "onnx" if model_kind(spec) == "onnx" else None


def model_name(spec: str) -> str:
    """`bench/models/mnist_mlp.py:recipe` → `mnist-mlp`; `standard_v3/model.onnx` → `standard-v3`."""
    head = spec.rpartition(":")[0] if model_kind(spec) == "recipe" else spec
    stem = Path(head).stem if head.endswith((".py", ".onnx", ".pt2")) else head.rpartition(".")[2]
    if stem == "model":
        stem = Path(head).resolve().parent.name
    return stem.replace("_", "-").lower() or "model"


def open_model(spec: str, work: Path) -> Model:
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


def _opened_onnx(spec: str, kind: Kind, path: Path, program: Path | None, recipe: Recipe | None) -> Model:
    from edgepack.sources.onnx import open_onnx

    try:
        source = open_onnx(path)
    except ModelError as err:
        if str(path) in err.message:
            raise
        raise ModelError(f"{spec}: {err.message}", hint=err.hint) from err
    if not source.inputs:
        raise ModelError(f"{spec}: the model takes no inputs")
    return Model(
        name=model_name(spec),
        kind=kind,
        sha256=source.sha256,
        native="onnx",
        content=source.model,
        inputs=source.inputs,
        layers=source.layers,
        files={"onnx": path},
        program=program,
        recipe=recipe,
    )
