"""Parsers on wrong bytes, case after case, and what they raised that they should not."""

from __future__ import annotations

import random
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hardening.mutate import mutated

from edgepack.errors import EdgepackError
from tests.fuzz.parsers import Parser

CORPUS = Path(__file__).parent / "corpus"
"""What was once found, by parser."""


@dataclass
class Fuzzed:
    """What became of cases.

    Attributes:
        cases: all of them; read: those that were taken; refused: those with an error of edgepack's tree.
        unexpected: how often anything else was raised, by what and where, and an input that does.
        slowest_s: of one case.
    """

    cases: int = 0
    read: int = 0
    refused: int = 0
    unexpected: Counter[str] = field(default_factory=Counter)
    inputs: dict[str, bytes] = field(default_factory=dict)
    slowest_s: float = 0.0


def one_case(parser: Parser, seeds: list[bytes], seed: int) -> bytes:
    """The file of a seed."""
    rng = random.Random(seed)
    return parser.wrap(mutated(rng.choice(seeds), rng))


def try_file(parser: Parser, content: bytes, folder: Path, fuzzed: Fuzzed) -> None:
    """Have one file read, and count."""
    path = folder / parser.file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    start = time.perf_counter()
    try:
        parser.parse(path)
        fuzzed.read += 1
    except EdgepackError:
        fuzzed.refused += 1
    except Exception as err:  # noqa: BLE001 - this is what is looked for
        frame = traceback.extract_tb(err.__traceback__)[-1]
        what = f"{type(err).__name__} at {'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno}: {str(err)[:80]}"
        fuzzed.unexpected[what] += 1
        fuzzed.inputs.setdefault(what, content)
    fuzzed.slowest_s = max(fuzzed.slowest_s, time.perf_counter() - start)
    fuzzed.cases += 1


def fuzz(parser: Parser, folder: Path, first: int, more: Callable[[int], bool]) -> Fuzzed:
    """Cases from a seed on, as long as `more` says of their number."""
    seeds, fuzzed = parser.seeds(), Fuzzed()
    while more(fuzzed.cases):
        try_file(parser, one_case(parser, seeds, first + fuzzed.cases), folder, fuzzed)
    return fuzzed
