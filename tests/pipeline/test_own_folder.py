"""A pack goes where another model's pack lies only where that was said."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepack.errors import UsageError
from edgepack.pack.manifest import write_manifest
from edgepack.pipeline.build import check_own
from tests.manifests import whole


def test_another_models_pack_is_not_replaced(tmp_path: Path) -> None:
    record = whole({"files": {}})
    write_manifest(tmp_path, record)
    check_own(tmp_path, f"somewhere/else/{record.model.source}")
    with pytest.raises(UsageError, match=f"is the pack of {record.model.source}, which this one of other.onnx") as err:
        check_own(tmp_path, "other.onnx")
    assert f"--out {tmp_path} to replace it" in (err.value.hint or "")


def test_what_is_no_pack_is_anybodys(tmp_path: Path) -> None:
    check_own(tmp_path / "nothing", "a.onnx")
    (tmp_path / "manifest.json").write_text("{")
    check_own(tmp_path, "a.onnx")
