"""How much a figure may grow, as edgepack.yaml says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgepack.check.thresholds import STANDARD, Thresholds, parse_thresholds
from edgepack.cli.project import read_project, read_thresholds, write_project
from edgepack.errors import InputError


def test_what_is_not_given_is_as_by_default() -> None:
    assert parse_thresholds({}, "x") == STANDARD
    found = parse_thresholds({"size": "0%", "misses": "2.5 %", "drop": 1}, "x")
    assert found == Thresholds(size=0.0, misses=0.025, drop=1.0)
    assert parse_thresholds(STANDARD.in_words(), "x") == STANDARD


@pytest.mark.parametrize(
    ("given", "says", "hint"),
    [
        (["size"], "found list, expected thresholds by name", "write it as {size: 1%"),
        ({"sise": "1%"}, "'sise' is no threshold", "did you mean 'size'?"),
        ({1: "1%"}, "'1' is no threshold", "there are size, instructions"),
        ({"size": 0.01}, "size: found '0.01', expected a share such as 2%", None),
        ({"misses": "-1%"}, "misses: found '-1%'", None),
        ({"drop": "0.5"}, "drop: found '0.5', expected a number", None),
        ({"drop": 10**400}, "drop: found '1000", None),
        ({"drop": float("nan")}, "drop: found 'nan'", None),
        ({"drop": True}, "drop: found 'True'", None),
    ],
)
def test_what_makes_no_sense_is_refused(given: Any, says: str, hint: str | None) -> None:
    with pytest.raises(InputError) as caught:
        parse_thresholds(given, "edgepack.yaml: check")
    assert caught.value.message.startswith(f"edgepack.yaml: check: {says}")
    assert (caught.value.hint or "").startswith(hint or "")


def test_a_project_holds_both_options_and_thresholds(tmp_path: Path) -> None:
    path = tmp_path / "edgepack.yaml"
    assert read_thresholds(path) == STANDARD
    write_project(path, {"model": "a.onnx", "target": "rpi4"})
    assert read_thresholds(path) == STANDARD
    named = path.read_text().replace("# check:", "check:").replace("size: 1%", "size: 7%")
    path.write_text(named)
    assert read_thresholds(path) == Thresholds(size=0.07)
    assert read_project(path, {"model": "model", "target": "target"}) == {"model": "a.onnx", "target": "rpi4"}
    path.write_text("check: [\n")
    with pytest.raises(InputError, match=r"edgepack\.yaml"):
        read_thresholds(path)
