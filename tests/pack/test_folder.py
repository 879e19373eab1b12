"""The place of a pack."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepack.errors import OutputError
from edgepack.pack.folder import writing


@pytest.mark.parametrize("name", [".", ""])
def test_the_folder_that_it_runs_in_is_no_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="the folder that this is run in"), writing(Path(name)):
        pass


def test_a_name_of_as_many_letters_as_there_may_be(tmp_path: Path) -> None:
    out = tmp_path / ("n" * 255)
    with writing(out) as folder:
        (folder / "manifest.json").write_text("{}")
    assert (out / "manifest.json").exists()
