"""Rules of style that no linter has: few parameters, and no argument lists without names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
MOST = 7
COMMANDS = "edgepack/cli"
"""There a public function is a command, and its parameters are the options of it."""


def problems(source: str, *, commands: bool = False) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = parameters(node)
            if count > MOST and not (commands and not node.name.startswith("_")):
                yield f"{node.lineno}: {node.name} has {count} parameters, expected at most {MOST}: make a dataclass"
        elif isinstance(node, ast.Call):
            for argument in node.args:
                if isinstance(argument, ast.Starred) and isinstance(argument.value, ast.Tuple | ast.List):
                    yield f"{argument.lineno}: {ast.unparse(argument)} is splatted into a call: name the arguments"


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    found = node.args
    named = [one.arg for one in (*found.posonlyargs, *found.args, *found.kwonlyargs)]
    rest = [one for one in (found.vararg, found.kwarg) if one is not None]
    return len(named) + len(rest) - (named[:1] in (["self"], ["cls"]))


def sources() -> list[Path]:
    return [path for folder in ("edgepack", "bench") for path in sorted((TOP / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(TOP)))
def test_functions_take_few_named_arguments(path: Path) -> None:
    name = path.relative_to(TOP).as_posix()
    assert list(problems(path.read_text(), commands=name.startswith(COMMANDS))) == []


def test_the_rules_find_what_they_are_for() -> None:
    many = "def f(self, a, b, c, d, *, e, g, h, **i): ..."
    assert len(list(problems(many))) == 1
    assert list(problems(many, commands=True)) == []
    assert list(problems("def f(self, a, b, c, d, e, g, h): ...")) == []
    assert len(list(problems("f(*(a, b), c)\nf(*[a])"))) == 2
    assert list(problems("f(*a, *g(x), *(1 for _ in b), *(1,) * n)")) == []
