"""Load a model written in Python: `file.py:function` or `package.module:function`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgepack.data import MAX_BYTES
from edgepack.errors import EdgepackError, ModelError, UsageError
from edgepack.metrics.metric import Metric, own_metric
from edgepack.model.model import Model, NativeName
from edgepack.model.scheme import Format
from edgepack.model.types import Array, Recipe
from edgepack.sources.inputs import GivenInput
from edgepack.sources.keras import export_keras, import_keras, is_keras
from edgepack.sources.source import file_stem
from edgepack.sources.torch import INSTALL, PACKAGES, TITLE, export_program, program_model
from edgepack.workers.sandbox import GIB, limits_of
from edgepack.workspace import uncollected

MOST_YIELDED = 200_000
"""Tuples or samples that are taken of code before it is said to have no end."""

_PACKAGE = f"{Path(__file__).parent.parent}{os.sep}"
_SHAPE = "a recipe function takes no arguments and returns edgepack.Recipe(model, example_inputs, …)"
_ENTRY_POINTS = (
    "give each entry point of the model a function of its own and build each; "
    "edgepack join encode=PACK decode=PACK -o model.tflite makes one TFLite file of them"
)

_TELL_NOTHING = frozenset({"", "build", "create", "get", "load", "main", "make", "make_model", "model", "recipe"})
_METRIC = "function(outputs, labels) returns a score per sample, higher is better; labels is None where there are none"


class PythonRecipe:
    """`file.py:function` or `package.module:function`: see `Source`."""

    name = "recipe"
    title = TITLE
    forms: tuple[str, ...] = ("file.py:function", "package.module:function")
    advice: str | None = "write a function that returns an edgepack Recipe"
    native: NativeName = "torch"
    packages: tuple[str, ...] = PACKAGES
    install = INSTALL
    runs_code = True

    def prepare(self) -> None:
        """See `Source.prepare`; the recipe's own file imports the rest."""

    def takes(self, spec: str) -> bool:
        """By the name of a function behind the last colon."""
        head, colon, function = spec.rpartition(":")
        return bool(colon and head) and function.isidentifier()

    def stem(self, spec: str) -> str:
        """That of the function; of one whose name says nothing, that of the file, or the module's last part."""
        target, _, function = spec.rpartition(":")
        if function.strip("_").lower() not in _TELL_NOTHING:
            return function
        return file_stem(target if target.endswith(".py") else target.rpartition(".")[2])

    def open(
        self, spec: str, name: str, work: Path, formats: Collection[Format], given: Sequence[GivenInput] = ()
    ) -> Model:
        """See `Source.open`; the function is called."""
        recipe = load_recipe(spec)
        export = export_keras if is_keras(recipe.model) else export_program
        program = export(recipe.model, recipe.example_inputs)
        return replace(program_model(spec, name, self.name, program, work, formats), recipe=recipe)


def load_recipe(spec: str) -> Recipe:
    """Import the function that `spec` names, call it and check what it returns.

    Args:
        spec: "path/to/file.py:function" or "package.module:function".

    Returns:
        The recipe with its model in eval mode and, if its calibration is a mapping, numpy arrays in it; the rows
        of an iterable become numpy arrays as they are read.

    Raises:
        ModelError: the file, module or function does not exist; importing or calling it raises (the message has file
            and line); what comes back is not a `Recipe` around an `nn.Module` and a tuple of tensors.
    """
    target, _, name = spec.rpartition(":")
    if not target or not name.isidentifier():
        raise ModelError(f"{spec!r} is not a recipe: expected file.py:function or package.module:function", hint=_SHAPE)
    if target.endswith(".py"):
        path = Path(os.path.expanduser(target))
        if not os.path.isfile(path):
            raise ModelError(f"{target}: no such file", hint=f"expected a Python file that defines {name}()")
        with file_module(path.resolve(), spec) as module:
            recipe = _call(module, name, spec)
    else:
        recipe = _call(_installed_module(target, spec), name, spec)
    return _checked(recipe, spec)


def load_metric(spec: str) -> Metric:
    """The user's own metric that `spec` names: function(outputs, labels) -> scores per sample.

    Args:
        spec: "path/to/file.py:function".

    Raises:
        UsageError: there is no such file or function.
        ModelError: importing it raises.
    """
    target, _, name = spec.rpartition(":")
    path = Path(os.path.expanduser(target))
    if not target.endswith(".py") or not os.path.isfile(path):
        raise UsageError(f"--metric {spec}: no such file", hint="give file.py:function, or the name of a metric")
    with file_module(path.resolve(), spec) as module:
        function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"--metric {spec}: the file defines no function {name!r}")

    def scored(outputs: Array, labels: Array | None) -> object:
        with user_errors(spec, "running", _METRIC):
            return function(outputs, labels)

    return own_metric(spec, scored)


@contextmanager
def file_module(path: Path, spec: str) -> Iterator[ModuleType]:
    """The executed module of a file; its folder is importable meanwhile, and nothing is written into it.

    Afterwards sys.path is as before, and so is sys.modules, except for modules outside the folder (torch and the like).
    """
    loader_spec = importlib.util.spec_from_file_location(f"edgepack_recipe_{path.stem}", path)
    if loader_spec is None or loader_spec.loader is None:
        raise ModelError(f"{path}: Python cannot load this file")
    module = importlib.util.module_from_spec(loader_spec)
    before, keeps_none = set(sys.modules), sys.dont_write_bytecode
    folder = str(path.parent)
    sys.path.insert(0, folder)
    # A file that is written anew within a second must not be taken for what was compiled of it before, either.
    sys.dont_write_bytecode = True
    # Dataclasses, typing and torch.export look a class's module up by name while the recipe runs.
    sys.modules[module.__name__] = module
    try:
        with user_errors(spec, "importing"), uncollected():
            loader_spec.loader.exec_module(module)
        yield module
    finally:
        sys.dont_write_bytecode = keeps_none
        if folder in sys.path:
            sys.path.remove(folder)
        for name in set(sys.modules) - before:
            if name == module.__name__ or _lies_in(sys.modules[name], folder):
                del sys.modules[name]


def _lies_in(module: ModuleType, folder: str) -> bool:
    file = getattr(module, "__file__", None)
    places = [file] if isinstance(file, str) else [str(p) for p in getattr(module, "__path__", [])]
    # A virtual environment inside the folder holds libraries, not siblings of the recipe.
    inside = [os.path.relpath(os.path.realpath(p), folder) for p in places]
    return bool(inside) and all(not p.startswith(os.pardir) and "site-packages" not in Path(p).parts for p in inside)


def _installed_module(name: str, spec: str) -> ModuleType:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise ModelError(
            f"{spec}: no module named {name!r}",
            hint="install it, or give the path of the file: path/to/file.py:function",
        )
    with user_errors(spec, "importing"), uncollected():
        return importlib.import_module(name)


def _call(module: ModuleType, name: str, spec: str) -> object:
    function: Callable[[], object] | None = getattr(module, name, None)
    if function is None:
        functions = [(n, v) for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_")]
        known = sorted(n for n, v in functions if v.__module__ == module.__name__)
        raise ModelError(f"{spec}: it defines no {name!r}; functions there: {', '.join(known) or 'none'}", hint=_SHAPE)
    if not callable(function):
        raise ModelError(f"{spec}: {name!r} is a {type(function).__name__}, not a function", hint=_SHAPE)
    needed = _required(function)
    if needed:
        raise ModelError(f"{spec}: {name!r} needs the arguments {', '.join(needed)}, none were expected", hint=_SHAPE)
    with uncollected():
        import torch._dynamo  # noqa: F401  (the exporter takes it, and an optimizer's first step would import it)
    with user_errors(spec, "calling"):
        return function()


def _required(function: Callable[..., object]) -> list[str]:
    """Parameters that a caller must give; empty where Python cannot tell."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


@contextmanager
def user_errors(spec: str, doing: str, hint: str = _SHAPE) -> Iterator[None]:
    """Turn whatever the user's code raises into a ModelError that says where.

    Args:
        spec: whose code it is.
        doing: what was done with it: "importing", "calling".
        hint: how it should have been.

    Raises:
        ModelError: with the file and line in the user's code.
    """
    try:
        yield
    except (KeyboardInterrupt, EdgepackError):
        raise
    except SyntaxError as err:
        raise ModelError(
            f"{spec}: syntax error at {err.filename}:{err.lineno}: {err.msg}",
            hint="expected a file that this Python can run: try python -m py_compile",
        ) from err
    except BaseException as err:
        if isinstance(err, GeneratorExit) and not _own_frames(err):  # who reads the samples has had enough
            raise
        raise ModelError(f"{spec}: {doing} it raised {type(err).__name__} at {_where(err)}: {err}", hint=hint) from err


def _where(err: BaseException) -> str:
    """File and line of the innermost frame that is the user's own: not edgepack's, not a library's."""
    own = _own_frames(err) or list(traceback.extract_tb(err.__traceback__))
    return f"{own[-1].filename}:{own[-1].lineno}" if own else "an unknown place"


def _own_frames(err: BaseException) -> list[traceback.FrameSummary]:
    """Those that are the user's, outermost first."""
    frames = traceback.extract_tb(err.__traceback__)
    own = [f for f in frames if not f.filename.startswith((_PACKAGE, "<")) and "site-packages" not in f.filename]
    return [f for f in own if not f.filename.startswith(os.path.dirname(os.__file__))]


def _checked(recipe: object, spec: str) -> Recipe:
    import torch

    if isinstance(recipe, dict):
        raise ModelError(f"{spec}: it returned a dict, one Recipe was expected", hint=_ENTRY_POINTS)
    if not isinstance(recipe, Recipe):
        raise ModelError(f"{spec}: it returned {type(recipe).__name__}, a Recipe was expected", hint=_SHAPE)
    if is_keras(recipe.model):
        import_keras()
    if not isinstance(recipe.model, torch.nn.Module):
        raise ModelError(f"{spec}: Recipe.model is {type(recipe.model).__name__}, a torch.nn.Module was expected")
    inputs: object = recipe.example_inputs
    if not isinstance(inputs, tuple) or not inputs:
        raise ModelError(
            f"{spec}: Recipe.example_inputs is {'empty' if inputs == () else type(inputs).__name__}, "
            "a tuple of tensors was expected",
            hint="write Recipe(model, (x,)): the comma makes it a tuple",
        )
    for position, value in enumerate(inputs):
        if not isinstance(value, torch.Tensor):
            raise ModelError(
                f"{spec}: example input {position} is {type(value).__name__}, a tensor was expected",
                hint="bind other arguments inside the model",
            )
    if recipe.evaluate is not None and not callable(recipe.evaluate):
        raise ModelError(f"{spec}: Recipe.evaluate is {type(recipe.evaluate).__name__}, a function was expected")
    recipe.model.eval()
    calibration = _calibration(recipe.calibration, spec)
    return Recipe(recipe.model, inputs, calibration, recipe.evaluate)


def _calibration(value: object, spec: str) -> Mapping[str, Array] | Iterable[tuple[Array, ...]] | None:
    if isinstance(value, Mapping):
        return {str(name): _array(array, f"{spec}: calibration[{name!r}]") for name, array in value.items()}
    if value is None:
        return None
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | np.ndarray):
        return _rows(value, spec)
    raise ModelError(
        f"{spec}: Recipe.calibration is {type(value).__name__}",
        hint='give {"input name": array, …, "y": labels} or an iterable of input tuples',
    )


def _rows(rows: Iterable[object], spec: str) -> Iterator[tuple[Array, ...]]:
    """Input tuples as numpy arrays, checked against the first while they stream; an end is waited for so long alone."""
    shapes: list[tuple[int, ...]] = []
    total, most = 0, max(MAX_BYTES, limits_of(0).memory_bytes)
    with user_errors(spec, "reading the calibration of"):
        for number, row in enumerate(rows):
            if number == MOST_YIELDED or total > most:
                raise ModelError(
                    f"{spec}: its calibration yields more than {number} tuples of {total} bytes together, "
                    f"expected at most {MOST_YIELDED} and {most} bytes",
                    hint="end it: a few thousand samples are best, and a tuple may hold many of them; for more bytes "
                    f"give a mapping of arrays, or {GIB}=16 before the command",
                )
            arrays = as_numpy(row if isinstance(row, tuple | list) else (row,), f"{spec}: calibration row {number}: ")
            found = [array.shape[1:] for array in arrays]
            shapes = shapes or found
            if found != shapes:
                raise ModelError(
                    f"{spec}: calibration row {number} has shapes {[a.shape for a in arrays]}, "
                    f"the first row's beyond the first axis are {shapes}",
                    hint="every row has the same inputs; the first axis is samples",
                )
            total += sum(array.nbytes for array in arrays)
            yield arrays


def _array(value: object, what: str) -> Array:
    import torch

    if isinstance(value, torch.Tensor):
        return np.asarray(value.detach().cpu().numpy())
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value
    raise ModelError(f"{what} is {type(value).__name__}, a numpy array or a tensor was expected")


def as_numpy(inputs: Iterable[Any], origin: str = "") -> tuple[Array, ...]:
    """Tensors or arrays of one input tuple as numpy arrays; `origin` begins the message of an error."""
    return tuple(_array(value, f"{origin}input {position}") for position, value in enumerate(inputs))
