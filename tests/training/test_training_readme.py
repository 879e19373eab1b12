"""The example of training into low rank does what its comments say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    text = (Path(__file__).parents[2] / "edgepack" / "training" / "README.md").read_text()
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "apply_compression" in block]
    assert len(blocks) == 1
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    space: dict[str, Any] = {}
    exec(blocks[0], space)
    shapes = [tuple(one.weight.shape) for one in space["model"].modules() if isinstance(one, torch.nn.Linear)]
    assert shapes == [(42, 256), (512, 42), (10, 512)]
    assert "2" in capsys.readouterr().out
    assert (tmp_path / "model.pt2").is_file()
