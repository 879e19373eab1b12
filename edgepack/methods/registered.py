"""Methods that a program registers under names: where each is found, so that its worker processes find it too."""

from __future__ import annotations

import sys
from functools import reduce
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from edgepack.errors import UsageError
from edgepack.workers import prepare_workers
from edgepack.workspace import file_digest

_places: dict[str, str] = {}


def names() -> tuple[str, ...]:
    """Of all that are registered."""
    return tuple(_places)


def register(name: str, method: Any) -> None:
    """Register a method in this process, and in every worker that starts from now on.

    Args:
        name: one that is registered already means the new method from now on.
        method: a function, object or module, or the place where one is found: "module:name".

    Raises:
        UsageError: other processes could not import it, or it is neither a function nor a factorizer.
    """
    place = method if isinstance(method, str) else _place(name, method)
    found = _found(name, place)
    if not isinstance(method, str) and found is not method:
        raise UsageError(
            f"method {name!r}: {place} is another object than the one given",
            hint="give an object that its module holds under its own name, or 'module:name'",
        )
    if not (callable(found) or (hasattr(found, "spectrum") and hasattr(found, "factors"))):
        raise UsageError(
            f"method {name!r}: {place} is {type(found).__name__}, expected a function, or an object with spectrum and "
            "factors",
            hint="edgepack/methods/README.md says what they take and give",
        )
    remember(name, place)
    prepare_workers(remember, name, place)


def remember(name: str, place: str) -> None:
    """What a worker is told."""
    _places[name] = place


def load(name: str) -> Any:
    """The method of a registered name.

    Raises:
        UsageError: it can no longer be imported.
    """
    return _found(name, _places[name])


def source_digest(name: str) -> str:
    """Of the file of its module; what that imports does not count."""
    file = getattr(import_module(_places[name].partition(":")[0]), "__file__", None)
    return "no file" if file is None else file_digest(Path(file))


def _place(name: str, method: Any) -> str:
    if isinstance(method, ModuleType):
        return method.__name__
    module = getattr(method, "__module__", None)
    attribute = getattr(method, "__qualname__", None)
    if attribute is None and module in sys.modules:  # an instance
        attribute = next((key for key, value in vars(sys.modules[module]).items() if value is method), None)
    if module is None or attribute is None:
        raise UsageError(f"method {name!r}: where this {type(method).__name__} is found is not known", hint=_HINT)
    return f"{module}:{attribute}"


_HINT = "write it into a module that `import` finds, such as my_methods.py beside your script, and give 'module:name'"


def _found(name: str, place: str) -> Any:
    module, _, attribute = place.partition(":")
    if module == "__main__" or "<" in attribute:
        where = "the script or notebook itself" if module == "__main__" else "another function"
        raise UsageError(f"method {name!r} is defined in {where}, where worker processes cannot find it", hint=_HINT)
    top = module.partition(".")[0]
    if top in sys.modules and PathFinder.find_spec(top) is None:
        raise UsageError(f"method {name!r}: worker processes cannot find {top}, which is not on sys.path", hint=_HINT)
    try:
        return reduce(getattr, filter(None, attribute.split(".")), import_module(module))
    except (ImportError, AttributeError, ValueError) as err:
        raise UsageError(f"method {name!r}: {place} cannot be imported: {err}", hint=_HINT) from err
