"""Recipes that fail in ways of their own: they are code and are trusted, but their mistakes are messages."""

from __future__ import annotations

from collections.abc import Iterator

from hardening.case import Case
from hardening.things import RECIPE, Things

_MADE = "Recipe(torch.nn.Linear(16, 4), (torch.zeros(1, 16),), {})"
_ROWS = "[({},) for _ in range(9)]"
BODIES = {
    "BaseException": "raise BaseException('base')",
    "own BaseException": "class Mine(BaseException): pass\n    raise Mine",
    "MemoryError": "raise MemoryError",
    "SystemExit": "raise SystemExit(0)",
    "sys.exit": "import sys; sys.exit('over')",
    "GeneratorExit": "raise GeneratorExit",
    "RecursionError": "return recipe()",
    "StopIteration": "raise StopIteration",
    "closes descriptors": f"import os; os.closerange(0, 64); return {_MADE.format('None')}",
    "closes stdout": f"import sys; sys.stdout.close(); return {_MADE.format('None')}",
    "no stderr": f"import sys; sys.stderr = None; return {_MADE.format('None')}",
    "None": "return None",
    "number": "return 7",
    "model of text": "return Recipe('model', (torch.zeros(1, 16),), None)",
    "no inputs": "return Recipe(torch.nn.Linear(16, 4), (), None)",
    "inputs of text": "return Recipe(torch.nn.Linear(16, 4), ('a',), None)",
    "wrong shape": "return Recipe(torch.nn.Linear(16, 4), (torch.zeros(1, 17),), None)",
    "calibration of text": f"return {_MADE.format(repr('abc'))}",
    "calibration of numbers": f"return {_MADE.format(7)}",
    "calibration of nothing": f"return {_MADE.format('[]')}",
    "calibration of 1e38": f"return {_MADE.format(_ROWS.format('1e38 * torch.rand(1, 16)'))}",
    "calibration nan": f"return {_MADE.format(_ROWS.format('torch.full((1, 16), torch.nan)'))}",
    "calibration ragged": f"return {_MADE.format('[(torch.zeros(n, n),) for n in range(1, 9)]')}",
    "calibration raises": f"return {_MADE.format('(1 / 0 for _ in range(9))')}",
    "calibration never ends": "import itertools; "
    f"return {_MADE.format('((torch.randn(1, 16),) for _ in itertools.count())')}",
    "evaluate of text": "return Recipe(torch.nn.Linear(16, 4), (torch.zeros(1, 16),), None, 'x')",
    "weights 1e38": "m = torch.nn.Linear(16, 4); m.weight.data.fill_(1e38); "
    "return Recipe(m, (torch.zeros(1, 16),), {'x': torch.randn(64, 16).numpy() * 1e3})",
    "weights nan": "m = torch.nn.Linear(16, 4); m.weight.data.fill_(float('nan')); "
    "return Recipe(m, (torch.zeros(1, 16),), {'x': torch.randn(64, 16).numpy()})",
    "forward raises": "class M(torch.nn.Module):\n        def forward(self, x): raise BaseException('no')\n    "
    "return Recipe(M(), (torch.zeros(1, 16),), None)",
    "control flow": "class M(torch.nn.Module):\n        def forward(self, x): return x if x.sum() > 0 else -x\n    "
    "return Recipe(M(), (torch.zeros(1, 16),), None)",
}
FILES = {
    "syntax": "def recipe(:",
    "import": "import no_such_package",
    "raises when imported": "raise KeyError(7)",
    "exits when imported": "import os, sys; sys.exit(3)",
    "nul": "x = 1\0",
    "empty": "",
    "not a function": "recipe = 3",
    "arguments": "def recipe(a, b): return a",
    "class": "class recipe: pass",
    "latin": "# \udcff\n",
    "deep": "x = " + "(" * 500 + ")" * 500,
    "generator": "def recipe():\n    yield 1",
    "circular": "from good_recipe import nothing",
}


def wrong_recipes(things: Things) -> Iterator[Case]:
    """All of them, inspected and built."""
    head = RECIPE.partition("def recipe")[0]
    texts = {**FILES, **{name: f"{head}def recipe():\n    {body}\n" for name, body in BODIES.items()}}
    for number, (name, text) in enumerate(texts.items()):
        path = things.wrong / f"recipe_{number}.py"
        path.write_text(text, errors="surrogateescape")
        spec = f"{path}:recipe"
        yield Case("recipes", f"inspect {name}", ("inspect", spec))
        if name in BODIES:
            build = ("build", spec, "--target", "rpi4", "--rank", "2", "--formats", "onnx", "--out", "{out}")
            yield Case("recipes", f"build {name}", build)
