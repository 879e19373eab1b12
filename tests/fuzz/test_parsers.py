"""Every door on sound files, on wrong bytes, and on all that once went wrong there. `make fuzz` does it for hours."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.parsers import PARSERS, Parser
from tests.fuzz.run import CORPUS, Fuzzed, one_case, try_file

EXAMPLES = 150
"""Of a parser that takes well under a millisecond."""
FOUND = [(parser, path) for parser in PARSERS for path in sorted((CORPUS / parser.name).glob("*"))]

every_parser = pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)


@every_parser
def test_sound_files_are_read(tmp_path: Path, parser: Parser) -> None:
    for seed in parser.seeds():
        path = tmp_path / parser.file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(parser.wrap(seed))
        parser.parse(path)


@every_parser
def test_wrong_bytes_are_refused_or_read(tmp_path_factory: pytest.TempPathFactory, parser: Parser) -> None:
    folder, seeds = tmp_path_factory.mktemp("fuzz"), parser.seeds()

    @settings(
        max_examples=max(int(EXAMPLES * parser.share), 4),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        fuzzed = Fuzzed()
        try_file(parser, one_case(parser, seeds, seed), folder, fuzzed)
        assert not fuzzed.unexpected

    check()


@pytest.mark.parametrize(("parser", "path"), FOUND, ids=lambda value: getattr(value, "name", None))
def test_what_was_once_found_is_refused_or_read(tmp_path: Path, parser: Parser, path: Path) -> None:
    fuzzed = Fuzzed()
    try_file(parser, path.read_bytes(), tmp_path, fuzzed)
    assert not fuzzed.unexpected
