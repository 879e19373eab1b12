"""Turn the Python source that pnnx writes into a module, without trusting it.

The source is made from an ONNX file, names and strings of the file included. So it is not run as it is: its syntax tree
is checked against the few schemes that pnnx writes (calls of torch's own functions and layers on literals and earlier
values), weights are read by our own code, and only what passed is compiled.
"""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_LOADERS = ("load_pnnx_bin_as_parameter", "load_pnnx_bin_as_tensor")
# Names below torch that reach beyond arithmetic: files, processes, other modules' state, compilation.
_FORBIDDEN = frozenset(
    (
        *("load", "save", "hub", "jit", "compile", "ops"),
        *("library", "utils", "serialization", "from_file", "package", "classes"),
        *("os", "sys", "io", "multiprocessing", "distributed", "cuda"),
        *("backends", "overrides", "export", "onnx", "fx", "func"),
        *("autograd", "random", "storage", "Storage", "UntypedStorage", "frombuffer"),
        *("from_numpy", "set_default_device", "set_default_dtype", "manual_seed", "numpy", "share_memory_"),
        *("register_hook", "apply_", "map_", "map2_", "data_ptr"),
    )
)
_HINT = "build only the ONNX file (--formats onnx), or give the torch model"
_EXPRESSIONS = (
    *(ast.Call, ast.Attribute, ast.Name, ast.Constant, ast.Tuple, ast.List, ast.BinOp, ast.UnaryOp, ast.Compare),
    *(ast.Subscript, ast.Slice, ast.keyword, ast.operator, ast.unaryop, ast.cmpop, ast.Load, ast.Store),
    *(ast.Assign, ast.Return),
)


def build_module(source: Path, weights: Path) -> Module:
    """The torch module that a pnnx source file describes, in eval mode.

    Args:
        source: the `…_pnnx.py` that pnnx wrote.
        weights: its `….pnnx.bin` (a zip archive of raw arrays).

    Raises:
        ModelError: an operator that pnnx handed through without a torch counterpart, or any unknown scheme.
    """
    try:
        tree = ast.parse(source.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError) as err:
        line = (getattr(err, "text", None) or str(err)).strip()[:160]
        raise ModelError(f"pnnx has no torch counterpart for an operator in {line!r}", hint=_HINT) from err
    model = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Model"), None)
    methods = {n.name: n for n in model.body if isinstance(n, ast.FunctionDef)} if model else {}
    if "__init__" not in methods or "forward" not in methods:
        raise ModelError("pnnx wrote no model", hint=_HINT)
    layers, arrays = _constructor(methods["__init__"].body)
    forward = methods["forward"]
    for statement in forward.body:
        _check(statement)
    return _assemble(layers, arrays, _Cleaned().visit(forward), weights)


def _constructor(body: list[ast.stmt]) -> tuple[list[ast.Assign], dict[str, tuple[str, tuple[int, ...], str]]]:
    """(`self.x = nn.…` statements, {attribute path: (key in the archive, shape, dtype)})."""
    layers: list[ast.Assign] = []
    arrays: dict[str, tuple[str, tuple[int, ...], str]] = {}
    for statement in body:
        value = getattr(statement, "value", None)
        if isinstance(statement, ast.Expr):
            continue  # super().__init__() and archive.close()
        if not isinstance(statement, ast.Assign) or len(statement.targets) != 1 or not isinstance(value, ast.Call):
            raise _unknown(statement)
        target = ast.unparse(statement.targets[0])
        if target == "archive":
            continue
        if not target.startswith("self."):
            raise _unknown(statement)
        if isinstance(value.func, ast.Attribute) and value.func.attr in _LOADERS:
            try:
                key, shape, dtype = (ast.literal_eval(argument) for argument in value.args[1:4])
            except ValueError as err:
                raise _unknown(statement) from err
            arrays[target.removeprefix("self.")] = (key, shape if isinstance(shape, tuple) else (shape,), dtype)
        else:
            _check(statement)
            layers.append(statement)
    return layers, arrays


def _check(statement: ast.stmt) -> None:
    """Refuse a statement that is not an assignment or return of plain torch calls.

    Raises:
        ModelError: names the operator or scheme.
    """
    for node in ast.walk(statement):
        if not isinstance(node, _EXPRESSIONS):
            raise _unknown(statement)
        if isinstance(node, ast.Attribute) and (node.attr.startswith("_") or node.attr in _FORBIDDEN):
            raise _unknown(statement)
        if isinstance(node, ast.Name) and not _allowed_name(node.id):
            raise _unknown(statement)


def _allowed_name(name: str) -> bool:
    return name.startswith("v_") or name in ("self", "torch", "nn", "F", "inf", "nan", "_") or name in _ONNX_OPERATORS


def _unknown(statement: ast.stmt) -> ModelError:
    text = ast.unparse(statement)
    calls = [ast.unparse(n.func) for n in ast.walk(statement) if isinstance(n, ast.Call)]
    known = ("torch.", "F.", "nn.", "self.", "v_")
    foreign = [c for c in calls if not c.startswith(known) and c not in _ONNX_OPERATORS]
    what = foreign[0] if foreign else text[:120]
    return ModelError(
        f"pnnx has no torch counterpart for {what!r} (in {text[:160]!r})",
        hint=_HINT,
    )


class _Cleaned(ast.NodeTransformer):
    """What torch does not take as pnnx writes it: max of a number, where with keywords, numbers past float32."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        top = float(np.finfo(np.float32).max)
        if isinstance(node.value, float) and top < node.value < float("inf"):
            node.value = top  # the shortest text of float32's largest value reads back as a larger double
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = ast.unparse(node.func)
        if name in ("torch.max", "torch.min") and len(node.args) == 2 and not node.keywords:
            node.func = ast.Name("Max" if name == "torch.max" else "Min", ast.Load())
        if name == "torch.where":
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            node.args += [keywords[key] for key in ("condition", "input", "other") if key in keywords]
            node.keywords = []
        return node


def _max(first: Tensor | float, second: Tensor | float) -> Tensor:
    """max(x, y), either of them a number."""
    return _bounded(first, second, "min")


def _min(first: Tensor | float, second: Tensor | float) -> Tensor:
    """min(x, y), either of them a number."""
    return _bounded(first, second, "max")


def _bounded(first: Tensor | float, second: Tensor | float, bound: str) -> Tensor:
    import torch

    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.maximum(first, second) if bound == "min" else torch.minimum(first, second)
    tensor, number = (first, second) if isinstance(first, torch.Tensor) else (second, first)
    return torch.clamp(tensor, **{bound: number})


def _gather(data: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """ONNX Gather: slices of `data` along `axis`."""
    from torch.nn import functional

    if axis == 0 and data.dim() == 2:
        return functional.embedding(indices, data)
    axis = axis % data.dim()
    picked = data.index_select(axis, indices.reshape(-1))
    return picked.reshape(*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])


def _gather_nd(data: Tensor, indices: Tensor, batch_dims: int = 0) -> Tensor:
    """ONNX GatherND without batch dimensions."""
    if batch_dims:
        raise ModelError(f"GatherND with batch_dims={batch_dims} has no torch counterpart", hint=_HINT)
    return data[tuple(indices.unbind(-1))]


# What pnnx hands through under its ONNX name.
_ONNX_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Max": _max,
    "Min": _min,
}


def _assemble(
    layers: list[ast.Assign],
    arrays: dict[str, tuple[str, tuple[int, ...], str]],
    forward: ast.FunctionDef,
    weights: Path,
) -> Module:
    import torch

    scope: dict[str, Any] = {
        **_ONNX_OPERATORS,
        "torch": torch,
        "nn": torch.nn,
        "F": torch.nn.functional,
        "inf": float("inf"),
    }
    scope["nan"] = float("nan")
    forward.decorator_list = []
    code = ast.fix_missing_locations(ast.Module([forward], type_ignores=[]))
    exec(compile(code, "<pnnx>", "exec"), scope)
    model: Module = type("OnnxModel", (torch.nn.Module,), {"forward": scope["forward"]})()
    scope["self"] = model
    setup = ast.fix_missing_locations(ast.Module(list(layers), type_ignores=[]))
    exec(compile(setup, "<pnnx>", "exec"), scope)
    with zipfile.ZipFile(weights) as archive:
        for path, (key, shape, dtype) in arrays.items():
            values = np.frombuffer(archive.read(key), dtype=dtype).reshape(shape).copy()
            owner, _, leaf = path.rpartition(".")
            parameter = torch.nn.Parameter(torch.from_numpy(values), requires_grad=False)
            setattr(model.get_submodule(owner) if owner else model, leaf, parameter)
    return model.eval()
