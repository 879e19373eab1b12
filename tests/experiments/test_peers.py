"""Tables of other tools' files and of zoos, and peers that fail."""

from __future__ import annotations

import sys
from pathlib import Path

import measure_build_all
import measure_peers
import pytest
from peers import environment


def test_the_front_is_by_format_and_failures_stand_at_the_end() -> None:
    def row(fmt: str, title: str, size: int, accuracy: float) -> dict[str, object]:
        return {"format": fmt, "title": title, "bytes": size, "accuracy": accuracy, "seconds": 1e-5}

    rows = [
        {"format": "onnx", "title": "broken", "error": "ort: no such operator"},
        row("onnx", "large", 5000, 98.0),
        row("onnx", "small", 1000, 98.0),
        row("onnx", "smallest", 900, 97.0),
        row("tflite", "other", 9000, 90.0),
    ]
    lines = [line for line in measure_peers.render(rows).splitlines() if line.startswith("| ")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [(line[1], line[-1]) for line in cells] == [
        ("smallest", "•"),
        ("small", "•"),
        ("large", ""),
        ("other", "•"),
        ("broken", ""),
    ]
    assert cells[0][2:5] == ["0.9 kB", "97.00", "10.0 µs"]
    assert cells[-1][2:4] == ["failed", "ort: no such operator"]


def test_where_another_tool_is_better_it_is_said() -> None:
    def row(title: str, size: int, accuracy: float, seconds: float) -> dict[str, object]:
        return {"format": "onnx", "title": title, "bytes": size, "accuracy": accuracy, "seconds": seconds}

    own = [row("edgepack a", 1000, 98.0, 2e-6), row("dense fp32", 9, 99.9, 1e-9)]
    assert not list(measure_peers._beating([*own, row("worse", 1000, 98.0, 2e-6)]))
    (more,) = measure_peers._beating([*own, row("better", 5000, 98.05, 6e-6)])
    assert more.startswith(
        "better (onnx) is right on 5 digits of 10,000 more than edgepack a, in 5.0 times the bytes and"
    )
    assert "3.0 times the time; the standard error of one accuracy is 0.14 points." in more
    (smaller,) = measure_peers._beating([*own, row("tiny", 900, 97.0, 2e-6)])
    assert smaller == "tiny (onnx) is smaller than all of edgepack's files that are as accurate."


def test_what_a_peer_says_last_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(environment, "python_of", lambda peer: Path(sys.executable))
    with pytest.raises(RuntimeError, match=r"^score: FileNotFoundError.*none\.npz"):
        environment.run_peer("score", ["times", tmp_path / "none.json", tmp_path / "none.npz", "x"], folder=tmp_path)


def test_a_zoo_has_a_line_for_each_way() -> None:
    row = {"seconds": 12.3, "built": 12, "kept": 0, "failed": ["cut"], "exit": 3, "same": 12}
    text = measure_build_all.render(dict.fromkeys(measure_build_all.WAYS, row))
    assert text.count("| 12 s | 12 | 0 | cut | 3 | 12 of 12 |") == len(measure_build_all.WAYS)
