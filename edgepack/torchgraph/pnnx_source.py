"""Turn the Python text that pnnx writes into a module, without running any of it.

The text is made from an ONNX file of unknown origin. Its syntax tree is translated into a short list of steps, each a
function from `pnnx_operators`' closed lists with arguments that are numbers, earlier values or the model's own arrays;
a module then walks that list. Anything else that stands in the text is refused, and weights are read by our own code.
"""

from __future__ import annotations

import ast
import operator
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import ModelError
from edgepack.model.types import Array
from edgepack.torchgraph import pnnx_operators, pnnx_recurrent
from edgepack.torchgraph.pnnx_operators import HINT

if TYPE_CHECKING:
    from torch.nn import Module

_LOADERS = ("self.load_pnnx_bin_as_parameter", "self.load_pnnx_bin_as_tensor")
_ARRAY_TYPES = ("float16", "float32", "float64", "bool", "uint8", "int8", "int16", "int32", "int64")
_IDLE = ("super(Model, self).__init__()", "archive.close()")
_VALUE = re.compile(r"v_[A-Za-z0-9_]+")
_ATTRIBUTE = re.compile(r"self((?:\.[A-Za-z][A-Za-z0-9_]*)+)")
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Literal:
    """A number, None, a permitted word, a dtype or an ellipsis."""

    value: object


@dataclass(frozen=True)
class Value:
    """An earlier result, by its name in the text ("v_12")."""

    name: str


@dataclass(frozen=True)
class Stored:
    """An array or a layer of the model, by its path below `self`."""

    path: str


@dataclass(frozen=True)
class Sequenced:
    """A tuple or a list of expressions."""

    kind: Callable[[Iterator[Any]], Any]
    items: tuple[Expression, ...]


@dataclass(frozen=True)
class Cut:
    """A slice; parts that are not given are None."""

    start: Expression
    stop: Expression
    step: Expression


@dataclass(frozen=True)
class Call:
    """A function of `pnnx_operators`, or a layer of the model, on arguments."""

    function: Callable[..., Any] | Stored
    arguments: tuple[Expression, ...]
    keywords: tuple[tuple[str, Expression], ...] = ()


Expression = Literal | Value | Stored | Sequenced | Cut | Call
Target = str | tuple["Target", ...]
"""A value's name, "_" for what is not used, or several of them that a result is taken apart into."""


@dataclass(frozen=True)
class Step:
    """One statement: an expression, and the names that its result gets."""

    target: Target
    expression: Expression


@dataclass(frozen=True)
class _Weights:
    """Where an array of the model lies: the key in pnnx' archive, shape, numpy's name of the type."""

    key: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class _Program:
    """`forward` as data: the inputs' names, the steps in order, what is returned."""

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    result: Expression


def build_module(source: Path, weights: Path) -> Module:
    """The torch module that a pnnx source file describes, in eval mode.

    Args:
        source: the `…_pnnx.py` that pnnx wrote.
        weights: its `….pnnx.bin` (a zip archive of raw arrays).

    Raises:
        ModelError: an operator that pnnx handed through without a torch counterpart, or any unknown form.
    """
    try:
        tree = ast.parse(source.read_text(encoding="utf-8"))
        model = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Model"), None)
        methods = {n.name: n for n in model.body if isinstance(n, ast.FunctionDef)} if model else {}
        if "__init__" not in methods or "forward" not in methods:
            raise ModelError("pnnx wrote no model", hint=HINT)
        layers, arrays = _constructor(methods["__init__"].body)
        program = _forward(methods["forward"], frozenset(layers), frozenset(arrays))
    except (SyntaxError, UnicodeDecodeError, ValueError) as err:
        line = (getattr(err, "text", None) or str(err)).strip()[:160]
        raise ModelError(f"pnnx has no torch counterpart for an operator in {line!r}", hint=HINT) from err
    except (RecursionError, MemoryError) as err:
        raise ModelError("what pnnx wrote is nested too deeply", hint=HINT) from err
    return _assemble(layers, arrays, program, weights)


def _constructor(body: Sequence[ast.stmt]) -> tuple[dict[str, Call], dict[str, _Weights]]:
    """(layers by name, arrays by path below `self`)."""
    layers: dict[str, Call] = {}
    arrays: dict[str, _Weights] = {}
    for statement in body:
        if isinstance(statement, ast.Expr) and ast.unparse(statement) in _IDLE:
            continue
        if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
            raise _unknown(statement)
        target, call = ast.unparse(statement.targets[0]), statement.value
        if not isinstance(call, ast.Call):
            raise _unknown(statement)
        if target == "archive" and ast.unparse(call.func) == "zipfile.ZipFile":
            continue
        path = _path(target)
        if path is None:
            raise _unknown(statement)
        if ast.unparse(call.func) in _LOADERS:
            arrays[path] = _weights(call, statement)
            continue
        make = pnnx_operators.layer(ast.unparse(call.func))
        if make is None or "." in path or call.args:
            raise _unknown(statement)
        layers[path] = Call(make, (), _Translation(statement).keywords(call))
    return layers, arrays


def _path(target: str) -> str | None:
    found = _ATTRIBUTE.fullmatch(target)
    return found.group(1).removeprefix(".") if found else None


def _weights(call: ast.Call, statement: ast.stmt) -> _Weights:
    try:
        key, shape, dtype = (ast.literal_eval(argument) for argument in call.args[1:4])
    except ValueError as err:
        raise _unknown(statement) from err
    shape = shape if isinstance(shape, tuple) else (shape,)
    if not isinstance(key, str) or dtype not in _ARRAY_TYPES or not all(type(size) is int for size in shape):
        raise _unknown(statement)
    return _Weights(key, shape, dtype)


def _forward(function: ast.FunctionDef, layers: frozenset[str], arrays: frozenset[str]) -> _Program:
    """Translate `forward`: assignments, then one return.

    Raises:
        ModelError: names the operator or form that is not in the closed lists.
    """
    given = function.args
    others = [*given.posonlyargs, *given.kwonlyargs, *given.defaults, given.vararg, given.kwarg, function.returns]
    others += [*(argument.annotation for argument in given.args), *function.decorator_list]
    names = [argument.arg for argument in given.args]
    inputs = tuple(names[1:])
    if any(others) or names[:1] != ["self"] or not all(_VALUE.fullmatch(name) for name in inputs):
        raise ModelError(f"pnnx wrote forward({ast.unparse(given)[:160]}), plain names were expected", hint=HINT)
    *statements, last = function.body
    known = set(inputs)
    steps: list[Step] = []
    for statement in statements:
        translation = _Translation(statement, frozenset(known), layers, arrays)
        steps.append(translation.step())
        known.update(_names(steps[-1].target))
    if not isinstance(last, ast.Return) or last.value is None:
        raise _unknown(last)
    result = _Translation(last, frozenset(known), layers, arrays).expression(last.value)
    return _Program(inputs, tuple(steps), result)


def _names(target: Target) -> Iterator[str]:
    if isinstance(target, str):
        yield target
    else:
        for part in target:
            yield from _names(part)


@dataclass(frozen=True)
class _Translation:
    """Translates the parts of one statement; `known` are the values before it.

    Every method raises ModelError for a form that is not one of pnnx' own.
    """

    statement: ast.stmt
    known: frozenset[str] = frozenset()
    layers: frozenset[str] = frozenset()
    arrays: frozenset[str] = frozenset()

    def step(self) -> Step:
        """The whole statement: `v_1 = …`, `v_1, (v_2, _) = …` or `v_1[…] = v_2`."""
        match self.statement:
            case ast.Assign(targets=[ast.Subscript(value=owner, slice=index)], value=value):
                parts = (self.expression(owner), self._index(index), self.expression(value))
                if not isinstance(parts[0], Value):
                    raise self._refused()
                return Step("_", Call(operator.setitem, parts))
            case ast.Assign(targets=[target], value=value):
                return _step(self._target(target), self.expression(value))
        raise self._refused()

    def _target(self, node: ast.expr) -> Target:
        match node:
            case ast.Name(id=name) if name == "_" or _VALUE.fullmatch(name):
                return name
            case ast.Tuple(elts=parts):
                return tuple(self._target(part) for part in parts)
        raise self._refused()

    def expression(self, node: ast.expr) -> Expression:
        """Anything that has a value."""
        match node:
            case ast.Constant(value=None | bool() | int() | float() | complex() as number):
                return Literal(_in_float32(number))
            case ast.Name(id="inf" | "nan" as name):
                return Literal(float(name))
            case ast.Name(id=name) if name in self.known:
                return Value(name)
            case ast.Attribute():
                return self._attribute(node)
            case ast.Tuple(elts=items):
                return Sequenced(tuple, tuple(self.expression(item) for item in items))
            case ast.List(elts=items):
                return Sequenced(list, tuple(self.expression(item) for item in items))
            case ast.UnaryOp(op=sign, operand=operand):
                return self._arithmetic(sign, operand)
            case ast.BinOp(left=left, op=sign, right=right):
                return self._arithmetic(sign, left, right)
            case ast.Compare(left=left, ops=[sign], comparators=[right]):
                return self._arithmetic(sign, left, right)
            case ast.Subscript(value=owner, slice=index):
                return Call(operator.getitem, (self.expression(owner), self._index(index)))
            case ast.Call():
                return self._call(node)
        raise self._refused()

    def keywords(self, call: ast.Call) -> tuple[tuple[str, Expression], ...]:
        """The named arguments of a call; the only place where words may stand."""
        found: list[tuple[str, Expression]] = []
        for keyword in call.keywords:
            name, value = keyword.arg, keyword.value
            if name is None or not pnnx_operators.takes_keyword(name):
                raise self._refused()
            match value:
                case ast.Constant(value=str() as word):
                    if not pnnx_operators.takes_word(name, word):
                        raise self._refused()
                    found.append((name, Literal(word)))
                case _:
                    found.append((name, self.expression(value)))
        return tuple(found)

    def _attribute(self, node: ast.Attribute) -> Expression:
        text = ast.unparse(node)
        constant = pnnx_operators.constant(text)
        if constant is not None:
            return Literal(constant)
        path = _path(text)
        if path is None or path not in self.arrays:
            raise self._refused()
        return Stored(path)

    def _arithmetic(self, sign: ast.AST, *operands: ast.expr) -> Expression:
        compute = pnnx_operators.ARITHMETIC.get(type(sign).__name__)
        if compute is None:
            raise self._refused()
        parts = tuple(self.expression(operand) for operand in operands)
        match sign, parts:
            case ast.USub(), (Literal(value=int() | float() as number),):
                return Literal(-number)
        return Call(compute, parts)

    def _index(self, node: ast.expr) -> Expression:
        match node:
            case ast.Slice(lower=lower, upper=upper, step=step):
                return Cut(*(Literal(None) if part is None else self.expression(part) for part in (lower, upper, step)))
            case ast.Constant(value=value) if value is Ellipsis:
                return Literal(Ellipsis)
            case ast.Tuple(elts=items):
                return Sequenced(tuple, tuple(self._index(item) for item in items))
        return self.expression(node)

    def _call(self, call: ast.Call) -> Expression:
        name = ast.unparse(call.func)
        keywords = self.keywords(call)
        arguments = call.args
        path = _path(name)
        if path is not None and path in self.layers:
            return Call(Stored(path), tuple(self.expression(argument) for argument in arguments), keywords)
        if name == "torch.einsum":
            return self._einsum(call)
        parts = tuple(self.expression(argument) for argument in arguments)
        match call.func:
            case ast.Attribute(value=ast.Name(id=owner), attr=attr) if owner in self.known:
                method = pnnx_operators.method(attr)
                if method is None:
                    raise self._refused()
                return Call(method, (Value(owner), *parts), keywords)
        # What torch does not take as pnnx writes it: max of a number, where with keywords.
        if name in ("torch.max", "torch.min") and len(parts) == 2 and not keywords:
            return Call(pnnx_operators.maximum if name == "torch.max" else pnnx_operators.minimum, parts)
        if name == "torch.where":
            by_name = dict(keywords)
            parts += tuple(by_name[key] for key in ("condition", "input", "other") if key in by_name)
            keywords = ()
        function = pnnx_operators.function(name)
        if function is None:
            raise self._refused()
        return Call(function, parts, keywords)

    def _einsum(self, call: ast.Call) -> Expression:
        import torch

        match call.args:
            case [ast.Constant(value=str() as equation), *operands] if pnnx_operators.is_equation(equation):
                parts = (Literal(equation), *(self.expression(operand) for operand in operands))
                if not call.keywords:
                    return Call(torch.einsum, parts)
        raise self._refused()

    def _refused(self) -> ModelError:
        return _unknown(self.statement)


def _step(target: Target, expression: Expression) -> Step:
    match expression:
        case Call(function=pnnx_recurrent.lstm | pnnx_recurrent.gru):
            count = 1 if isinstance(target, str) else len(target)
            expression = Call(pnnx_recurrent.first, (expression, Literal(count)))
    return Step(target, expression)


def _in_float32(number: object) -> object:
    """The shortest text of float32's largest value reads back as a larger double."""
    return _LARGEST if isinstance(number, float) and _LARGEST < number < float("inf") else number


def _unknown(statement: ast.stmt) -> ModelError:
    text = ast.unparse(statement)
    calls = [ast.unparse(n.func) for n in ast.walk(statement) if isinstance(n, ast.Call)]
    known = ("torch.", "F.", "nn.", "self.", "v_")
    foreign = [c for c in calls if not c.startswith(known) and c not in pnnx_operators.OWN]
    what = foreign[0] if foreign else text
    return ModelError(f"pnnx has no torch counterpart for {what[:120]!r} (in {text[:160]!r})", hint=HINT)


def _value(expression: Expression, model: Module, values: Mapping[str, Any]) -> Any:
    """What an expression is, given the values before it."""
    match expression:
        case Literal(value=value):
            return value
        case Value(name=name):
            return values[name]
        case Stored(path=path):
            owner, _, leaf = path.rpartition(".")
            return getattr(model.get_submodule(owner), leaf)
        case Sequenced(kind=kind, items=items):
            return kind(_value(item, model, values) for item in items)
        case Cut(start=start, stop=stop, step=step):
            return slice(*(_value(part, model, values) for part in (start, stop, step)))
        case Call(function=function, arguments=arguments, keywords=keywords):
            compute = _value(function, model, values) if isinstance(function, Stored) else function
            named = {key: _value(part, model, values) for key, part in keywords}
            return compute(*(_value(part, model, values) for part in arguments), **named)
    raise AssertionError("unreachable")


def _keep(target: Target, value: Any, values: dict[str, Any]) -> None:
    """Give a result its name, or its parts theirs."""
    if isinstance(target, str):
        values[target] = value
        return
    parts = tuple(value)
    if len(parts) != len(target):
        raise ModelError(f"pnnx expects {len(target)} results of an operator that gives {len(parts)}", hint=HINT)
    for name, part in zip(target, parts, strict=True):
        _keep(name, part, values)


def _assemble(layers: Mapping[str, Call], arrays: Mapping[str, _Weights], program: _Program, weights: Path) -> Module:
    import torch

    class OnnxModel(torch.nn.Module):  # type: ignore[misc]
        """Walks the steps of the program."""

        def forward(self, *inputs: torch.Tensor) -> Any:
            if len(inputs) != len(program.inputs):
                raise ModelError(f"the model takes {len(program.inputs)} inputs, {len(inputs)} were given")
            values: dict[str, Any] = dict(zip(program.inputs, inputs, strict=True))
            for step in program.steps:
                _keep(step.target, _value(step.expression, self, values), values)
            return _value(program.result, self, values)

    model = OnnxModel()
    for name, call in layers.items():
        _add_layer(model, name, call)
    try:
        with zipfile.ZipFile(weights) as archive:
            for path, where in arrays.items():
                _set_array(model, path, _array(archive, where))
    except (OSError, KeyError, zipfile.BadZipFile) as err:
        raise ModelError(f"pnnx wrote no weights that can be read: {err}", hint=HINT) from err
    return model.eval()


def _add_layer(model: Module, name: str, call: Call) -> None:
    settings = {key: _value(part, model, {}) for key, part in call.keywords}
    try:
        if isinstance(call.function, Stored):
            raise TypeError("a layer cannot be made of a layer")
        model.add_module(name, call.function(**settings))
    except (TypeError, ValueError, RuntimeError, KeyError) as err:
        raise ModelError(f"pnnx describes a layer that torch cannot make ({name}): {err}", hint=HINT) from err


def _array(archive: zipfile.ZipFile, where: _Weights) -> Array:
    values: Array = np.frombuffer(archive.read(where.key), dtype=where.dtype)
    if values.size != np.prod(where.shape, dtype=np.int64):
        raise ModelError(f"pnnx wrote {values.size} values of an array of shape {where.shape}", hint=HINT)
    return values.reshape(where.shape).copy()


def _set_array(model: Module, path: str, values: Array) -> None:
    """Make an array a parameter of the model, or the one of that name in a layer of it."""
    import torch

    tensor = torch.from_numpy(values)
    owner, _, leaf = path.rpartition(".")
    if not owner:
        try:
            model.register_parameter(leaf, torch.nn.Parameter(tensor, requires_grad=False))
        except KeyError as err:
            raise ModelError(f"pnnx named an array {leaf!r}: {err}", hint=HINT) from err
        return
    places = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if path not in places or places[path].shape != tensor.shape:
        raise ModelError(f"pnnx wrote an array {path!r} of shape {values.shape} for no such place", hint=HINT)
    setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(tensor, requires_grad=False))
