"""What an operator's function is told of its node: attributes as typed values, and how to refuse."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgepack.errors import ModelError
from edgepack.model.types import Array

HINT = "build only the ONNX file (--formats onnx), or give the torch model"
MOST_ELEMENTS = 1 << 28
"""Of a tensor that an operator makes out of a shape: a gigabyte of float32."""


@dataclass(frozen=True)
class Node:
    """A node of an ONNX graph as its function sees it.

    Attributes:
        operator: its name in ONNX.
        version: of the operator set that it is meant in.
        label: file, node and operator, for messages.
        attributes: integers, numbers, strings, arrays and lists of these, by name.
        outputs: how many it has, named or not.
        natural: places of inputs whose numbers are known not to be negative.
        read: names of the attributes that were asked for: any other one is refused.
    """

    operator: str
    version: int
    label: str
    attributes: Mapping[str, Any]
    outputs: int = 1
    natural: Collection[int] = frozenset()
    read: set[str] = field(default_factory=set)

    def has(self, name: str) -> bool:
        """Whether the node sets an attribute."""
        return name in self.attributes

    def integer(self, name: str, default: int | None = None) -> int:
        """An attribute that is an integer.

        Raises:
            ModelError: it is something else, or missing where there is no default.
        """
        return int(self._value(name, default, (int,)))

    def flag(self, name: str, default: int = 0) -> bool:
        """An integer that means yes or no."""
        return bool(self.integer(name, default))

    def number(self, name: str, default: float | None = None) -> float:
        """An attribute that is a number; errors as of `integer`."""
        return float(self._value(name, default, (int, float)))

    def integers(self, name: str, default: Collection[int] | None = None) -> list[int]:
        """An attribute that is a list of integers; errors as of `integer`."""
        return [int(value) for value in self._list(name, default, (int,))]

    def numbers(self, name: str, default: Collection[float] | None = None) -> list[float]:
        """An attribute that is a list of numbers; errors as of `integer`."""
        return [float(value) for value in self._list(name, default, (int, float))]

    def text(self, name: str, default: str, choices: Collection[str] = ()) -> str:
        """An attribute that is a word, one of `choices`.

        Raises:
            ModelError: it is none of them.
        """
        value = str(self._value(name, default, (str,)))
        if value not in (*choices, default):
            known = ", ".join(dict.fromkeys((default, *choices)))
            raise self.error(f"has {name}={value[:80]!r}, one of {known} was expected")
        return value

    def texts(self, name: str, choices: Collection[str]) -> list[str]:
        """A list of words in lower case, all of them among `choices`; none where it is not set."""
        values = [str(value).lower() for value in self._list(name, (), (str,))]
        if foreign := [value for value in values if value not in choices]:
            raise self.error(f"has {foreign[0][:80]!r} in {name}, one of {', '.join(choices)} was expected")
        return values

    def array(self, name: str) -> Any:
        """An attribute that is a tensor, None where it is not set."""
        self.read.add(name)
        return self.attributes.get(name)

    def error(self, what: str) -> ModelError:
        """The error that says what is wrong with this node ("has …")."""
        return ModelError(f"{self.label} {what}", hint=HINT)

    def unread(self) -> list[str]:
        """Attributes that nothing asked for."""
        return [name for name in self.attributes if name not in self.read]

    def _value(self, name: str, default: object, kinds: tuple[type, ...]) -> Any:
        self.read.add(name)
        value = self.attributes.get(name, default)
        if not isinstance(value, kinds):
            found = "no" if value is None else f"{type(value).__name__} as"
            raise self.error(f"has {found} {name}, {kinds[-1].__name__} was expected")
        return value

    def _list(self, name: str, default: Collection[Any] | None, kinds: tuple[type, ...]) -> list[Any]:
        self.read.add(name)
        values = self.attributes.get(name, default)
        if not isinstance(values, (list, tuple, range)) or not all(isinstance(value, kinds) for value in values):
            raise self.error(f"has {'no' if values is None else 'another kind of'} {name}, a list was expected")
        return list(values)


@dataclass(frozen=True)
class Operator:
    """How an operator of ONNX is computed.

    Attributes:
        run: the node and its inputs → a tensor, or one for every output; inputs that are not given are None.
        known: places of inputs that are read as numbers when the graph is built (shapes, axes): they come as arrays.
        either: places of inputs that come as arrays where they are known, and as tensors where not.
        scalars: whether an input that is a single constant comes as a number of Python, which torch broadcasts.
        static: the result depends on nothing but shapes.
    """

    run: Callable[..., Any]
    known: frozenset[int] = frozenset()
    either: frozenset[int] = frozenset()
    scalars: bool = False
    static: bool = False


def operator(
    run: Callable[..., Any], *known: int, either: Collection[int] = (), scalars: bool = False, static: bool = False
) -> Operator:
    """An `Operator`, in fewer words."""
    return Operator(run, frozenset(known), frozenset(either), scalars, static)


def listed(values: Array | None) -> list[int]:
    """The integers of a known input, none where it is not given."""
    return [] if values is None else [int(value) for value in values.reshape(-1)]


def bounded(node: Node, shape: Collection[int]) -> tuple[int, ...]:
    """A shape that a tensor may be made of.

    Raises:
        ModelError: it has a negative size, or more elements than `MOST_ELEMENTS`.
    """
    count = 1
    for size in shape:
        count *= int(size)
    if any(size < 0 for size in shape) or count > MOST_ELEMENTS:
        raise node.error(f"makes a tensor of shape {tuple(shape)}, at most {MOST_ELEMENTS} elements were expected")
    return tuple(int(size) for size in shape)
