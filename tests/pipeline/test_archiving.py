"""A pack with an archive of its model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from edgepack.archive.archive import extract_file
from edgepack.pipeline.build import build
from edgepack.workspace import Cache
from tests.pipeline.small_builds import options


def asked(classifier: Path, out: Path, **changes: Any) -> Any:
    return options(classifier, rank=32, precision="int8", archive=True, baseline=False, out=out, **changes)


def test_a_build_with_transport(classifier: Path, warm_cache: Path, tmp_path: Path) -> None:
    made = build(asked(classifier, tmp_path / "p"), cache=Cache(warm_cache))
    files = made.manifest.record()["files"]
    entry = files["model.onnx"]
    archive = tmp_path / "p" / entry["archive"]["file"]
    assert archive == tmp_path / "p" / "archive" / "model.onnx.tar.xz"
    assert entry["archive_bytes"] == archive.stat().st_size < 0.95 * entry["size_bytes"]
    assert entry["archive"]["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    (file,) = extract_file(archive, tmp_path / "out")
    assert file.path.read_bytes() == (tmp_path / "p" / "model.onnx").read_bytes()
    assert (file.sha256, file.size_bytes, file.written) == (entry["sha256"], entry["size_bytes"], True)
    again = build(asked(classifier, tmp_path / "q"), cache=Cache(warm_cache))
    assert again.manifest.record()["files"] == files
