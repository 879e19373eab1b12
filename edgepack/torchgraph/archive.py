"""Read a `.pt2` file without running anything that is in it.

`torch.export.load` of torch 2.13 runs foreign code in more ways than one: the sample inputs are unpickled in full when
the weights-only unpickler refuses them; tensors marked `use_pickle`, custom and opaque objects are always unpickled;
compiled `data/aotinductor` libraries are loaded; an archive of the older layout is unpickled as a fallback; symbolic
sizes and input guards are Python source that goes through `eval` and `exec`; a treespec may name a module to import;
a node may name any function below `torch`; and the names of inputs, results and parameters go unescaped into the Python
source that fx writes for every graph and executes. So the archive is checked first, through the same reader that will
load it, and whatever is not plain data is refused.
"""

from __future__ import annotations

import ast
import io
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.errors import ModelError
from edgepack.torchgraph.run import first_line

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|extra/.*|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/(weights|constants)/(model_(weights|constants)_config\.json|(weight|tensor)_\d+)"
)
_OVERLOAD = re.compile(r"torch\.ops\.(aten|prims)\.(?!from_file\.|save\.)(\w+)\.((?!__)\w+)")
_OPERATOR = re.compile(
    r"torch\.ops\.higher_order\.(cond|while_loop|scan|map_impl|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.sym_(not|min|max|sum|ite|int|float|sqrt)"
    r"|_operator\.(getitem|add|sub|mul|neg|pos|floordiv|truediv|mod|pow|eq|ne|lt|le|gt|ge|and_|or_|xor|not_)"
    r"|math\.(?!_)\w+"
)
# What sympy's own text of a size is made of: sympify() evaluates it, so that nothing else may be in there.
_SIZE_CALLS = frozenset(
    (
        *("Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow"),
        *("Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv"),
        *("ModularIndexing", "Where", "CeilToInt", "FloorToInt", "TruncToInt", "TruncToFloat", "RoundToInt"),
        *("IntTrueDiv", "FloatTrueDiv", "PowByNatural", "ToFloat", "Identity", "And", "Or"),
        *("Not", "Equality", "Unequality", "Eq", "Ne", "GreaterThan", "LessThan"),
        *("StrictGreaterThan", "StrictLessThan", "Ge", "Gt", "Le", "Lt"),
    )
)
_SIZE_NODES = (
    *(ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare),
    *(ast.operator, ast.unaryop, ast.cmpop),
)
# Fields whose text fx makes Python identifiers of, and tables that are keyed by such names or by words of the user's.
_IDENTIFIERS = ("name", "as_name", "user_input_name", "forward_arg_names")
_TABLES = ("tensor_values", "sym_int_values", "sym_float_values", "sym_bool_values", "custom_obj_values")
_TABLES_OF_WORDS = ("as_string_to_argument", "opset_version", "range_constraints", "treespec_namedtuple_fields")
# Fields whose text torch writes with repr() or not at all, or that have checks of their own.
_FREE = ("as_string", "as_strings", "metadata", "in_spec", "out_spec", "expr_str", "as_expr", "target")
# Dotted paths and the like: fx puts their parts between double quotes where they are no identifiers.
_PLAIN = re.compile(r"(?!__)[\w+\-/@:<=,()\[\] ]*(\.(?!__)[\w+\-/@:<=,()\[\] ]*)*")
_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}


GUARDS = "guards_code"
"""Checks of input shapes, as Python source: dropped, since it runs where a module is made with it."""


def load_program(path: Path | str) -> ExportedProgram:
    """Load an exported program, refusing everything that would have to be unpickled, compiled or evaluated.

    Raises:
        ModelError: missing, empty, truncated or foreign file; a part that is not plain data; a program that this
            version of torch cannot read.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such file", hint="give the path of a file that torch.export.save wrote")
    hint = "write it with torch.export.save(torch.export.export(model.eval(), inputs), 'model.pt2')"
    if path.stat().st_size == 0:
        raise ModelError(f"{path}: the file is empty, a .pt2 archive was expected", hint=hint)
    from torch.export.pt2_archive._package import PT2ArchiveReader, load_pt2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reader = PT2ArchiveReader(str(path))
            names = [str(name) for name in reader.get_file_names()]
        except (RuntimeError, AssertionError, UnicodeDecodeError) as err:
            raise ModelError(f"{path}: not a .pt2 archive, or a truncated one ({first_line(err)})", hint=hint) from err
        _check(path, reader, names)
        try:
            program = load_pt2(str(path)).exported_programs["model"]
        except Exception as err:
            raise ModelError(f"{path}: torch cannot read this program: {first_line(err)}", hint=hint) from err
        program._guards_code = []
        return program


def _refuse(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path}: {what}; refused, because reading it would run code from the file",
        hint="export the model again with torch.export.save on plain tensors and standard operators",
    )


def _check(path: Path, reader: Any, names: list[str]) -> None:
    """Refuse the archive unless all of it is plain data.

    Raises:
        ModelError: names the part.
    """
    if len({name.lower() for name in names}) != len(names):
        raise _refuse(path, "two parts of the archive have the same name")
    for name in names:
        if not _RECORDS.fullmatch(name):
            raise _refuse(path, f"unexpected part {name!r}")
    if "models/model.json" not in names:
        raise ModelError(f"{path}: the archive holds no program named 'model'", hint="save it with torch.export.save")
    for part in ("weights", "constants"):
        for name, entry in _config(path, reader, f"data/{part}/model_{part}_config.json").items():
            if not _PLAIN.fullmatch(name):
                raise _refuse(path, f"the name {name!r} is not plain")
            if entry.get("use_pickle") or not re.fullmatch(r"(weight|tensor)_\d+", str(entry.get("path_name"))):
                raise _refuse(path, f"{name!r} is stored as a pickle")
    _check_sample_inputs(path, _read(path, reader, "data/sample_inputs/model.pt"))
    _check_program(path, _json(path, reader, "models/model.json"))


def _read(path: Path, reader: Any, name: str) -> bytes:
    try:
        return bytes(reader.read_bytes(name))
    except RuntimeError as err:
        raise ModelError(f"{path}: part {name!r} is missing or damaged ({first_line(err)})") from err


def _json(path: Path, reader: Any, name: str) -> Any:
    try:
        return json.loads(_read(path, reader, name))
    except ValueError as err:
        raise ModelError(f"{path}: part {name!r} is not JSON ({first_line(err)})") from err


def _config(path: Path, reader: Any, name: str) -> Mapping[str, Mapping[str, Any]]:
    config = _json(path, reader, name)
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ModelError(f"{path}: part {name!r} is not a list of tensors")
    return entries


def _check_sample_inputs(path: Path, blob: bytes) -> None:
    """What torch would unpickle in full after a failed weights-only attempt must pass that attempt."""
    import pickle

    import torch

    if not blob:
        return
    try:
        torch.load(io.BytesIO(blob), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as err:
        raise _refuse(path, "the sample inputs hold more than tensors") from err


def _check_program(path: Path, program: Any) -> None:
    if not isinstance(program, dict):
        raise ModelError(f"{path}: part 'models/model.json' is not a program")
    program = {key: value for key, value in program.items() if key != GUARDS}
    for key, value in _fields(program):
        if key == "target" and isinstance(value, str):
            if not _is_operator(value):
                raise _refuse(path, f"operator {value!r} is not one of torch's own")
        elif key in ("expr_str", "as_expr") and isinstance(value, str):
            if not _is_size(value):
                raise _refuse(path, f"size {value!r} is not arithmetic")
        elif key in ("in_spec", "out_spec") and isinstance(value, str):
            _check_treespec(path, value)
        elif key in ("as_custom_obj", "as_operator") and value:
            raise _refuse(path, f"the program uses a custom object {value!r}")
    strange = next(_strange_names(program), None)
    if strange is not None:
        raise _refuse(path, f"the name {strange[:120]!r} is not plain")


def _is_operator(target: str) -> bool:
    """Whether a node's target is an overload of aten or prims, or one of the few functions beside them."""
    import torch

    found = _OVERLOAD.fullmatch(target)
    if found is None:
        return _OPERATOR.fullmatch(target) is not None
    namespace, name, overload = found.groups()
    packet = getattr(getattr(torch.ops, namespace), name, None)
    return isinstance(packet, torch._ops.OpOverloadPacket) and isinstance(
        getattr(packet, overload, None), torch._ops.OpOverload
    )


def _strange_names(program: Any) -> Iterator[str]:
    """Every name in nested JSON, however deep, that is more than a name."""
    stack: list[tuple[str, Any]] = [("", program)]
    while stack:
        field, value = stack.pop()
        if isinstance(value, dict):
            yield from (key for key in value if not (_is_name(key) if field in _TABLES else _PLAIN.fullmatch(key)))
            # A key of a table is no field: what stands under it is not what it says.
            known = field not in _TABLES and field not in _TABLES_OF_WORDS
            inner = field if field == "metadata" else None
            stack += [(inner or (key if known else ""), item) for key, item in value.items()]
        elif isinstance(value, list):
            stack += [(field, item) for item in value]
        elif field not in _FREE and isinstance(value, str):
            yield from () if (_is_name(value) if field in _IDENTIFIERS else _PLAIN.fullmatch(value)) else (value,)


def _is_name(text: str) -> bool:
    return not text or text.isidentifier()


def _is_size(text: str) -> bool:
    """Whether the text is arithmetic on integers and symbols, as `Add(Symbol('s0', positive=True), Integer(1))`."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, _SIZE_NODES):
            return False
        if isinstance(node, ast.Name):
            allowed = (
                node.id in _SIZE_CALLS
                if id(node) in called
                else re.fullmatch(r"[a-z]+_?\d+|true|false|(int_)?oo", node.id)
            )
            if not allowed:
                return False
        # A string is a symbol's name or a decimal number.
        text_inside = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if text_inside and not re.fullmatch(r"[a-z]+\d*|[-+]?[0-9.]+(e[-+]?\d+)?", str(getattr(node, "value", ""))):
            return False
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
            return False
    return True


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested JSON, however deep."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield from item.items()
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _check_treespec(path: Path, text: str) -> None:
    """Only plain containers; what names the arguments of `forward` must be identifiers, for source is made of it."""
    try:
        spec = json.loads(text)
        names = _keyword_names(spec)
    except ValueError as err:
        raise ModelError(f"{path}: a treespec is not JSON ({first_line(err)})") from err
    for key, value in _fields(spec):
        if key == "type" and value not in _CONTAINERS:
            raise _refuse(path, f"inputs or outputs of type {value!r}")
        if "__enum__" in text:
            raise _refuse(path, "inputs or outputs with enum keys")
    for name in names:
        if not (isinstance(name, str) and _is_name(name)):
            raise _refuse(path, f"the argument name {str(name)[:120]!r} is not plain")


def _keyword_names(spec: Any) -> list[Any]:
    """The keys of a treespec's (positional arguments, {keyword: argument}), none if it is of another form."""
    match spec:
        case [_, {"children_spec": [_, {"type": "builtins.dict" | "collections.OrderedDict", "context": context}]}]:
            names = json.loads(context) if isinstance(context, str) else context
            return list(names) if isinstance(names, list) else [names]
    return []
